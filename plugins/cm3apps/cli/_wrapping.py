"""Lines that fit a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

#: Maximum line length, on wide terminals too; and the least, on narrow ones.
WIDTH, LEAST = 120, 40


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """A text as lines that begin with `first`, then with `rest` (None: the same). Words stay whole."""
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    return textwrap.wrap(
        text,
        max(width, LEAST),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted(text: str, first: str = "", rest: str = "      ") -> list[str]:
    """A line, wrapped on a terminal; a program that reads it finds it whole."""
    return wrapped(text, first, rest) if sys.stdout.isatty() else [first + text]
