"""What a score of generated pictures is read against: the same score of the real pictures, of these through
the image tokenizer, and of copies of the first document that was prepended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cm3apps.evaluation.made import Made
from cm3core.document import Codes, Document, Image, PixelArray
from cm3core.errors import DataError
from cm3core.images import fit
from cm3run.evaluation.features import Load
from cm3run.model import Model

REAL, RECONSTRUCTED, COPIED = "real", "reconstructed", "copied"
_BATCH = 64


def bounding_pictures(
    made: Made, size: int, model: Model | None
) -> Iterator[tuple[str, list[Load]]]:
    """Yield (name, a picture of each sample).

    Args:
        made: the samples, and what was made of them.
        size: side of the pictures, in pixels.
        model: None, where pictures were made elsewhere: only the real ones are yielded.

    Raises:
        DataError: a sample has no reference picture.
    """
    real: list[Load] = []
    for sample in made.task.samples:
        if sample.picture is None:
            raise DataError(
                f"sample {sample.key!r}",
                "has no real picture, which the metric compares with",
                "remove the metric from the protocol",
            )
        real.append(sample.picture)
    yield REAL, real
    if model is None:
        return
    kept: list[PixelArray] = []
    for start in range(0, len(real), _BATCH):
        pixels = [fit(load(), model.image_size) for load in real[start : start + _BATCH]]
        kept += model.decode(model.encode(pixels))
    yield RECONSTRUCTED, [partial(_scaled, pixels, size) for pixels in kept]
    if copied := _copied(made, size, model):
        yield COPIED, copied


def _copied(made: Made, size: int, model: Model) -> list[Load]:
    """The first document prepended to each sample, white where there was none; nothing where no sample
    had any."""
    names = [made.rows[index]["documents"][:1] for index in range(len(made.task.samples))]
    wanted = {name for one in names for name in one}
    if not wanted:
        return []
    memory = model.components.memory
    found = {memory.id(index): index for index in range(len(memory)) if memory.id(index) in wanted}
    white = np.full((size, size, 3), 255, np.uint8)
    loads: list[Load] = []
    for one in names:
        if one and one[0] in found:
            loads.append(partial(_of_document, memory.document(found[one[0]]), size, model))
        else:
            loads.append(white.copy)
    return loads


def _of_document(document: Document, size: int, model: Model) -> PixelArray:
    for segment in document:
        if isinstance(segment, Image):
            return fit(segment.load(), (size, size))
        if isinstance(segment, Codes):  # of a memory bank
            return _scaled(model.decode([segment])[0], size)
    return np.full((size, size, 3), 255, np.uint8)  # a document of texts


def _scaled(pixels: PixelArray, size: int) -> PixelArray:
    return fit(pixels, (size, size))
