"""Whether a picture has colour, and whether a text asks for some: see `generate.colour_words`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from PIL import Image

from cm3core.document import PixelArray
from cm3core.model.queries import has_a_phrase

#: A pixel has colour if its channels differ by more than this, and a picture if more than this share of its pixels
#: has: JPEG files of grey drawings have a tint here and there.
PIXEL_FROM, PICTURE_FROM = 20, 0.005
#: The same share of a picture that is known by its codes alone, which give grey drawings specks. Of 4,597 grey icons
#: 4% have more, of 403 coloured ones all; 13% of the grey ones have more than `PICTURE_FROM`.
DECODED_FROM = 0.03


def has_colour(pixels: PixelArray, share: float = PICTURE_FROM) -> bool:
    """Whether more than a share of a picture uint8 [height, width, 3] is not black, white or grey.

    >>> has_colour(np.full((8, 8, 3), 90, np.uint8)), has_colour(np.full((8, 8, 3), (90, 0, 0), np.uint8))
    (False, True)
    """
    differs = pixels.max(axis=2) - pixels.min(axis=2) > PIXEL_FROM
    return bool(differs.mean() > share)


def without_colour(pixels: PixelArray) -> PixelArray:
    """The luminance (ITU-R BT.601) of a picture uint8 [height, width, 3], in all three channels."""
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")).copy()


def asks_for_colour(texts: Iterable[str], colour_words: Collection[str]) -> bool:
    """Whether one of the texts has one of the words, or all words of one that is several.

    >>> asks_for_colour(["apple, in Colour"], ["colour"]), asks_for_colour(["discoloured"], ["colour"])
    (True, False)
    """
    return any(has_a_phrase(text, colour_words) for text in texts)
