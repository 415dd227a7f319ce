"""Hostile inputs, some of every category, in processes of their own; see `__main__.py` for more of
them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzzing.prepared import Done, Prepared, alone

HERE = Path(__file__).parent
#: Of the default run. Failures found with other seeds become tests of what failed.
SEED = 1


def fuzz(run: Callable[..., Done], tmp_path: Path, *arguments: str) -> str:
    """What the fuzzer prints; it must find nothing."""
    out = ("--out", str(tmp_path / "failures"))
    done = run(HERE / "__main__.py", *out, *arguments, tmp=tmp_path, seconds=900)
    assert done.code == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_case_breaks_a_law(prepared: Prepared, tmp_path: Path) -> None:
    shown = fuzz(prepared.run, tmp_path, "--seed", str(SEED), "--cases", "2", "--minutes", "10")
    counts = dict(re.findall(r"^(\w+) +(\d+) cases, 0 failures", shown, re.M))
    assert len(counts) == 10, shown
    assert set(counts.values()) == {"2"}
    assert not list(tmp_path.glob("cm3-*")), "it cleans up after itself"
    assert not (tmp_path / "failures").exists()


@pytest.mark.extended
def test_more_cases_break_no_law(tmp_path: Path) -> None:
    fuzz(alone, tmp_path, "--seed", str(SEED + 1), "--cases", "12", "--minutes", "10")
