"""Contents of the holes of filled documents, and what is no filling."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import CM3Error
from engine_parts import APPLE, GRID, HOLED, PEAR, SERIALIZER, VOCABULARY
from messages import tells


def text(letters: str) -> np.ndarray:
    return SERIALIZER.text_tokens(letters)


def codes(picture: Codes) -> np.ndarray:
    return picture.codes + np.int32(VOCABULARY.image.start)


@pytest.mark.parametrize(
    ("document", "filled", "contents"),
    [
        ((Text("a"), ImageHole()), (Text("a"), PEAR), [codes(PEAR)]),
        ((TextHole(4), APPLE), (Text("abc"), APPLE), [text("abc")]),
        ((TextHole(2), APPLE), (Text("abc"), APPLE), [text("ab")]),
        ((TextHole(9, stop=("bc", "h")), APPLE), (Text("abcab"), APPLE), [text("abc")]),
        (
            (MaskedText(("a ", TextHole(2), " b", TextHole(3))), PEAR),
            (Text("a dg bcc"), PEAR),
            [text("dg"), text("cc")],
        ),
        # none empty
        (
            (MaskedText(("a", TextHole(2), "a", TextHole(3))), PEAR),
            (Text("aabac"), PEAR),
            [text("ab"), text("c")],
        ),
        (
            (HOLED, TextHole(3)),
            (Codes(np.array([0, 8, 9, 3, 11, 5], np.int32), GRID), Text("j")),
            [
                np.array([8, 9]) + VOCABULARY.image.start,
                np.array([11]) + VOCABULARY.image.start,
                text("j"),
            ],
        ),
    ],
)
def test_contents_of_filled_documents(document, filled, contents):
    found = SERIALIZER.contents_of(document, filled)
    assert [one.tolist() for one in found] == [one.tolist() for one in contents]
    if all(
        not isinstance(one, TextHole) or (not one.stop and one.max_tokens > 2) for one in document
    ):
        assert SERIALIZER.fill(document, found) == filled


NO_FILLING = "does not fill the document's {}\n  next: give the same document with its holes filled"


@pytest.mark.parametrize(
    ("document", "filled", "message"),
    [
        (
            (Text("a"), ImageHole()),
            (Text("a"),),
            "filled document: has 1 segments ... has 2",
        ),
        (
            (Text("a"), ImageHole()),
            (Text("b"), PEAR),
            "filled document, segment 0: " + NO_FILLING.format("Text"),
        ),
        ((TextHole(3),), (PEAR,), "filled document, segment 0: " + NO_FILLING.format("TextHole")),
        (
            (MaskedText(("a", TextHole(3))), PEAR),
            (Text("bc"), PEAR),
            "filled document, segment 0: " + NO_FILLING.format("MaskedText"),
        ),
        ((HOLED,), (PEAR,), "filled document, segment 0: " + NO_FILLING.format("Codes")),
        (
            (ImageHole(),),
            (Codes(np.zeros(4, np.int32), (2, 2)),),
            "filled document, segment 0: codes [4] of a 2 x 2 ... are 2",
        ),
    ],
)
def test_what_is_no_filling_is_refused(document, filled, message):
    with pytest.raises(CM3Error) as error:
        SERIALIZER.contents_of(document, filled)
    assert tells(error.value, message)
