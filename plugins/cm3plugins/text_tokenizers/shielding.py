"""Texts never become control tokens: a spelled-out control token is encoded as letters.

A tokenizer's file may offer special tokens in several ways; each reader first removes them. Any that
still come through are found here, and their spelling is split in two.
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

#: Ids of a text, and the (start, end) of each id's characters.
Encoded: TypeAlias = tuple[list[int], list[tuple[int, int]]]

#: Size limit of a tokenizer's file: the largest published ones have 35 MB.
MOST_BYTES = 1 << 29
#: Limit of a tokenizer's ids: the largest published ones have 0.3 million, and every id costs a row of weights.
MOST_IDS = 1 << 24


def is_control(token: str, patterns: Sequence[str]) -> bool:
    """Whether a token is a control token."""
    return any(re.fullmatch(pattern, token) for pattern in patterns)


def shielded(
    text: str, encode: Callable[[str], Encoded], control: frozenset[int], place: str
) -> list[int]:
    """Return the ids of a text without control tokens: spans that became one are split in two.

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
                    "remove it from text_tokenizer.control, or from the text",
                )
            cuts.append((start + end) // 2)
    # parts are shorter than the text, and their control tokens shorter than those split
    parts = (text[start:end] for start, end in pairwise([*cuts, len(text)]))
    return [token for part in parts for token in shielded(part, encode, control, place)]


def without(ids: Iterable[int], control: frozenset[int]) -> list[int]:
    """Return the ids without control tokens."""
    return [int(token) for token in ids if token not in control]


def read_file(path: Path) -> bytes:
    """Read a tokenizer's file; raises `TokenizerError` if it can't be read, or is far too large."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise TokenizerError(
                    str(path),
                    f"has {size:,} bytes, above the limit of {MOST_BYTES:,} for a tokenizer",
                    "correct text_tokenizer.path",
                )
            return file.read()
    except OSError as error:
        cause = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise TokenizerError(str(path), cause, "correct text_tokenizer.path") from error
