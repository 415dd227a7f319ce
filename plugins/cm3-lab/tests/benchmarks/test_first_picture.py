"""`cm3 bench first-picture`: what is printed and stored, and a model that can't be drawn with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3lab.benchmarks import first_picture


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [(9.0, 9.0, 9.0), (2.0, 1.0, 0.75), (3.0, 1.5, 0.5), (2.5, 1.25, 0.5)]
    asked = []

    def measure(model: str | None, prompt: str) -> first_picture.Seconds:
        asked.append((model, prompt))
        return first_picture.Seconds(*seconds[len(asked) - 1])

    monkeypatch.setattr(first_picture, "measure", measure)
    out = tmp_path / "out.json"
    assert main(["bench", "first-picture", "--runs", "3", "--model", "x", "-o", str(out)]) == 0
    assert asked == [("x", "a red bell")] * 4
    assert capsys.readouterr().out == (
        "load          2.50 s (2.00 to 3.00)\n"
        "first         1.25 s (1.00 to 1.50)\n"
        "second        0.50 s (0.50 to 0.75)\n"
        "difference    0.75 s (0.25 to 1.00)\n"
        "processor time; medians of 3 processes\n"
    )
    stored = json.loads(out.read_text())["runs"]
    assert stored == [{"load": a, "first": b, "second": c} for a, b, c in seconds[1:]]


@pytest.mark.slow
def test_a_process_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "first-picture", "--model", "no-such-model"]) == 2
    said = capfd.readouterr().err
    assert "no-such-model" in said
    assert re.search(
        r"error: cm3 bench first-picture: the measured process exited with 1\n"
        r"  next: see its message above; does `cm3 generate --model no-such-model` work\?\n$",
        said,
    )


def test_a_process_measures_itself() -> None:
    """With a stand-in for the package: each part takes time."""
    stand_in = (
        "import sys, types, time\n"
        "def spend(*_, **__):\n"
        "    end = time.process_time() + 0.01\n"
        "    while time.process_time() < end: pass\n"
        "    return types.SimpleNamespace(generate=spend)\n"
        "sys.modules['cm3core'] = types.SimpleNamespace(load=spend)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_picture, "_PROCESS", stand_in + first_picture._PROCESS)
        seconds = first_picture.measure(None, "a bell")
    assert min(seconds.load, seconds.first, seconds.second) >= 0.01
