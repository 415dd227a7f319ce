"""Bars measure time by the clock that nobody sets."""

from __future__ import annotations

import io
import time

import pytest

from cm3core.progress import make_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_goes_on_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = Terminal(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with make_bar(total=100, file=file, mininterval=0.5) as bar:
        for _ in range(10):
            clock[0] += 1
            bar.update(10)
        assert bar.format_dict["elapsed"] == 10
        assert "100/100 [00:10<00:00" in file.getvalue()


def test_a_bar_that_is_not_shown_needs_no_clock() -> None:
    bar = make_bar(range(3), disable=True)
    assert list(bar) == [0, 1, 2]
