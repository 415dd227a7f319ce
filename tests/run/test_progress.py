"""Bars measure time by the clock that nobody sets, and are lines where there is no terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest
from tqdm import tqdm

from cm3run.progress import make_bar, no_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says, to be set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_bar_goes_on_when_the_clock_is_set_back(clock: list[float]) -> None:
    file = Terminal()
    with make_bar(total=100, file=file, mininterval=0.5) as bar:
        for _ in range(10):
            clock[0] += 1
            bar.update(10)
        assert bar.format_dict["elapsed"] == 10
        assert "100/100 [00:10<00:00" in file.getvalue()


def test_a_bar_that_is_not_shown_needs_no_clock() -> None:
    bar = make_bar(range(3), disable=True)
    assert list(bar) == [0, 1, 2]


def test_a_file_gets_a_line_a_minute(clock: list[float]) -> None:
    file = io.StringIO()
    with make_bar(total=1200, initial=200, desc="  neighbours", unit="document", file=file) as bar:
        for _ in range(10):
            clock[0] += 20
            bar.update(100)
    assert file.getvalue().splitlines() == [  # 100 in 20 seconds
        "neighbours: 500 of 1,200, 42%, 2:20 left",
        "neighbours: 800 of 1,200, 67%, 1:20 left",
        "neighbours: 1,100 of 1,200, 92%, 0:20 left",
    ]


def test_a_pause_changes_no_estimate(clock: list[float]) -> None:
    """Stopped for two hours after 500; the first tenth was four times as slow, which recent steps don't show."""
    file = io.StringIO()
    with make_bar(total=3000, desc="codes", file=file) as bar:
        for place in range(230):
            clock[0] += 8 if place < 10 else 7200 if place == 50 else 2
            bar.update(10)
    left = [line.rpartition(", ")[2] for line in file.getvalue().splitlines()]
    done = [int(line.split()[1].replace(",", "")) for line in file.getvalue().splitlines()]
    estimated = [
        60 * int(one.split(":")[0]) + int(one.removesuffix(" left").split(":")[1]) for one in left
    ]
    for number, seconds in list(zip(done, estimated, strict=True))[3:]:
        assert abs(seconds - (3000 - number) / 5) <= 0.2 * (3000 - number) / 5


def test_lines_of_an_iterable_of_no_length(clock: list[float]) -> None:
    file = io.StringIO()
    for _ in make_bar(iter(range(4)), unit=" texts", file=file, disable=None):
        clock[0] += 40
    with make_bar(file=file) as bar:
        clock[0] += 60
        bar.set_postfix_str("12 unreadable", refresh=False)
        bar.update(2345)
    assert file.getvalue().splitlines() == ["texts: 2", "texts: 4", "2,345, 12 unreadable"]


def test_a_note_beside_lines_has_no_control_characters(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with make_bar(total=9, desc="all") as bar:  # to stderr, as notes are
        clock[0] += 60
        bar.update(3)
        tqdm.write("note: one is left out", file=sys.stderr)
    assert capsys.readouterr().err == "all: 3 of 9, 33%, 2:00 left\nnote: one is left out\n"


def test_quick_and_silenced_work_writes_no_lines(clock: list[float]) -> None:
    file = io.StringIO()
    for _ in make_bar(range(50), desc="all", file=file):
        clock[0] += 1
    with no_bars():
        for _ in make_bar(range(50), desc="all", file=file):
            clock[0] += 100
    for _ in make_bar(range(50), desc="all", file=file, disable=True):
        clock[0] += 100
    assert file.getvalue() == ""
