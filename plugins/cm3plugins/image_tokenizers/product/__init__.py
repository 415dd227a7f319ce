"""`product`: a grid of squares, each part of a square an exact code of its own, and the colours of the square one more:
its config. Light: no pictures here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import RecipeError
from cm3core.picture_form import CodeRules, GridPositions, PictureForm
from cm3plugins.image_tokenizers.by_arrays import Arrays, PatchArraysConfig, Rounds, Shapes

if TYPE_CHECKING:
    from cm3plugins.image_tokenizers.product.tokenizer import ProductTokenizer

#: Weights that come with the package.
BUNDLED = {"icons64-ink": Path(__file__).parent / "assets" / "icons64-ink.safetensors"}


@dataclass(kw_only=True)
class ProductTokenizerConfig(PatchArraysConfig):
    """A grid of squares with a code for each of their parts, and one for their colours.

    A square of `patch_size` pixels has parts * parts parts. The code of a part is its brightness, pixel by pixel: the
    most frequent parts of the training pictures exactly, the others by k-means (product quantisation: Jegou et al.
    2011). The last code of a square is its tint, which depends on the brightness of a pixel linearly, so that one code
    says "red on white"; code 0 is grey. Grey pictures are always decoded to grey ones, and blank squares to blank ones.
    Has the keys of `PatchArraysConfig`, and:

    Args:
        parts: parts of a square along each side.
        part_codes: codes of a part; each part of a square has so many of its own.
        colours: tints that are learnt, grey included. They are in the weights even if `colour` is off.
        colour: whether squares have a colour code. False: all pictures are grey, and have one code less per square.

    Limits: parts are encoded alone; a square has one tint for each brightness.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "patch_size": (1, 2**10),
        "parts": (1, 64),
        "part_codes": (2, 2**16),
        "colours": (1, 2**12),
        "seed": (0, 2**63 - 1),
    }
    label: ClassVar[str] = "product"
    bundled: ClassVar[Mapping[str, Path]] = BUNDLED

    resolution: int = 64
    patch_size: int = 8
    parts: int = 2
    part_codes: int = 1280
    colours: int = 128
    colour: bool = True

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        if self.patch_size % self.parts:
            raise RecipeError(
                "image_tokenizer.parts",
                f"is {self.parts}, and a square has {self.patch_size} pixels a side",
                f"use a divisor of {self.patch_size}, or another patch_size",
            )

    @property
    def codes_per_place(self) -> int:
        """Those of the parts, and the colour."""
        return self.parts**2 + self.colour

    @property
    def codebook_size(self) -> int:
        """The codes of all parts, then the colours."""
        return self.parts**2 * self.part_codes + self.colour * self.colours

    @property
    def form(self) -> PictureForm:
        """The parts of a square in raster order, then its colour."""
        sizes = [self.part_codes] * self.parts**2 + [self.colours] * self.colour
        positions = GridPositions(*self.places, len(sizes))
        rules = CodeRules.by_slot(sizes)
        return PictureForm.of_grid(*self.places, len(sizes), rules, positions=positions)

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {
            "patch_size": self.patch_size,
            "parts": self.parts,
            "part_codes": self.part_codes,
            "colours": self.colours,
        }

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        side = self.patch_size // self.parts
        return {
            "parts": ("uint8", (self.part_codes, side * side)),
            "tints": ("int16", (self.colours, 4)),
        }

    def of_arrays(self, arrays: Arrays) -> ProductTokenizer:
        """See the base."""
        from cm3plugins.image_tokenizers.product.tokenizer import ProductTokenizer

        return ProductTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """The parts of grey pictures (of all, if none is grey), then the tints of the coloured ones.

        Raises:
            DataError: there are fewer different parts than codes.
        """
        from cm3plugins.image_tokenizers.product.training import learnt

        return learnt(self, images_NHWC, rounds)
