"""Split texts into words, find singulars, and compare texts by words. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Thai, Lao, Myanmar, Khmer, kana and ideographs: scripts without spaces between words
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Emoji and other pictographs, each of which counts as a word
_PICTOGRAPHS = r"\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
#: Shorter words that end in s are seldom plurals: gas, bus.
_PLURAL = 4
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
