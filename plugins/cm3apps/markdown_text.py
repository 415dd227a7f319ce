"""Words of data sets and models in a report: they are shown as they are, and never become markup,
links or pictures."""

from __future__ import annotations

import re
import unicodedata

#: What can begin or end markup in HTML, in Markdown's dialects (tables, strikethrough, formulas) and
#: in addresses that are made links without any sign ("https://", "a@b.org", "www."). An underscore
#: between letters means nothing, and names of metrics stay readable.
_SPECIAL = re.compile(
    r"[&<>\\`*\[\](){}#!|~$@:^=]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE
)
#: What makes a list or a heading at the start of a line.
_STARTS_BLOCK = re.compile(r"^(?:[+-]|\d+(?=\.))")
_NO_CHARACTERS = ("Cc", "Cs")


def plain(text: str) -> str:
    """Markdown that shows `text` on one line. Special characters become character references, which
    every dialect shows and none interprets; control characters are left out."""
    line = "".join(
        character
        for character in " ".join(text.split())
        if unicodedata.category(character) not in _NO_CHARACTERS
    )
    line = _SPECIAL.sub(_reference, " ".join(line.split()))
    return _STARTS_BLOCK.sub(lambda match: "".join(map(_character_reference, match[0])), line)


def _reference(match: re.Match[str]) -> str:
    return _character_reference(match[0])


def _character_reference(character: str) -> str:
    return f"&#{ord(character)};"


def code(text: str) -> str:
    """Markdown that shows `text` on one line as code."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"
