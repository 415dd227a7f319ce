"""What captions are answered with on the shipped memory, as docs/icons.md says; `python docs/_answers.py` measures more."""

from __future__ import annotations

import json

import _answers
import pytest

from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose


def test_the_recipe_has_the_value_that_was_chosen() -> None:
    chosen = json.loads(_answers.FILE.read_text())["same_above"]
    registry = load_registry()
    assert compose("icons-svg", registry=registry).retriever.meanings.same_above == chosen
    assert compose("icons-tuned", registry=registry).retriever.same_above == chosen


def test_answers_by_hand() -> None:
    def case(score: float, in_hand: float) -> _answers.Case:
        return {"score": score, "in_hand": in_hand}

    cases = [case(0.95, 0.9), case(0.95, 0.2), case(0.85, 0.85)]
    assert [_answers.kind(one, 0.9) for one in cases] == ["found", "restyled", "composed"]
    right = [{"prompt": str(number), **case(0.3, 0.3)} for number in range(400)]
    wrong = [{"prompt": f"wrong {number}", **case(0.83, 0.1)} for number in range(40)]
    found = dict.fromkeys(_answers.SPLITS, right) | {"unseen": [*right, *wrong]}
    assert _answers.chosen(found) == 0.84


@pytest.mark.slow
def test_the_shipped_memory_tells_what_it_has() -> None:
    kinds = {
        split: [_answers.kind(case, 0.9) for case in cases]
        for split, cases in _answers.measured(40).items()
    }
    assert set(kinds["train"]) == {"found"}
    for split in _answers.NO_DRAWING:
        assert kinds[split].count("found") <= 2
    for split in _answers.NO_THING:
        assert kinds[split].count("composed") >= 39
    assert kinds["restyle"].count("restyled") >= 28
