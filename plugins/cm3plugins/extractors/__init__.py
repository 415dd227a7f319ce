"""The bundled extractors: their configs. What they `build` is imported when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cm3core.errors import RecipeError
from cm3core.files import user_path
from cm3core.interfaces.embedder import EmbedderConfig
from cm3core.interfaces.extractor import Extractor, ExtractorConfig
from cm3core.interfaces.reach import READS, TEXT, Outside

_BATCH = {"batch_size": (1, 2**16)}


@dataclass(kw_only=True)
class InceptionConfig(ExtractorConfig):
    """The Inception network of 2015 that FID and KID are defined with, from a file that you have.

    `pt_inception-2015-12-05-6726825d.pth` (95,628,359 bytes), published with pytorch-fid at
    https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights. torch-fidelity and torchmetrics
    use the same file, as `weights-inception-2015-12-05-6726825d.pth`. Nothing is downloaded, and no
    code in the file is run.

    Args:
        path: the file.
        sha256: what its content must be; null: any file with the right tensors, whose hash the scores
            then state.
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
            CheckpointError: the file is missing, another one, or holds other tensors.
        """
        from cm3plugins.extractors.inception import InceptionExtractor

        self.check()
        return InceptionExtractor.load(
            user_path(self.path), self.sha256, resize=self.resize, batch_size=self.batch_size
        )


@dataclass(kw_only=True)
class EmbedderExtractorConfig(ExtractorConfig):
    """The vectors of an embedder, of pictures and of texts: CLIP for CLIP score and R-precision.

    Scores are named after it, "clip_score-clip". An embedder that the model retrieves or reranks with
    measures how well it was satisfied, not how good the pictures are; an evaluation refuses that.

    Args:
        embedder: the embedder, as in a recipe. It must be given.
    """

    embedder: EmbedderConfig | None = None

    def build(self) -> Extractor:
        """Build the embedder.

        Raises:
            RecipeError: none is given.
        """
        from cm3plugins.extractors.simple import EmbedderExtractor

        self.check()
        if self.embedder is None:
            raise RecipeError(
                "extractor.embedder", "is not given", "name one, such as clip with its path"
            )
        return EmbedderExtractor.of(self.embedder)


@dataclass(kw_only=True)
class PixelsConfig(ExtractorConfig):
    """Pixels of a small version of the picture, for tests and for comparisons without a network.

    Args:
        side: pixels a side of the small version, each the mean of those that it covers.
        blur: blur the small version, so that lines that are moved by a pixel still match; its scores
            are named "blurred" and the side.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"side": (1, 256)}
    side: int = 8
    blur: bool = False

    def build(self) -> Extractor:
        """Nothing is loaded."""
        from cm3plugins.extractors.simple import PixelsExtractor

        self.check()
        return PixelsExtractor(self.side, blur=self.blur)


EXTRACTORS: Mapping[str, type[ExtractorConfig]] = {
    "by_embedder": EmbedderExtractorConfig,
    "inception": InceptionConfig,
    "pixels": PixelsConfig,
}
