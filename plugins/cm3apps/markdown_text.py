"""Texts from data sets and models in a report, shown verbatim: they never become markup, links or
pictures."""

from __future__ import annotations

import re
import unicodedata

#: Characters that can begin or end markup in HTML, in Markdown's dialects (tables, strikethrough,
#: formulas) and in bare addresses that become links ("https://", "a@b.org", "www."). An underscore
#: between letters has no meaning, so names of metrics stay readable.
_SPECIAL = re.compile(
    r"[&<>\\`*\[\](){}#!|~$@:^=]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE
)
#: Beginnings of a line that make a list or a heading.
_STARTS_BLOCK = re.compile(r"^(?:[+-]|\d+(?=\.))")
_NO_CHARACTERS = ("Cc", "Cs")


def plain(text: str) -> str:
    """Markdown that shows `text` on one line. Special characters become character references, which
    every dialect displays and none interprets; control characters are dropped."""
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
