"""Progress bars on terminals, and a line a minute anywhere else: a pipe or a log file gets no control
characters, and still says that long work goes on.

Every bar of the framework and its plugins is made by `make_bar`, so that one place decides where bars are
shown, and `--quiet` silences all of them.
"""

from __future__ import annotations

import io
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from cm3run.printing import printable, raw_stream

T = TypeVar("T")
#: Seconds between two lines where there is no bar; what is done sooner writes none.
SECONDS_BETWEEN_LINES = 60.0
#: A step that takes more than this many times as long as all but the longest of the recent ones was a pause; the share of
#: the longest ones.
ATYPICAL, RARE = 5.0, 0.1
#: Seconds of work by which the rest is estimated, and the shortest work that `estimated_bar` tells of.
SECONDS_TO_ESTIMATE, LEAST_ESTIMATE = 3.0, 10.0
#: Shortest time between two steps of an estimate, and the number of recent steps.
_LEAST_STEP_S, _NUM_STEPS = 1.0, 50
_silenced = 0


@dataclass(frozen=True)
class Shown:
    """What a bar shows. A `total` of 0: unknown."""

    what: str = ""
    done: float = 0
    total: float = 0
    unit: str = "it"


#: Who is told what the bars of the running code show.
_listeners: ContextVar[tuple[Callable[[Shown], None], ...]] = ContextVar("listeners", default=())


@contextmanager
def shown_to(listener: Callable[[Shown], None]) -> Iterator[None]:
    """Context whose bars, also those that are disabled, call `listener` when they change."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


class Pace:
    """How fast work goes on, by its recent steps.

    The first step is left out: it often has other work in it, such as loading, compiling, reading a prompt, or what an
    earlier run had already done. So are rare pauses: a process that was stopped for an hour goes on as before.

    Args:
        now: seconds, by any clock.
        done: how much is done at the start.
    """

    def __init__(self, now: float, done: float = 0.0) -> None:
        self._seen = (now, done)
        self._is_first = True
        self._steps: deque[tuple[float, float]] = deque(maxlen=_NUM_STEPS)

    def saw(self, now: float, done: float) -> None:
        """Note how much is done now."""
        then, before = self._seen
        if done <= before or now - then < _LEAST_STEP_S:
            return
        if not self._is_first:
            self._steps.append((now - then, done - before))
        self._is_first, self._seen = False, (now, done)

    def rate(self) -> float | None:
        """How much is done in a second; None before enough was seen.

        >>> pace = Pace(0.0)
        >>> for now, done in ((60, 1), (62, 5), (64, 9)):
        ...     pace.saw(now, done)
        >>> pace.rate()
        2.0
        """
        if not self._steps:
            return None
        ordered = sorted(seconds for seconds, _ in self._steps)
        most = ATYPICAL * ordered[int((1 - RARE) * (len(ordered) - 1))]
        kept = [one for one in self._steps if one[0] <= most]
        seconds, done = (sum(values) for values in zip(*kept, strict=True))
        return done / seconds if seconds >= SECONDS_TO_ESTIMATE else None


def make_bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """tqdm's bar; where its file (default: stderr) is no terminal, a line a minute; disabled inside `no_bars`."""
    file = raw_stream(sys.stderr if options.get("file") is None else options["file"])
    options["file"] = file
    if options.get("desc"):
        options["desc"] = printable(str(options["desc"]))
    bar: tqdm[T]
    if _silenced or file is None:
        options["disable"] = True
    if file is not None and not file.isatty():
        options["disable"] = bool(options.get("disable"))  # tqdm's None: "on terminals alone"
    if options.get("disable") and _listeners.get():
        bar = _Unseen(iterable, **{**options, "disable": False, "file": io.StringIO()})
    elif options.get("disable") or (file is not None and file.isatty()):
        bar = _Bar(iterable, **options)
    else:
        bar = _Lines(iterable, **options)
    return bar


class _Bar(tqdm):  # type: ignore[misc]  # tqdm comes without types
    """A bar whose time left is estimated by `Pace`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        now = time.monotonic()
        self._pace = Pace(now, float(options.get("initial") or 0))
        self._told = _listeners.get()
        super().__init__(*args, **options)
        if not self.disable:
            # tqdm reads the clock of the wall: a bar would stand still for as long as that is set back
            self._time = time.monotonic
            self.start_t = self.last_print_t = now

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm shows; a rate of 0 shows "?" for the time left."""
        values: dict[str, Any] = super().format_dict
        if self.total and self.n < self.total:
            values["rate"] = self._pace.rate() or 0.0
        return values

    def display(self, *args: Any, **options: Any) -> Any:
        """Show it, here and to listeners."""
        self._note()
        return super().display(*args, **options)

    def _note(self) -> None:
        self._pace.saw(time.monotonic(), self.n)
        shown = Shown(self._title(), self.n, self.total or 0, self.unit)
        for tell in self._told:
            tell(shown)

    def _title(self) -> str:
        return (self.desc or "").strip().removesuffix(":")


class _Lines(_Bar):
    """A bar that writes lines."""

    monitor_interval = 0  # no thread: a line is late by no more than one step of the work

    def __init__(self, *args: Any, **options: Any) -> None:
        self._written = time.monotonic()
        # tqdm then looks at the clock at each step
        options |= {"mininterval": min(1.0, SECONDS_BETWEEN_LINES), "miniters": 1}
        super().__init__(*args, **options)

    def display(self, *_: Any, **__: Any) -> None:
        """Write a line, if it is time for one."""
        self._note()
        now = time.monotonic()
        if now - self._written < SECONDS_BETWEEN_LINES:
            return
        self._written = now
        self.fp.write(f"{self._line()}\n")
        self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing: `tqdm.write` clears a bar before a note, and would write a carriage return."""

    def _line(self) -> str:
        """As in "neighbours: 130,048 of 641,612, 20%, 12:10 left"."""
        parts = [f"{self.n:,.0f}"]
        if self.total:
            parts = [f"{self.n:,.0f} of {self.total:,.0f}", f"{100 * self.n / self.total:.0f}%"]
            if (rate := self._pace.rate()) is not None:
                left = max(0, round((self.total - self.n) / rate))
                hours = f"{left // 3600}:{left // 60 % 60:02d}" if left >= 3600 else f"{left // 60}"
                parts.append(f"{hours}:{left % 60:02d} left")
        if self.postfix:
            parts.append(str(self.postfix))
        unit = "" if self.unit == "it" else self.unit.strip()
        what = self._title() or unit
        return f"{what}: {', '.join(parts)}" if what else ", ".join(parts)

    def close(self) -> None:
        """End without a word: what comes next says that this is done."""
        self.sp = None  # what tqdm would write its last state by
        super().close()


class _Unseen(_Lines):
    """A bar that only its listeners see."""

    def display(self, *_: Any, **__: Any) -> None:
        """Tell the listeners."""
        self._note()


@contextmanager
def estimated_bar(
    what: str, *, disable: bool = False, note: str = "", **options: Any
) -> Iterator[Callable[[int], None]]:
    """A bar for work that is done once, such as an index; yields the function that advances it by a number.

    As soon as its `Pace` is known, a note says how long the whole work takes, unless that is less than `LEAST_ESTIMATE`
    seconds.

    Args:
        what: what is done, e.g. "embedding the memory".
        disable: show neither bar nor note.
        note: what follows the estimate, e.g. "the vectors are cached".
        options: of `make_bar`; `total` and `unit` are required.
    """
    total, unit, done, is_told = int(options["total"]), options["unit"], 0, disable
    with make_bar(desc=what, disable=disable, **options) as bar:
        start = time.monotonic()
        pace = Pace(start)

        def advance(number: int) -> None:
            nonlocal done, is_told
            done += number
            now = time.monotonic()
            pace.saw(now, done)
            bar.update(number)
            if not is_told and not _silenced and (rate := pace.rate()) is not None:
                is_told = True
                whole = now - start + (total - done) / rate
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


def are_bars_silenced() -> bool:
    """Whether the running code is inside `no_bars`."""
    return _silenced > 0


@contextmanager
def no_bars(silent: bool = True) -> Iterator[None]:
    """Context without bars, of plugins either; `silent` False changes nothing."""
    global _silenced
    _silenced += silent
    try:
        yield
    finally:
        _silenced -= silent
