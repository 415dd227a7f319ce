"""Codes of pictures that documents show: from their SVG document where the image tokenizer reads them, otherwise from
their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cm3core import images
from cm3core.document import Image, IntArray
from cm3core.errors import DataError

if TYPE_CHECKING:
    from cm3core.interfaces.image_tokenizer import ImageTokenizer

#: Pictures held in memory and encoded together.
ENCODED_AT_ONCE = 32


def codes_of(picture: Image, tokenizer: ImageTokenizer) -> IntArray:
    """Codes int32 [c] of one picture. By itself: in a batch, the last bits depend on the size of the batch.

    Raises:
        DataError: it can't be read, or its drawing can't be written in codes.
    """
    if tokenizer.reads_drawings and picture.drawing is not None:
        return tokenizer.encode_drawing(picture.drawing())
    codes_1c = tokenizer.encode(images.fit(picture.load(), tokenizer.image_size)[None])
    codes_c: IntArray = codes_1c[0]
    return codes_c


def encoded_pictures(
    pictures: Sequence[Image], tokenizer: ImageTokenizer
) -> Iterator[tuple[Image, IntArray | DataError]]:
    """Yield each picture with its codes int32 [c], or the error if it can't be read."""
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        chunk = pictures[start : start + ENCODED_AT_ONCE]
        results: list[IntArray | DataError | None] = []
        pixels = []
        for picture in chunk:
            try:
                if tokenizer.reads_drawings and picture.drawing is not None:
                    results.append(codes_of(picture, tokenizer))
                    continue
                pixels.append(images.fit(picture.load(), tokenizer.image_size))
                results.append(None)
            except DataError as error:
                results.append(error)
        rows = iter(tokenizer.encode(np.stack(pixels)) if pixels else ())
        for picture, result in zip(chunk, results, strict=True):
            yield picture, next(rows) if result is None else result
