"""The document in front that a result is nearest to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cm3core.document import Codes
from cm3run.attribution import Credit
from cm3run.model.results import GeneratedImage, InfilledImage, RetrievedDocument
from cm3run.nearness import NEARLY_A_COPY


def square(top: int, left: int, side: int, size: int = 32) -> np.ndarray:
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[top : top + side, left : left + side] = 0
    return pixels


def bar(size: int = 32) -> np.ndarray:
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[14:17, 2:30] = 0
    return pixels


def document(name: str, pixels: np.ndarray | None) -> RetrievedDocument:
    return RetrievedDocument(name, 0.5, name, pixels)


CODES = Codes(np.zeros(1, np.int32), (1, 1))


def test_the_nearest_document_wherever_it_is_drawn() -> None:
    made = GeneratedImage(
        square(3, 3, 16),
        "square",
        1,
        (document("text", None), document("bar", bar()), document("set/square", square(9, 10, 20))),
        CODES,
        0.0,
    )
    assert made.nearest is not None
    assert made.nearest.document.id == "set/square"
    assert made.nearest.nearness > 0.9
    assert made.nearest.is_copy
    far = replace(made, retrieved=made.retrieved[:2])
    assert far.nearest is not None
    assert (far.nearest.document.id, far.nearest.is_copy) == ("bar", False)
    assert far.nearest.nearness < NEARLY_A_COPY


def test_nothing_is_nearest_where_no_document_has_a_picture() -> None:
    made = GeneratedImage(bar(), "", 1, (), CODES, 0.0)
    assert (made.nearest, made.credits) == (None, ())
    text = replace(made, retrieved=(document("text", None),))
    assert (text.nearest, text.credits) == (None, (Credit("text"),))


def test_of_equally_near_documents_the_first() -> None:
    same = (document("a", bar()), document("b", bar()))
    found = GeneratedImage(bar(), "", 1, same, CODES, 0.0).nearest
    assert found is not None
    assert found.told == "nearly a copy of a (licence unknown)"
    assert (found.document.id, found.nearness) == ("a", 1.0)


def test_of_an_inpainted_picture_the_box_counts() -> None:
    """What is around it is not the model's."""
    whole = np.full((64, 64, 3), 255, np.uint8)
    whole[:, 32:] = np.hstack([bar()] * 1).repeat(2, axis=0)
    whole[:32, :32] = square(6, 6, 20)
    made = InfilledImage(
        whole, whole, CODES, (0, 0, 32, 32), "", 1, (document("s", square(8, 8, 16)),), 0.0
    )
    assert made.nearest is not None
    assert made.nearest.is_copy
    assert not replace(made, box=(0, 0, 64, 64)).nearest.is_copy
