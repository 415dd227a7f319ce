"""Texts never become control tokens: whoever spells one gets its letters.

A tokenizer's file may offer special tokens in several ways; each reader takes them away from texts
first. What still comes through is found here afterwards, and its spelling is cut in two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from cm3core.errors import TokenizerError
from cm3core.files import open_regular

#: Ids of a text, and (start, end) of the characters that each is of.
Encoded: TypeAlias = tuple[list[int], list[tuple[int, int]]]

#: Of a tokenizer's file: the largest published have 35 MB.
MOST_BYTES = 1 << 29
#: Ids of a tokenizer: the largest published have 0.3 million, and every id costs a row of weights.
MOST_IDS = 1 << 24


def is_control(token: str, patterns: Sequence[str]) -> bool:
    """Whether a token is one of those that are no text."""
    return any(re.fullmatch(pattern, token) for pattern in patterns)


def shielded(
    text: str, encode: Callable[[str], Encoded], control: frozenset[int], place: str
) -> list[int]:
    """The ids of a text without control tokens: spans that became one are cut in two.

    Raises:
        TokenizerError: a single character is a control token.
    """
    ids, spans = encode(text)
    if control.isdisjoint(ids):
        return ids
    cuts = [0]
    for token, (start, end) in zip(ids, spans, strict=True):
        if token in control:
            if end - start < 2:
                raise TokenizerError(
                    place,
                    f"encodes {text[start:end]!r} as the control token {token}",
                    "take it out of text_tokenizer.control, or of the text",
                )
            cuts.append((start + end) // 2)
    # parts are shorter than the text, and their control tokens shorter than those cut
    parts = (text[start:end] for start, end in pairwise([*cuts, len(text)]))
    return [token for part in parts for token in shielded(part, encode, control, place)]


def without(ids: Iterable[int], control: frozenset[int]) -> list[int]:
    """The ids that are text."""
    return [int(token) for token in ids if token not in control]


def read_file(path: Path) -> bytes:
    """The bytes of a tokenizer's file; raises `TokenizerError` if it can't be read, or is far too long."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise TokenizerError(
                    str(path),
                    f"has {size:,} bytes, a tokenizer's at most {MOST_BYTES:,}",
                    "correct text_tokenizer.path",
                )
            return file.read()
    except OSError as error:
        cause = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise TokenizerError(str(path), cause, "correct text_tokenizer.path") from error
