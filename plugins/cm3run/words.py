"""Split texts into words, find singulars, and compare texts by words. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

# Thai, Lao, Myanmar, Khmer, kana and ideographs: scripts without spaces between words
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Emoji and other pictographs, each of which counts as a word
_PICTOGRAPHS = r"\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
#: Shorter words that end in s are seldom plurals: gas, bus.
_PLURAL = 4
#: Word length from which a word counts as misspelt if it is one edit away from a known word, and from which two edits
#: are allowed, see `edits`. Chosen to correct many common misspellings and few correct words.
_SHORTEST, _TWO_SLIPS = 3, 10
_WORD = re.compile(rf"[{_UNSPACED}{_PICTOGRAPHS}]|(?:(?![{_UNSPACED}{_PICTOGRAPHS}])[^\W_])+")


def words_of(text: str) -> list[str]:
    """Words in order: letters and digits only, case-folded; scripts without spaces and
    pictographs are split into characters.

    >>> words_of("Bell-off, Größe 2")
    ['bell', 'off', 'grösse', '2']
    """
    return _WORD.findall(text.casefold())


def singulars_of(word: str) -> Iterator[str]:
    """Possible singulars of an English word, the likeliest first.

    >>> list(singulars_of("wolves")), list(singulars_of("buses")), list(singulars_of("glass"))
    (['wolf', 'wolfe', 'wolv', 'wolve'], ['bus', 'buse'], [])
    """
    if len(word) < _PLURAL or not word.endswith("s") or word.endswith("ss"):
        return
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if word.endswith("es"):
        yield word[:-2]
    yield word[:-1]


def forms_of(text: str) -> set[str]:
    """The words of a text and their possible singulars."""
    words = words_of(text)
    return {*words, *(one for word in words for one in singulars_of(word))}


def shares_a_word(subject: str, text: str) -> bool:
    """Whether `text` contains a word of `subject`; a plural counts as the same word. True if `subject` has no words.

    >>> shares_a_word("bird cage", "birds, filled"), shares_a_word("bird", "cat, outline")
    (True, False)
    """
    asked = forms_of(subject)
    return not asked or not asked.isdisjoint(forms_of(text))


def nearest_word(word: str, known: Collection[str]) -> str | None:
    """The word of `known` that is the singular of `word`, or the one with the most similar spelling; None if none is
    close."""
    for one in singulars_of(word):
        if one in known:
            return one
    most = _slips(word)
    letters = set(word)
    alike = (
        (
            slips,
            own[:1] != word[:1],
            -len(own),
            own,
        )  # omitting letters is more common than adding them
        for own in known
        if abs(len(own) - len(word)) <= most
        and len(letters.symmetric_difference(own)) <= 2 * most
        and 0 < (slips := edits(word, own)) <= most
        # two edits can lead to an unrelated word; the first letter is seldom wrong
        and (slips == 1 or own[:1] == word[:1])
    )
    return min(alike, default=(0, False, 0, None))[-1]


def _slips(word: str) -> int:
    """Maximum number of edits in a misspelt word of this length."""
    return 0 if len(word) < _SHORTEST else 1 if len(word) < _TWO_SLIPS else 2


def edits(one: str, other: str) -> int:
    """The minimum number of insertions, deletions, replacements and swaps of adjacent letters between two words.

    Optimal string alignment: Damerau (1964), without changes between exchanged letters.

    >>> edits("recieve", "receive"), edits("launching", "punching"), edits("", "ab")
    (1, 2, 2)
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        row = [i]
        for j, right in enumerate(other, start=1):
            cost = min(row[-1] + 1, last[j] + 1, last[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
