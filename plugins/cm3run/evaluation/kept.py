"""What an image tokenizer's codes keep of pictures: how exactly they come back from the codes, and how many lose their
subject. `cm3 tune`, `cm3 start`, `cm3 memory build` and conditions warn or refuse by it.

Legend: N pictures, H W pixels, C 3 channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3core import images
from cm3core.document import Image, PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3run.evaluation.quality import (
    LEAST_PSNR,
    drawn_psnr_per_picture,
    reconstruction_picture,
)
from cm3run.nearness import nearness

#: Nearness (`cm3run.nearness`) of a picture and its reconstruction below which its subject is lost: less than half of
#: the drawing, or of its contours, is where it was.
LEAST_NEARNESS = 0.5
#: Share of pictures that lose their subject from which the codes don't suit the pictures.
MOST_LOST = 0.25


@dataclass(frozen=True, eq=False)
class Kept:
    """Pictures and what their codes keep of them.

    Args:
        pictures_NHWC: the pictures at the tokenizer's size, uint8.
        decoded_NHWC: their codes, decoded, uint8.
    """

    pictures_NHWC: PixelArray
    decoded_NHWC: PixelArray
    psnr_N: npt.NDArray[np.float64]
    nearness_N: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pictures_NHWC: PixelArray, decoded_NHWC: PixelArray) -> Kept:
        """Compare pictures with what their codes decode to.

        >>> page = np.full((2, 16, 16, 3), 255, np.uint8)
        >>> drawn, lost = page.copy(), page.copy()
        >>> drawn[:, 2:6, 2:6], lost[0, 2:6, 2:6] = 0, 0
        >>> kept = Kept.of(drawn, lost)
        >>> kept.num, kept.share_lost
        (2, 0.5)
        """
        near = [nearness(*pair) for pair in zip(pictures_NHWC, decoded_NHWC, strict=True)]
        psnr_N = drawn_psnr_per_picture(pictures_NHWC, decoded_NHWC)
        return cls(pictures_NHWC, decoded_NHWC, psnr_N, np.array(near))

    @property
    def drawn_N(self) -> npt.NDArray[np.bool_]:
        """Which pictures, or their reconstructions, are not blank: a blank one is kept whatever the codes are."""
        return ~np.isnan(self.psnr_N)

    @property
    def num(self) -> int:
        """Number of pictures that are not blank."""
        return int(self.drawn_N.sum())

    @property
    def psnr(self) -> float:
        """Median PSNR in dB over non-blank areas; a few perfect reconstructions would dominate a mean."""
        return float(np.median(self.psnr_N[self.drawn_N]))

    @property
    def share_lost(self) -> float:
        """Share of the non-blank pictures that lose their subject."""
        return float((self.nearness_N[self.drawn_N] < LEAST_NEARNESS).mean())

    @property
    def suits(self) -> bool:
        """Whether the codes show the pictures."""
        return self.psnr >= LEAST_PSNR and self.share_lost < MOST_LOST

    def in_words(self) -> str:
        """The figures in a sentence."""
        return (
            f"median PSNR {self.psnr:.1f} dB over non-blank areas of {self.num} pictures, and {100 * self.share_lost:.0f}% "
            "lose their subject"
        )

    def sheet(self, num_columns: int = 12) -> PixelArray:
        """Rows of pictures, each above its row of reconstructions."""
        return reconstruction_picture(self.pictures_NHWC, self.decoded_NHWC, num_columns)


def kept_by_codes(pictures: Iterable[Image], tokenizer: ImageTokenizer) -> Kept | None:
    """What a tokenizer's codes keep of some pictures; None: none can be read, or all are blank.

    Pictures that can't be read are left out.
    """
    whole, through = [], []
    for one in pictures:
        try:
            # one by one: saves memory, and gives the same result as generation
            codes = tokenizer.encode_image(one)
            whole.append(images.fit(one.load(), tokenizer.image_size))
        except DataError:
            continue  # reported when all documents are read
        through.append(tokenizer.decode(codes[None])[0])
    if not whole:
        return None
    found = Kept.of(np.stack(whole), np.stack(through))
    return found if found.num else None
