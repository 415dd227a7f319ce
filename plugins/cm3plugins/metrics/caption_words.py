"""Words of captions as the Penn Treebank tokenizer of COCO's evaluation splits them: lower case, most
punctuation dropped, contractions divided ("don't" -> "do n't").

Python in place of Stanford's jar; the tests compare the two. Its oddities are kept, since published
scores have them: brackets become the words "-lrb-" and "-rrb-", "!!!" and "?!" are words while "!" is
dropped. Emoticons and rare abbreviations may be split elsewhere.
"""

from __future__ import annotations

import re

#: What COCO's evaluation leaves out after tokenizing. The jar writes brackets in small letters, and the
#: list has them in capitals, so that they stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", ".", "..", "...", "?", "!", ",", ":", "-", "--", ";"]
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|ave|blvd|rd|co|inc|ltd|corp|mt|ft|gen|sen|rep|gov|capt|lt|sgt|"
    "jan|feb|mar|apr|aug|sept|oct|nov|dec"
)
_TOKEN = re.compile(
    rf"""
    \d+(?:[.,:/]\d+)+ | \.\d+                              # 1,000  3.5  12:30  1/2
  | (?:[a-z]\.)+(?=[^a-z0-9]|$|[a-z]\b) | ph\.d\.          # u.s.  a.m.
  | (?:{_ABBREVIATIONS})\.(?=\s|$) | no\.(?=\s+\d)
  | at&t | '\d\ds | '(?=tis\b|twas\b)t | rock(?='n') | 'n'
  | y'(?=all\b)
  | [#@][a-z_]\w*
  | \d+(?=')                                               # 5'10
  | \w+(?:\.\w+)+ | \w+(?:[-/'][^\W_]+)*                   # file.txt; hyphens, apostrophes inside
  | [?!][?!]+ | \.+ | --+ | '' | `` | [^\w\s]
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))$")
#: Two words that are written as one.
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "€": "$", "£": "#"})


def caption_words(text: str) -> list[str]:
    """The words that COCO's metrics count.

    >>> caption_words("A man's dog (brown) can't sit, at 3.5 m!")
    ['a', 'man', "'s", 'dog', '-lrb-', 'brown', '-rrb-', 'ca', "n't", 'sit', 'at', '3.5', 'm']
    """
    words: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_QUOTES)):
        if token in _JOINED:
            words += _JOINED[token]
        elif token in _BRACKETS:
            words.append(_BRACKETS[token])
        elif token[0].isalnum():
            words += _divided(token)
        elif token not in PUNCTUATION and not set(token) <= set('.-"'):
            words.append(token)
    return words


def _divided(token: str) -> list[str]:
    """A word and the contractions at its end."""
    match = _CLITIC.search(token)
    if match is None or match.start() == 0:
        return [token]
    return [*_divided(token[: match.start()]), match[1]]
