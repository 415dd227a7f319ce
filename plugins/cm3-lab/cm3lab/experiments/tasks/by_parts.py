"""What a rule answers from the texts that are retrieved for the parts of a picture: how much of what is in front
a model could use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cm3core.boxes import quarter_of
from cm3run.prepending import part_in

Box = tuple[int, int, int, int]

_NUMBERS = ("none", "one", "two", "three", "four")


def box_of(phrase: str, texts: Sequence[str]) -> Box | None:
    """Where a thing is, by the first text that names it.

    >>> box_of("bell", ["at (0, 0) -> (9, 9), upper left: key", "at (1, 2) -> (3, 4), upper left: filled bell"])
    (1, 2, 3, 4)
    """
    for box, label in filter(None, map(part_in, texts)):
        if _names(label, phrase):
            return box
    return None


def answer(question: str, texts: Sequence[str]) -> str:
    """How many, which is where, whether it is there; "" for all other questions and without a text of a part.

    >>> front = ["at (0, 0) -> (99, 99), upper left: key", "at (130, 4) -> (230, 90), upper right: bell"]
    >>> [answer(one, front) for one in ("How many things are there?", "Where is the bell?", "Is there a lock?")]
    ['two', 'upper right', 'no']
    """
    found = list(filter(None, map(part_in, texts)))
    if not found:
        return ""
    if question.startswith("How many"):
        return _NUMBERS[len(found)] if len(found) < len(_NUMBERS) else ""
    if asked := re.fullmatch(r"Is there a (.+)\?", question):
        return "yes" if any(_names(label, asked[1]) for _, label in found) else "no"
    if asked := re.fullmatch(r"Where is the (.+)\?", question):
        for box, label in found:
            if _names(label, asked[1]):
                return quarter_of(box)
    return ""


def _names(label: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", label) is not None
