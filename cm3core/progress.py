"""Progress bars, for terminals only: a pipe or a log file gets no control characters.

Every bar of the framework and its plugins is made by `make_bar`, so that one place decides where bars are
shown, and `--quiet` silences all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_silenced = 0


def make_bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """tqdm's bar, disabled inside `no_bars` and where its file (default: stderr) is no terminal."""
    if not bars_shown(options.get("file")):
        options["disable"] = True
    bar = tqdm(iterable, **options)
    if not bar.disable:
        # tqdm reads the clock of the wall: a bar would stand still for as long as that is set back
        bar._time = time.monotonic
        bar.start_t = bar.last_print_t = time.monotonic()
    return bar


def bars_shown(file: Any = None) -> bool:
    """Whether bars are shown on a file (None: stderr)."""
    file = sys.stderr if file is None else file
    return _silenced == 0 and file is not None and file.isatty()


@contextmanager
def no_bars(silent: bool = True) -> Iterator[None]:
    """Context without bars, of plugins either; `silent` False changes nothing."""
    global _silenced
    _silenced += silent
    try:
        yield
    finally:
        _silenced -= silent
