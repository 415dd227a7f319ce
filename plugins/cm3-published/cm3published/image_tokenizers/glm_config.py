"""Config of `glm_image`, the image tokenizer of GLM-Image's first stage. Light: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import CheckpointError
from cm3core.files import user_path
from cm3core.interfaces.component import check_value
from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.picture_form import PictureForm
from cm3published.glm_grids import DOWNSAMPLING, grids_of
from cm3published.image_tokenizers import SAVED

if TYPE_CHECKING:
    from cm3published.image_tokenizers.glm_image import GlmImageTokenizer


@dataclass(kw_only=True)
class GlmImageVQConfig(ImageTokenizerConfig):
    """The image tokenizer of GLM-Image's first stage: a vision transformer and a codebook, 32 pixels a code.

    A picture is a preview of some 256 codes, then the picture itself (`cm3published.glm_grids`). **Its codes can't be
    decoded here**: GLM-Image draws them with a diffusion model of 7B parameters. `decode` shows the codes of the picture as
    squares, in colours in which similar codes are alike.

    Args:
        weights: path of the file, written by `cm3 convert`; nothing in it is executed. A checkpoint holds a copy, and
            reads that.
        weights_sha256: expected SHA-256 of the file, if given.
        resolution: height of pictures in pixels, a multiple of 32.
        width: width of pictures in pixels. None: the height.
        num_codes: size of the codebook.
        num_heads: heads of the vision transformer, which its weights don't tell.
        norm_eps: added to the variance by its normalisations.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "weights": Outside(READS, "its weights", needed="convert GLM-Image (cm3 convert)"),
        "weights_sha256": TEXT,
    }
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (DOWNSAMPLING, 2**14),
        "width": (DOWNSAMPLING, 2**14),
        "num_codes": (1, 2**24),
        "num_heads": (1, 2**16),
        "norm_eps": (1e-12, 1),
    }

    weights: str | None = None
    weights_sha256: str | None = None
    resolution: int = 1024
    width: int | None = None
    num_codes: int = 16_384
    num_heads: int = 16
    norm_eps: float = 1e-6

    @property
    def codebook_size(self) -> int:
        """`num_codes`."""
        return self.num_codes

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.width or self.resolution

    @property
    def form(self) -> PictureForm:
        """One row of all codes."""
        return PictureForm.of_grid(1, sum(rows * columns for rows, columns in self.grids))

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of the preview and of the picture."""
        return grids_of(*self.image_size)

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        for key, size in zip(("resolution", "width"), self.image_size, strict=True):
            fits = size % DOWNSAMPLING == 0
            check_value(
                f"image_tokenizer.{key}", size, fits, must_be=f"a multiple of {DOWNSAMPLING}"
            )
        height, width = self.image_size
        ratio = max(height, width) / min(height, width)
        check_value(
            "image_tokenizer.width",
            width,
            ratio <= 16,
            must_be="at most 16 times the height, and at least a 16th",
        )

    def build(self) -> GlmImageTokenizer:
        """Return the tokenizer with its weights.

        Raises:
            CheckpointError: no file is given, or it can't be read, belongs to another model, or has
                another hash.
        """
        from cm3published.image_tokenizers.tokenizer import check_hash

        if self.weights is None:
            raise CheckpointError(
                "image_tokenizer.weights",
                "is null: GLM-Image's tokenizer needs its publisher's weights",
                "convert GLM-Image (cm3 convert)",
            )
        path = user_path(self.weights)
        check_hash(path, self.weights_sha256, "weights_sha256")
        return self._from_file(path)

    def saved_in(self, folder: Path) -> GlmImageVQConfig:
        """With the weights in `folder`, whose hash is another."""
        return replace(self, weights=str(folder / SAVED), weights_sha256=None)

    def _from_file(self, path: Path) -> GlmImageTokenizer:
        from cm3published.image_tokenizers.glm_image import GlmImageTokenizer, read_network

        self.check()
        return GlmImageTokenizer(read_network(path, self), self)
