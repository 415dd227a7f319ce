"""Configs of the bundled extractors. `build` imports the implementations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cm3core.errors import RecipeError
from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.extractor import Extractor, ExtractorConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.extractors.lite1 import Lite1Config

_BATCH = {"batch_size": (1, 2**16)}


@dataclass(kw_only=True)
class InceptionConfig(ExtractorConfig):
    """The Inception network of 2015 that defines FID and KID, from a local file.

    `pt_inception-2015-12-05-6726825d.pth` (95,628,359 bytes), published with pytorch-fid at
    https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights. torch-fidelity and torchmetrics
    use the same file, as `weights-inception-2015-12-05-6726825d.pth`. Nothing is downloaded, and no
    code in the file is run.

    Args:
        path: file of weights.
        sha256: expected SHA-256 of the file; null: accept any file with the right tensors, and state its hash
            in the scores.
        resize: how pictures are scaled to 299 x 299 pixels. "torch": bilinear without antialiasing, as
            pytorch-fid does (scores "fid-pytorch"); "clean": Pillow's bicubic with antialiasing on
            floats, as clean-fid does (scores "fid-clean"). The two give different numbers.
        batch_size: pictures per forward pass.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights"),
        "sha256": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = _BATCH
    path: str
    sha256: str | None = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    resize: Literal["torch", "clean"] = "torch"
    batch_size: int = 32

    def build(self) -> Extractor:
        """Load the weights.

        Raises:
            CheckpointError: the file is missing, has another SHA-256, or holds other tensors.
        """
        from cm3plugins.extractors.inception import InceptionExtractor

        self.check()
        return InceptionExtractor.load(
            user_path(self.path), self.sha256, resize=self.resize, batch_size=self.batch_size
        )


@dataclass(kw_only=True)
class EmbedderExtractorConfig(ExtractorConfig):
    """An embedder's vectors of pictures and texts: with CLIP, for CLIP score and R-precision.

    Scores are named after it, "clip_score-clip". An embedder that the model uses to retrieve or rerank would
    measure its own choices, not the quality of the pictures; evaluations reject it.

    Args:
        embedder: the embedder, as in a recipe; required.
    """

    embedder: EmbedderConfig | None = None

    def build(self) -> Extractor:
        """Build the embedder.

        Raises:
            RecipeError: no embedder is given.
        """
        from cm3plugins.extractors.simple import EmbedderExtractor

        self.check()
        if self.embedder is None:
            raise RecipeError(
                "extractor.embedder", "is not set", "name one, such as clip with its path"
            )
        return EmbedderExtractor.of(self.embedder)


@dataclass(kw_only=True)
class PixelsConfig(ExtractorConfig):
    """Pixels of the picture scaled down, for tests and for comparisons without a network.

    Args:
        side: side of the scaled picture in pixels; each pixel is the mean of those that it covers.
        blur: blur the scaled picture, so that lines moved by a pixel still match; names of scores then
            contain "blurred" and the side.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"side": (1, 256)}
    side: int = 8
    blur: bool = False

    def build(self) -> Extractor:
        """Return the extractor. Nothing is loaded."""
        from cm3plugins.extractors.simple import PixelsExtractor

        self.check()
        return PixelsExtractor(self.side, blur=self.blur)


EXTRACTORS: Mapping[str, type[ExtractorConfig]] = {
    "by_embedder": EmbedderExtractorConfig,
    "inception": InceptionConfig,
    "lite1": Lite1Config,
    "pixels": PixelsConfig,
}
