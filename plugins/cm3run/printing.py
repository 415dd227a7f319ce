"""Texts of data on a terminal: what would control it is shown, not sent.

Captions, names, licences and messages come from anybody, and a terminal obeys what is in them: it moves, hides
and rewrites what was printed, or types for the user.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

#: C0 but tab and newline, DEL, C1, and what turns the direction of a text or hides in it: marks, embeddings,
#: overrides and isolates of the bidirectional algorithm, line and paragraph separators, tags.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\U000e0000-\U000e007f]"
)


def escaped(text: str) -> str:
    r"""The text with control characters as JSON writes them, so that JSON stays what it says.

    >>> print(escaped("red\x1b[2J apple, \u202egnp.exe"))
    red\u001b[2J apple, \u202egnp.exe
    """
    return _CONTROLS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000  # as JSON writes it: a pair
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


def printable(text: str, *, lines: bool = False) -> str:
    r"""A text of data on one line, without control characters; `lines`: with its ends of lines.

    >>> print(printable("red\x1b[2J apple\tor\r two"))
    red\u001b[2J apple or\u000d two
    """
    return escaped(text.replace("\t", " ") if lines else re.sub("[\n\t]", " ", text))


class SafeStream:
    """A text stream that shows control characters instead of sending them. Everything else is the stream's.

    Args:
        stream: where it goes; `raw` is this stream, for what a program draws itself.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.raw = stream

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        self.raw.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __eq__(self, other: object) -> bool:
        return self is other or other is self.raw  # tqdm looks for the bars of a stream

    def __hash__(self) -> int:
        return hash(self.raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __iter__(self) -> Any:
        return iter(self.raw)


def raw_stream(stream: Any) -> Any:
    """The stream behind a `SafeStream`: for bars, colours and the like, of which every text of data is
    `escaped` before."""
    while isinstance(stream, SafeStream):
        stream = stream.raw
    return stream


def make_safe() -> None:
    """Let stdout and stderr show control characters from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


@contextmanager
def safe_output() -> Iterator[None]:
    """Context in which stdout and stderr show control characters."""
    before = sys.stdout, sys.stderr
    make_safe()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
