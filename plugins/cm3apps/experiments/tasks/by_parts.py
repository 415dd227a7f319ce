"""What a rule answers from the texts that are retrieved for the parts of a picture: how much of what is in front
a model could use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cm3core.boxes import MAX_COORDINATE, boxes_in

Box = tuple[int, int, int, int]

_NUMBERS = ("none", "one", "two", "three", "four")


def box_of(phrase: str, texts: Sequence[str]) -> Box | None:
    """Where a thing is, by the first text that names it.

    >>> box_of("bell", ["key at (0, 0) -> (9, 9)", "filled bell, lucide at (1, 2) -> (3, 4)"])
    (1, 2, 3, 4)
    """
    for label, box in _found(texts):
        if _names(label, phrase):
            return box
    return None


def answer(question: str, texts: Sequence[str]) -> str:
    """How many, which is where, whether it is there; "" for all other questions and without a text of a part.

    >>> front = ["key at (0, 0) -> (99, 99)", "bell at (130, 4) -> (230, 90)"]
    >>> [answer(one, front) for one in ("How many things are there?", "Where is the bell?", "Is there a lock?")]
    ['two', 'upper right', 'no']
    """
    found = _found(texts)
    if not found:
        return ""
    if question.startswith("How many"):
        return _NUMBERS[len(found)] if len(found) < len(_NUMBERS) else ""
    if asked := re.fullmatch(r"Is there a (.+)\?", question):
        return "yes" if any(_names(label, asked[1]) for label, _ in found) else "no"
    if asked := re.fullmatch(r"Where is the (.+)\?", question):
        for label, (x0, y0, x1, y1) in found:
            if _names(label, asked[1]):
                across = "left" if x0 + x1 < MAX_COORDINATE else "right"
                return f"{'upper' if y0 + y1 < MAX_COORDINATE else 'lower'} {across}"
    return ""


def _found(texts: Sequence[str]) -> list[tuple[str, Box]]:
    """The texts of parts, as (text, box)."""
    found: list[tuple[str, Box]] = []
    for text in texts:
        if parts := boxes_in(text)[-1:]:
            found.append((text[: text.rindex(" at (")], parts[0][1]))
    return found


def _names(label: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", label) is not None
