"""White space and punctuation before a hole in a text belong to the hole where a text tokenizer
joins them to what comes after.

Byte-level BPE writes " red" as one token, so a text that is cut before the word would end in a token
that no training text has there: a space alone. What is written before the hole therefore ends
without them, the lead, and the hole's content begins with it: the grammar allows nothing else. In
documents, before and after, the lead stays where it is.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from itertools import groupby

from cm3core.document import MaskedText, TextHole

#: What may be in a lead. ASCII only: tokenizers may write any other character as several bytes, of
#: which no single id shows whether it begins the lead.
_WHITE_SPACE, _PUNCTUATION = " \t\n\r\f\v", string.punctuation


def without_leads(
    text: MaskedText, is_joined: Callable[[str], bool]
) -> tuple[MaskedText, list[str]]:
    """The text without the leads of its holes, and the leads, one for each hole.

    Args:
        text: with any number of holes.
        is_joined: whether the tokenizer joins this lead to what comes after it.

    >>> without_leads(MaskedText(("a red ", TextHole(4), ", noto")), lambda lead: True)[1]
    [' ']
    """
    parts: list[str | TextHole] = []
    leads: list[str] = []
    for is_text, run in groupby(text.parts, key=lambda part: isinstance(part, str)):
        own = list(run)
        parts += ["".join(map(str, own))] if is_text else own
    for place in range(len(parts)):
        if isinstance(parts[place], str):
            continue
        before = parts[place - 1] if place else ""
        if not isinstance(before, str):
            leads.append("")
            continue
        kept = before.rstrip(_PUNCTUATION).rstrip(_WHITE_SPACE)
        lead = before[len(kept) :]
        if lead and not is_joined(lead):
            kept, lead = before, ""
        if place:
            parts[place - 1] = kept
        leads.append(lead)
    return MaskedText(tuple(part for part in parts if part != "")), leads


def after_lead(lead: str, content: str) -> str:
    """A hole's text as the document has it: without the lead that its content begins with.

    >>> after_lead(" ", " apple")
    'apple'
    """
    return content.removeprefix(lead)


def is_joined(lead: str, texts: Sequence[str]) -> bool:
    """Whether one of the tokens' texts begins with the end of the lead, and is longer.

    >>> is_joined(" ", ["a", " ", " b"]), is_joined(" ", ["a", " ", "b "])
    (True, False)
    """
    ends = [lead[start:] for start in range(len(lead))]
    return any(len(text) > len(end) and text.startswith(end) for text in texts for end in ends)


def ids_that_begin(lead: str, texts: Sequence[str], first_id: int) -> tuple[range, ...]:
    """Ids of the texts that begin with the lead, or with which it begins, as ranges in order.

    >>> ids_that_begin(" ", ["a", " ", " b", "", "b "], 4)
    (range(5, 7),)
    """
    chosen = [
        place
        for place, text in enumerate(texts)
        if text and (text.startswith(lead) or lead.startswith(text))
    ]
    runs = (
        [place for _, place in run]
        for _, run in groupby(enumerate(chosen), key=lambda one: one[1] - one[0])
    )
    return tuple(range(first_id + run[0], first_id + run[-1] + 1) for run in runs)
