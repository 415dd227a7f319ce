"""Configs of published image tokenizers, with their files. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

from cm3core.errors import CheckpointError, RecipeError, close_match
from cm3core.files import user_path
from cm3core.interfaces.component import check_given, check_value
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3published.image_tokenizers import SAVED, Published

if TYPE_CHECKING:
    from cm3published.image_tokenizers.tokenizer import PublicTokenizer


@dataclass(kw_only=True)
class PublicVQConfig(ImageTokenizerConfig):
    """Base of the configs of published tokenizers: convolutional networks with a codebook.

    The network's sizes are read from the file.

    Args:
        model: which published model `weights` is.
        weights: path of the file, a `.ckpt`, `.pt`, `.pth` or `.safetensors`; nothing in it is executed. A
            checkpoint holds a copy, and reads that.
        weights_sha256: expected SHA-256 of the file, if given.
        resolution: height of pictures in pixels, a multiple of the downsampling factor. None: the training
            resolution. Convolutions work at any size.
        width: width of pictures in pixels. None: the height.
        num_codes, downsampling: for your own file with the architecture of `model`. None: as for that model.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "model": TEXT,
        "weights": Outside(READS, "its weights"),
        "weights_sha256": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "width": (1, 2**14),
        "num_codes": (1, 2**24),
        "downsampling": (1, 2**10),
    }
    #: The publisher's files, by values of `model`.
    published: ClassVar[Mapping[str, Published]] = MappingProxyType({})

    model: str = ""
    weights: str | None = None
    weights_sha256: str | None = None
    resolution: int | None = None
    width: int | None = None
    num_codes: int | None = None
    downsampling: int | None = None

    @property
    def facts(self) -> Published:
        """The facts of `model`, overridden by keys that are set."""
        self._check_model()
        known = self.published[self.model]
        return Published(
            self.num_codes or known.num_codes,
            self.downsampling or known.downsampling,
            self.resolution or known.resolution,
            known.quantizer,
            known.file,
            known.network,
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.facts.num_codes

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height = self.facts.resolution
        return height, self.width or height

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        height, width = self.image_size
        return height // self.facts.downsampling, width // self.facts.downsampling

    def _check_model(self) -> None:
        if self.model not in self.published:
            raise RecipeError(
                "image_tokenizer.model",
                f"{self.model!r} is not known",
                close_match(self.model, tuple(self.published)),
            )

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        factor = self.facts.downsampling
        power = factor & (factor - 1) == 0
        check_value("image_tokenizer.downsampling", factor, power, must_be="a power of 2")
        for key, size in zip(("resolution", "width"), self.image_size, strict=True):
            check_value(
                f"image_tokenizer.{key}",
                size,
                size % factor == 0,
                must_be=f"a multiple of the downsampling factor {factor}",
            )

    def check_ready(self) -> None:
        """Name the publisher's file, if it is missing."""
        check_given(
            "image_tokenizer.weights",
            self.weights,
            f"set image_tokenizer.weights to your copy of {self.facts.file}",
            why=f"the publisher's file of the model {self.model!r}",
        )
        super().check_ready()

    def build(self) -> PublicTokenizer:
        """Return the tokenizer with its weights.

        Raises:
            CheckpointError: no file is given, or it can't be read, belongs to another model, or has
                another hash.
        """
        from cm3published.image_tokenizers.tokenizer import PublicTokenizer

        self.check()
        if self.weights is None:
            raise CheckpointError(
                "image_tokenizer.weights",
                f"is null: the model {self.model!r} needs its publisher's file",
                f"set image_tokenizer.weights to your copy of {self.facts.file}",
            )
        return PublicTokenizer.from_file(
            user_path(self.weights),
            self.facts,
            self.image_size,
            sha256=self.weights_sha256,
            others=self.published,
            second=self.second_file(),
        )

    def second_file(self) -> Path | None:
        """Return the decoder's file, if it has a separate one, after checking its hash."""
        return None

    def saved_in(self, folder: Path) -> Self | None:
        """With the weights in `folder`, whose hash is another."""
        return replace(self, weights=str(folder / SAVED), weights_sha256=None)

    def load(self, folder: Path) -> PublicTokenizer:
        """Load the tokenizer saved in a checkpoint's folder; `weights` and its hash are ignored."""
        from cm3published.image_tokenizers.tokenizer import PublicTokenizer

        self.check()
        return PublicTokenizer.from_file(folder / SAVED, self.facts, self.image_size)


@dataclass(kw_only=True)
class TamingConfig(PublicVQConfig):
    """Tokenizers of taming-transformers (Esser et al. 2021, arXiv:2012.09841).

    `gumbel_f8` at 256 px matches CM3leon's own: 1,024 of 8,192 codes per picture.
    """

    published: ClassVar[Mapping[str, Published]] = {
        "gumbel_f8": Published(8192, 8, 256, "gumbel", "vqgan_gumbel_f8, checkpoints/last.ckpt"),
        "coco_oi_f16": Published(8192, 16, 256, "l2", "coco_oi_epoch12.ckpt"),
        "imagenet_f16_1024": Published(
            1024, 16, 256, "l2", "vqgan_imagenet_f16_1024, checkpoints/last.ckpt"
        ),
        "imagenet_f16_16384": Published(
            16_384, 16, 256, "l2", "vqgan_imagenet_f16_16384, checkpoints/last.ckpt"
        ),
    }

    model: str = "gumbel_f8"


@dataclass(kw_only=True)
class LDMConfig(PublicVQConfig):
    """First stages with a codebook of latent diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

    published: ClassVar[Mapping[str, Published]] = {
        "vq_f8": Published(16_384, 8, 256, "l2", "vq-f8.zip, model.ckpt"),
        "vq_f8_n256": Published(256, 8, 256, "l2", "vq-f8-n256.zip, model.ckpt"),
        "vq_f16": Published(16_384, 16, 256, "l2", "vq-f16.zip, model.ckpt"),
    }

    model: str = "vq_f8"


@dataclass(kw_only=True)
class ChameleonVQConfig(PublicVQConfig):
    """Chameleon's tokenizer (arXiv:2405.09818), also used by Anole and Lumina-mGPT."""

    published: ClassVar[Mapping[str, Published]] = {
        "chameleon": Published(8192, 16, 512, "l2", "tokenizer/vqgan.ckpt"),
    }

    model: str = "chameleon"


@dataclass(kw_only=True)
class LlamaGenVQConfig(PublicVQConfig):
    """LlamaGen's tokenizers (Sun et al. 2024, arXiv:2406.06525); Janus' is its `vq_16`."""

    published: ClassVar[Mapping[str, Published]] = {
        "vq_8": Published(16_384, 8, 256, "l2_normalized", "vq_ds8_c2i.pt"),
        "vq_16": Published(16_384, 16, 256, "l2_normalized", "vq_ds16_c2i.pt or vq_ds16_t2i.pt"),
    }

    model: str = "vq_16"


@dataclass(kw_only=True)
class IBQConfig(PublicVQConfig):
    """Tokenizers with large codebooks (IBQ, Shi et al. 2024, arXiv:2412.02692), and Emu3.5's.

    Training files also hold moving averages of the weights; those are read, as in IBQ's own
    evaluation.
    """

    published: ClassVar[Mapping[str, Published]] = {
        "ibq_1024": Published(1024, 16, 256, "dot", "IBQ-Tokenizer-1024, imagenet256_1024.ckpt"),
        "ibq_8192": Published(8192, 16, 256, "dot", "IBQ-Tokenizer-8192, imagenet256_8192.ckpt"),
        "ibq_16384": Published(
            16_384, 16, 256, "dot", "IBQ-Tokenizer-16384, imagenet256_16384.ckpt"
        ),
        "ibq_262144": Published(
            262_144, 16, 256, "dot", "IBQ-Tokenizer-262144, imagenet256_262144.ckpt"
        ),
        "emu3_5": Published(131_072, 16, 512, "dot", "Emu3.5-VisionTokenizer, model.ckpt"),
    }

    model: str = "ibq_16384"


@dataclass(kw_only=True)
class MoVQConfig(PublicVQConfig):
    """MoVQGAN's tokenizers (Zheng et al. 2022, arXiv:2209.09002), also used by Kandinsky and Lumina-mGPT 2."""

    published: ClassVar[Mapping[str, Published]] = {
        f"movqgan_{size}": Published(16_384, 8, 256, "l2", f"movqgan_{size}.ckpt", "movq")
        for size in ("67M", "102M", "270M")
    } | {
        "kandinsky": Published(
            16_384, 8, 256, "l2", "movq, diffusion_pytorch_model.safetensors", "movq"
        )
    }

    model: str = "movqgan_270M"


@dataclass(kw_only=True)
class Emu3VQConfig(PublicVQConfig):
    """Emu3's video tokenizer (Wang et al. 2024, arXiv:2409.18869), for still pictures."""

    published: ClassVar[Mapping[str, Published]] = {
        "emu3": Published(32_768, 8, 512, "l2", "Emu3-VisionTokenizer, model.safetensors", "emu3"),
    }

    model: str = "emu3"


@dataclass(kw_only=True)
class DalleConfig(PublicVQConfig):
    """DALL-E's discrete VAE (Ramesh et al. 2021, arXiv:2102.12092): `weights` is its encoder.

    Its pictures are much worse than those of `taming`'s gumbel_f8, which has the same number of codes.

    Args:
        decoder_weights: path of the decoder's file.
        decoder_weights_sha256: expected SHA-256 of that file, if given.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "decoder_weights": Outside(
            READS, "the decoder's weights", needed="set it to your copy of decoder.pkl"
        ),
        "decoder_weights_sha256": TEXT,
    }

    published: ClassVar[Mapping[str, Published]] = {
        "dall_e": Published(8192, 8, 256, "gumbel", "encoder.pkl", "dvae"),
    }

    model: str = "dall_e"
    decoder_weights: str | None = None
    decoder_weights_sha256: str | None = None

    def saved_in(self, folder: Path) -> None:
        """None: both networks are saved in one file, and the keys name two."""
        return None

    def second_file(self) -> Path:
        """Return the decoder's file."""
        from cm3published.image_tokenizers.tokenizer import check_hash

        if self.decoder_weights is None:
            raise CheckpointError(
                "image_tokenizer.decoder_weights",
                "is null: the decoder of DALL-E's tokenizer has a separate file",
                "set image_tokenizer.decoder_weights to your copy of decoder.pkl",
            )
        path = user_path(self.decoder_weights)
        check_hash(path, self.decoder_weights_sha256, "decoder_weights_sha256")
        return path

    def check(self) -> None:
        """Check as in the base class, and that the network halves the sides three times."""
        super().check()
        factor = self.facts.downsampling
        check_value("image_tokenizer.downsampling", factor, factor == 8, must_be="8")
