"""`svg`: an image tokenizer whose codes are the commands of an SVG drawing. Here is its config, and the form of its
codes: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
from cm3core.picture_form import PictureForm
from cm3icons.svg_codes.alphabet import alphabet
from cm3icons.svg_codes.pen import pen_positions

if TYPE_CHECKING:
    from cm3icons.svg_codes.tokenizer import SvgTokenizer


@dataclass(kw_only=True)
class SvgConfig(ImageTokenizerConfig):
    """Drawings as the commands of their SVG documents: moves, lines, curves, arcs, shapes, and how they are painted.

    Numbers are multiples of a quarter on a canvas of 24 x 24 units, on which most icons are drawn. Pictures have
    different lengths, and rules forbid everything that is no drawing. Paint is black or grey, with opacity: coloured
    drawings, gradients, masks and transforms are refused. Pictures of a data set without SVG documents are traced: areas
    darker than middle grey become filled polygons. Nothing is trained.

    Args:
        resolution: pixels per side of the rendered picture.
        most_codes: maximum number of codes of a drawing, the end included. Longer ones are refused, and left out in
            training (`cm3 tokenizer eval icons-svg` counts them).
    """

    has_codebook: ClassVar[bool] = False
    reads_drawings: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "most_codes": (16, 2**16),
    }

    resolution: int = 64
    most_codes: int = 256

    @property
    def codebook_size(self) -> int:
        """Number of codes of commands, numbers and paints."""
        return alphabet().size

    @property
    def form(self) -> PictureForm:
        """A sequence of elements."""
        return form_of(self.most_codes)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.resolution

    def build(self) -> SvgTokenizer:
        """The tokenizer: the config says all of it."""
        from cm3icons.svg_codes.tokenizer import SvgTokenizer

        self.check()
        return SvgTokenizer(self.resolution, self.form)


@lru_cache(maxsize=16)
def form_of(most_codes: int) -> PictureForm:
    """The form of drawings of at most so many codes."""
    table = alphabet()
    return PictureForm.sequence(
        most_codes, table.end, table.size, table.rules, positions=pen_positions()
    )
