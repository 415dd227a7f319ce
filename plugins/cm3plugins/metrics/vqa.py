"""VQA accuracy (Antol et al. 2015), with the official script's normalisation, including its typos, since
published figures were computed with them (GT-Vision-Lab/VQA, commit a013f00, vqaEval.py).

The answer and the ten human answers are normalised, but only if these ten differ. The accuracy is the mean
over the ten of min(1, matches among the other nine / 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score

#: Words whose spellings with a missing apostrophe are corrected.
_WORDS = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
you've
"""
#: Spelling -> correction. The official table has the one without an apostrophe on the right.
CONTRACTIONS = {
    word[: match.start()] + word[match.end() :]: word
    for word in _WORDS.split()
    for match in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
#: Meant as a look-behind, "(?<!\d)"; as written it always matches, so "3." loses its period.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
#: The value of re.UNICODE, which the script passes as the number of replacements.
_MAX_PERIODS = 32
_COMMA = re.compile(r"(\d)(\,)(\d)")
#: Number of other answers that must match for the full score.
_ENOUGH = 3


class VQAMetric(ValueMetric):
    """The accuracy of each answer, as a percentage."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def _value(self, sample: Mapping[str, Any]) -> float:
        return 100 * vqa_accuracy(sample["texts"], sample["references"])

    def _result(self) -> Sequence[Score]:
        return [mean_score("vqa_accuracy", self.values, higher_is_better=True)]


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return the accuracy of an answer, 0 to 1, given human answers.

    Raises:
        DataError: there are fewer than two human answers.

    >>> vqa_accuracy("two dogs", ["2 dogs"] * 3 + ["dogs"] * 7)  # 2 of 9 for three of them, 3 for seven
    0.9
    """
    if len(people) < 2:
        raise DataError(
            "human answers",
            f"are {len(people)}, but the formula compares each with the others",
            "give all of them; VQA's files have ten",
        )
    answer, given = _stripped(answer), [_stripped(one) for one in people]
    if len(set(given)) > 1:
        answer, given = normalised(answer), [normalised(one) for one in given]
    matches = [one == answer for one in given]
    total = sum(min(1.0, (sum(matches) - own) / _ENOUGH) for own in matches)
    return total / len(given)


def normalised(text: str) -> str:
    """Normalise an answer as in the official script.

    >>> normalised("The two dogs, dont 1,000 3.5 a.m.")
    "2 dogs don't 1000 3.5 am"
    """
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    deleted_anywhere = _COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        deleted = deleted_anywhere or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", cleaned, count=_MAX_PERIODS)


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
