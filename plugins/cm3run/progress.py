"""Progress bars on terminals, and a line a minute anywhere else: a pipe or a log file gets no control
characters, and still says that long work goes on.

Every bar of the framework and its plugins is made by `make_bar`, so that one place decides where bars are
shown, and `--quiet` silences all of them.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

from tqdm import tqdm

from cm3run.printing import printable, raw_stream

T = TypeVar("T")
#: Seconds between two lines where there is no bar; what is done sooner writes none.
SECONDS_BETWEEN_LINES = 60.0
#: Something that takes more than this many medians of its recent durations was paused.
ATYPICAL = 5.0
#: Seconds of work by which `estimated_bar` estimates the rest, and the shortest work that it tells of.
SECONDS_TO_ESTIMATE, LEAST_ESTIMATE = 3.0, 10.0
_silenced = 0


def make_bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """tqdm's bar; where its file (default: stderr) is no terminal, a line a minute; disabled inside `no_bars`."""
    file = raw_stream(sys.stderr if options.get("file") is None else options["file"])
    options["file"] = file
    if options.get("desc"):
        options["desc"] = printable(str(options["desc"]))
    if _silenced or file is None:
        options["disable"] = True
    elif not file.isatty():
        options["disable"] = bool(options.get("disable"))  # tqdm's None: "on terminals alone"
        lines: tqdm[T] = _Lines(iterable, **{**options, **_Lines.rate(), "file": file})
        return lines
    bar = tqdm(iterable, **options)
    if not bar.disable:
        # tqdm reads the clock of the wall: a bar would stand still for as long as that is set back
        bar._time = time.monotonic
        bar.start_t = bar.last_print_t = time.monotonic()
    return bar


class _Lines(tqdm):  # type: ignore[misc]  # tqdm comes without types
    """A bar that writes lines."""

    monitor_interval = 0  # no thread: a line is late by no more than one step of the work
    _written = 0.0
    #: Time and count at the last look at the clock, and the recent (seconds, count) between two looks.
    _seen = (0.0, 0.0)

    @staticmethod
    def rate() -> dict[str, float]:
        """Options of tqdm under which it looks at the clock at each step."""
        return {"mininterval": min(1.0, SECONDS_BETWEEN_LINES), "miniters": 1}

    def __init__(self, *args: Any, **options: Any) -> None:
        self._written = self._started = time.monotonic()
        self._seen = (self._started, float(options.get("initial") or 0))
        self._recent: deque[tuple[float, float]] = deque(maxlen=50)
        super().__init__(*args, **options)
        self._time = time.monotonic
        if not self.disable:
            self.start_t = self.last_print_t = self._started

    def display(self, *_: Any, **__: Any) -> None:
        """Write a line, if it is time for one."""
        now, (before, done) = time.monotonic(), self._seen
        if self.n > done:
            self._recent.append((now - before, self.n - done))
            self._seen = (now, self.n)
        if now - self._written < SECONDS_BETWEEN_LINES:
            return
        self._written = now
        self.fp.write(f"{self._line()}\n")
        self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing: `tqdm.write` clears a bar before a note, and would write a carriage return."""

    def _seconds_left(self) -> float | None:
        """By the recent speed, without pauses: a process that was stopped for an hour goes on as before."""
        if not self._recent:
            return None
        most = ATYPICAL * median(seconds for seconds, _ in self._recent)
        kept = [one for one in self._recent if one[0] <= most]
        seconds, done = (sum(values) for values in zip(*kept, strict=True))
        left: float = seconds / done * (self.total - self.n)
        return left

    def _line(self) -> str:
        """As in "neighbours: 130,048 of 641,612, 20%, 12:10 left"."""
        parts = [f"{self.n:,.0f}"]
        if self.total:
            parts = [f"{self.n:,.0f} of {self.total:,.0f}", f"{100 * self.n / self.total:.0f}%"]
            if (seconds := self._seconds_left()) is not None:
                left = max(0, round(seconds))
                parts.append(f"{left // 60}:{left % 60:02d} left")
        if self.postfix:
            parts.append(str(self.postfix))
        unit = "" if self.unit == "it" else self.unit.strip()
        what = (self.desc or "").strip().removesuffix(":") or unit
        return f"{what}: {', '.join(parts)}" if what else ", ".join(parts)

    def close(self) -> None:
        """End without a word: what comes next says that this is done."""
        self.sp = None  # what tqdm would write its last state by
        super().close()


@contextmanager
def estimated_bar(
    what: str, *, disable: bool = False, note: str = "", **options: Any
) -> Iterator[Callable[[int], None]]:
    """A bar for work that is done once, such as an index; yields the function that advances it by a number.

    After the first `SECONDS_TO_ESTIMATE` seconds, a note says how long the whole work takes at this rate, unless that is
    less than `LEAST_ESTIMATE` seconds.

    Args:
        what: what is done, e.g. "embedding the memory".
        disable: show neither bar nor note.
        note: what follows the estimate, e.g. "the vectors are cached".
        options: of `make_bar`; `total` and `unit` are required.
    """
    total, unit, done, is_told = int(options["total"]), options["unit"], 0, disable
    with make_bar(desc=what, disable=disable, **options) as bar:
        start = time.monotonic()

        def advance(number: int) -> None:
            nonlocal done, is_told
            done += number
            bar.update(number)
            seconds = time.monotonic() - start
            if is_told or not done or seconds < SECONDS_TO_ESTIMATE or _silenced:
                return
            is_told = True
            whole = seconds / done * total
            if whole >= LEAST_ESTIMATE and done < total:
                after = f"; {note}" if note else ""
                tqdm.write(
                    f"note: {what}, {total:,} {unit}s, takes about {in_words(whole)}{after}",
                    file=sys.stderr,
                )

        yield advance


def in_words(seconds: float) -> str:
    """A duration, roughly.

    >>> in_words(14), in_words(89), in_words(200), in_words(9000)
    ('10 seconds', '90 seconds', '3 minutes', '2.5 hours')
    """
    if seconds < 95:
        return f"{max(1, round(seconds / 10)) * 10} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


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
