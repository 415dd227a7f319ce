"""Bars measure time by the clock that nobody sets, and are lines where there is no terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from cm3run.progress import Pace, Shown, estimated_bar, make_bar, no_bars, shown_to


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
    assert capsys.readouterr().err == "all: 3 of 9, 33%\nnote: one is left out\n"


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


def test_the_first_token_tells_nothing_of_the_others(clock: list[float]) -> None:
    """A prompt of a minute, then two tokens a second: 275 tokens take 60 + 137 seconds, not 275 minutes."""
    file = io.StringIO()
    with make_bar(total=275, desc="answering", file=file) as bar:
        clock[0] += 60
        bar.update(1)
        for _ in range(130):
            clock[0] += 0.5
            bar.update(1)
    assert file.getvalue().splitlines() == [
        "answering: 1 of 275, 0%",
        "answering: 121 of 275, 44%, 1:17 left",  # 154 tokens, two a second
    ]


def test_a_terminal_shows_no_estimate_before_enough_was_seen(clock: list[float]) -> None:
    file = Terminal()
    with make_bar(total=275, file=file, ncols=70) as bar:
        clock[0] += 60
        bar.update(1)
        assert "1/275 [01:00<?, ?it/s]" in file.getvalue().rpartition("\r")[2]
        for _ in range(10):
            clock[0] += 0.5
            bar.update(1)
        assert "11/275 [01:05<02:12,  2.00it/s]" in file.getvalue().rpartition("\r")[2]


def test_what_an_earlier_run_did_is_no_speed(clock: list[float]) -> None:
    """900 of 1,000 are read in a moment, the others take a second each."""
    pace = Pace(clock[0])
    pace.saw(clock[0] + 0.01, 900)
    for second in range(1, 6):
        pace.saw(clock[0] + second, 900 + second)
    assert pace.rate() == 1.0


def test_steps_that_differ_are_all_counted_and_a_pause_is_not() -> None:
    """Each fourth text takes ten times as long as the others: 13 seconds for 4."""
    pace, now = Pace(0.0), 0.0
    for text in range(41):
        now += 10 if text % 4 == 0 else 1
        pace.saw(now, text + 1)
    assert pace.rate() == pytest.approx(4 / 13)
    for text in range(41, 61):
        now += 7200 if text == 50 else 10 if text % 4 == 0 else 1
        pace.saw(now, text + 1)
    assert pace.rate() == pytest.approx(4 / 13, rel=0.05)


@given(st.lists(st.tuples(st.floats(1, 100), st.integers(1, 50)), min_size=2, max_size=80))
def test_a_pace_is_between_the_slowest_and_the_fastest_step(steps: list[tuple[float, int]]) -> None:
    pace, now, done = Pace(0.0), 0.0, 0
    for seconds, number in steps:
        now, done = now + seconds, done + number
        pace.saw(now, done)
    rates = [number / seconds for seconds, number in steps[1:]]
    rate = pace.rate()
    assert rate is None or min(rates) * 0.999 <= rate <= max(rates) * 1.001
    assert rate is not None or sum(seconds for seconds, _ in steps[1:]) < 3 * 50


def test_a_note_of_the_whole_time_leaves_out_the_first_step(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading takes 50 seconds, then each of 100 texts half a second: 100 seconds in all."""
    with estimated_bar("embedding", total=100, unit="text") as advance:
        clock[0] += 50
        for _ in range(100):
            clock[0] += 0.5
            advance(1)
    assert "embedding, 100 texts, takes about 2 minutes" in capsys.readouterr().err


def test_hours_are_hours(clock: list[float]) -> None:
    file = io.StringIO()
    with make_bar(total=1000, file=file) as bar:
        for _ in range(2):
            clock[0] += 60
            bar.update(1)
    assert file.getvalue().splitlines()[-1] == "2 of 1,000, 0%, 16:38:00 left"


def test_listeners_see_bars_that_nobody_sees(clock: list[float]) -> None:
    seen: list[Shown] = []
    with no_bars(), shown_to(seen.append), make_bar(total=8, desc="all", unit="text") as bar:
        clock[0] += 2
        bar.update(3)
    assert seen[-1] == Shown("all", 3, 8, "text")
    make_bar(range(3), disable=True).update(1)
    assert len(seen) == 2
