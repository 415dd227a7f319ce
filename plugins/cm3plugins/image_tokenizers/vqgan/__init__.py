"""Config of `vqgan`, the trainable VQGAN image tokenizer (shape, weights, training). No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.document import PixelArray
from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_device
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.picture_form import PictureForm
from cm3plugins.image_tokenizers import NEEDED
from cm3plugins.image_tokenizers.vqgan.settings import (
    SAVED,
    TRAINING_RANGES,
    VQGANArchitecture,
    VQGANTraining,
)
from cm3plugins.trained.bundled import BUNDLED, is_bundled

if TYPE_CHECKING:
    from cm3plugins.image_tokenizers.vqgan.tokenizer import VQGANTokenizer


@dataclass(kw_only=True)
class VQGANConfig(VQGANArchitecture, ImageTokenizerConfig):
    """Convolutional encoder, nearest codebook entry, convolutional decoder (VQGAN).

    Like Make-A-Scene's VQ-IMG. Has the keys of `VQGANArchitecture`, and:

    Args:
        weights: "bundled:emoji64", the path of a file written by training, or None if there is none yet.
            The file's architecture must match the one given here; `resolution` may differ if
            `attn_resolutions` is empty. A checkpoint holds a copy of weights that are not bundled,
            and reads that.
        weights_sha256: expected SHA-256 of the file, if given.
        train_minutes: with `weights: null`, `cm3 train` first trains the tokenizer this long on the recipe's pictures;
            null: it asks for weights.
        training: see `VQGANTraining`.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "weights": Outside(READS, "its weights", shipped="bundled:", needed=NEEDED),
        "weights_sha256": TEXT,
        "training.perceptual_source": Outside(
            READS, "the weights of the perceptual loss", shipped="package"
        ),
        "training.device": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        f"training.{key}": limits for key, limits in TRAINING_RANGES.items()
    } | {"chroma_weight": (1e-3, 1e3), "train_minutes": (1e-3, 1e7)}
    later_keys: ClassVar[tuple[str, ...]] = ("train_minutes", "depth")
    not_in_outputs: ClassVar[tuple[str, ...]] = ("train_minutes",)

    weights: str | None = BUNDLED + "emoji64"
    weights_sha256: str | None = None
    train_minutes: float | None = None
    training: VQGANTraining = field(default_factory=VQGANTraining)

    @property
    def form(self) -> PictureForm:
        """A grid of places, each with `depth` codes."""
        return self.architecture.form

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, codes of a row), read more often than `form`."""
        side = self.resolution // self.downsampling
        return side, side * self.depth

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.resolution

    @property
    def architecture(self) -> VQGANArchitecture:
        """The network's architecture alone."""
        values: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in fields(VQGANArchitecture)
        }
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return VQGANArchitecture(**values)

    def check_ready(self) -> None:
        """Weights may be missing if `cm3 train` trains them first."""
        if self.weights is not None or self.train_minutes is None:
            super().check_ready()

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        check_device("image_tokenizer.training.device", self.training.device)
        if not self.ch_mult:
            raise RecipeError(
                "image_tokenizer.ch_mult",
                f"is {list(self.ch_mult)}, must be positive numbers, one for each level",
                "taming's f8 model uses [1, 1, 2, 4]",
            )
        if self.resolution % self.downsampling:
            raise RecipeError(
                "image_tokenizer.resolution",
                f"is {self.resolution}, not a multiple of the downsampling factor "
                f"{self.downsampling}",
                "change it, ch_mult or patch_size",
            )
        square = 3 * self.downsampling**2
        if self.encoder == "squares" and self.embed_dim != square:
            raise RecipeError(
                "image_tokenizer.embed_dim",
                f"is {self.embed_dim}, but a square of {self.downsampling} pixels has {square} values",
                f"set it to {square}",
            )
        if self.depth > 1 and self.encoder != "squares":
            raise RecipeError(
                "image_tokenizer.depth",
                f"is {self.depth}, but the encoder {self.encoder!r} has one code a place",
                "set image_tokenizer.encoder=squares, or depth to 1",
            )
        if self.codebook_size % self.depth:
            raise RecipeError(
                "image_tokenizer.codebook_size",
                f"is {self.codebook_size}, not a multiple of depth {self.depth}",
                f"each code of a place has an equal part of it: use {self.depth * -(-self.codebook_size // self.depth)}",
            )
        for width in {self.ch * mult for mult in (1, *self.ch_mult)}:
            if width % min(self.norm_groups, width):
                raise RecipeError(
                    "image_tokenizer.norm_groups",
                    f"{self.norm_groups} groups don't divide {width} channels",
                    "choose a divisor of ch",
                )

    def build(self) -> VQGANTokenizer:
        """Return the tokenizer with its weights.

        Raises:
            CheckpointError: there are no weights, they can't be read, or their architecture or hash is
                another.
        """
        from cm3plugins.image_tokenizers.vqgan.tokenizer import VQGANTokenizer, weights_file

        self.check()
        return VQGANTokenizer.from_file(
            weights_file(self.weights),
            self.architecture,
            sha256=self.weights_sha256,
            bundled=is_bundled(self.weights),
        )

    def saved_in(self, folder: Path) -> VQGANConfig:
        """With the weights in `folder`, whose hash is another: a checkpoint may hold them in half precision."""
        return replace(self, weights=str(folder / SAVED), weights_sha256=None)

    def train(self, images_NHWC: PixelArray, out_dir: str | Path, **options: Any) -> Path:
        """Train from scratch.

        The options are those of `cm3plugins.trained.training_run.RunOptions`.
        """
        from cm3plugins.image_tokenizers.vqgan.training import train_image_tokenizer
        from cm3plugins.trained.training_run import RunOptions

        self.check()
        return train_image_tokenizer(
            self.architecture, self.training, images_NHWC, out_dir, RunOptions(**options)
        )
