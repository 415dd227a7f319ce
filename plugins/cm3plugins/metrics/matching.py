"""How many texts are one of their references, but for letter case, articles, and punctuation at the ends."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score

_ARTICLES = frozenset(("a", "an", "the"))


class ExactMatchMetric(ValueMetric):
    """100 for a text that matches a reference, else 0."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def _value(self, sample: Mapping[str, Any]) -> float:
        text = bare(sample["texts"])
        return 100.0 * any(text == bare(one) for one in sample["references"])

    def _result(self) -> Sequence[Score]:
        return [mean_score("exact_match", self.values, higher_is_better=True)]


def bare(text: str) -> str:
    """A text in lower case, with single spaces, without articles, and without punctuation at its ends.

    A text of nothing but articles keeps them, and one of nothing but punctuation is "".

    >>> bare(" The red Fox. "), bare("top  left!"), bare("A"), bare("e.g. 3.5")
    ('red fox', 'top left', 'a', 'e.g. 3.5')
    """
    words = _inner(text.casefold()).split()
    return _inner(" ".join([word for word in words if word not in _ARTICLES] or words))


def _inner(text: str) -> str:
    """Without white space and punctuation at the ends."""
    inside = [place for place, letter in enumerate(text) if not _is_outer(letter)]
    return text[inside[0] : inside[-1] + 1] if inside else ""


def _is_outer(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter).startswith("P")
