"""Turn pictures into places: a place is a code and its surroundings. Equal places are merged and counted.

Legend: P pictures, c codes of one, M places, K = len(AROUND).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core import images
from cm3core.document import Codes, Image
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.progress import make_bar

#: Offsets (rows, columns) of the surroundings: three above, one on the left.
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
#: Pictures encoded together, and the number of places after which equal ones are merged.
_PICTURES, _MERGED = 32, 1 << 20

PlaceArray = npt.NDArray[np.int32]
CountArray = npt.NDArray[np.int64]


def places_of(
    memory: DocumentSource, tokenizer: ImageTokenizer, max_places: int
) -> tuple[PlaceArray, CountArray]:
    """The distinct places of a memory's pictures, int32 [M, K + 1], sorted, with the code last, and
    the number of times each occurs, int64 [M].

    Args:
        memory: documents with pictures, or codes of `tokenizer`; unreadable ones are skipped.
        tokenizer: encodes pictures.
        max_places: maximum number to read; of a larger memory, every n-th document is read.

    Raises:
        DataError: no place has surroundings.
    """
    rows, columns = tokenizer.grid
    inside = max(0, rows - 1) * max(0, columns - 2)
    num_documents = min(len(memory), max(1, max_places // max(1, inside)))
    chosen = np.linspace(0, len(memory), num_documents, endpoint=False).astype(np.int64)
    merged: list[tuple[PlaceArray, CountArray]] = []
    waiting: list[PlaceArray] = []
    num_read = num_waiting = 0
    for codes_Pc in _pictures(memory, chosen, tokenizer):
        places_mK = _inside(codes_Pc.reshape(-1, rows, columns))[: max_places - num_read]
        waiting.append(places_mK)
        num_read += len(places_mK)
        num_waiting += len(places_mK)
        if num_waiting >= _MERGED:
            merged, waiting, num_waiting = [_merge(merged, waiting)], [], 0
        if num_read >= max_places:
            break
    if not num_read:
        raise DataError(
            _name(memory),
            f"has no picture to search in ({len(memory)} documents, {rows} x {columns} codes a "
            "picture; a place needs a row above and columns on both sides)",
            "use a bank with pictures: cm3 memory build",
        )
    return _merge(merged, waiting)


def _pictures(
    memory: DocumentSource, chosen: npt.NDArray[np.int64], tokenizer: ImageTokenizer
) -> Iterator[npt.NDArray[np.int32]]:
    """Codes [P, c] of the pictures of the chosen documents, a few at a time."""
    codes: list[Any] = []
    pixels: list[Any] = []
    for index in make_bar(chosen.tolist(), desc="patch_knn: reading", unit="document"):
        try:
            for segment in memory.document(index):
                if isinstance(segment, Codes):
                    if segment.missing is None and segment.grid == tokenizer.grid:
                        codes.append(segment.codes)
                elif isinstance(segment, Image):
                    pixels.append(images.fit(segment.load(), tokenizer.image_size))
        except DataError:
            continue  # unreadable; `cm3 data validate` reports it
        if len(codes) >= 8 * _PICTURES:
            yield np.stack(codes).astype(np.int32)
            codes = []
        while len(pixels) >= _PICTURES:
            yield tokenizer.encode(np.stack(pixels[:_PICTURES]))
            pixels = pixels[_PICTURES:]
    if codes:
        yield np.stack(codes).astype(np.int32)
    if pixels:
        yield tokenizer.encode(np.stack(pixels))


def _inside(codes_Pyx: npt.NDArray[np.int32]) -> PlaceArray:
    """The places whose surroundings lie within the picture, int32 [M, K + 1]."""
    rows, columns = codes_Pyx.shape[1:]
    if rows < 2 or columns < 3:
        return np.zeros((0, len(AROUND) + 1), np.int32)
    shifted = [
        codes_Pyx[:, 1 + down : rows + down, 1 + right : columns - 1 + right]
        for down, right in (*AROUND, (0, 0))
    ]
    return np.stack(shifted, axis=-1).reshape(-1, len(AROUND) + 1)


def _merge(
    merged: list[tuple[PlaceArray, CountArray]], waiting: list[PlaceArray]
) -> tuple[PlaceArray, CountArray]:
    """Merge equal places and add up their counts."""
    places = np.concatenate([*(one for one, _ in merged), *waiting])
    counts = np.concatenate(
        [*(count for _, count in merged), *(np.ones(len(one), np.int64) for one in waiting)]
    )
    order = np.lexsort(places.T[::-1])
    places, counts = places[order], counts[order]
    starts = np.flatnonzero(np.append(True, (places[1:] != places[:-1]).any(axis=1)))
    return places[starts], np.add.reduceat(counts, starts)


def _name(memory: DocumentSource) -> str:
    return str(getattr(memory, "folder", "the memory of sampler patch_knn"))
