"""`cm3 eval --memory-split`: what is searched when a held-out picture is drawn, and that it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3run.model import Model, load
from messages import tells

PROTOCOL: dict[str, Any] = {
    "format": "cm3 protocol 1",
    "name": "two",
    "title": "two emoji",
    "task": {
        "name": "documents",
        "dataset": None,  # the model's own
        "split": "comp",
        "num": 2,
    },
    "size": 64,
    "seed": 2023,
    "scores": [{"metric": {"name": "nats", "modality": "image"}}],
}


@pytest.fixture(scope="module")
def emoji() -> Model:
    return load("bundled:emoji64")


@pytest.fixture
def evaluate(tmp_path: Path, emoji: Model, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("cm3run.model.load", lambda *_, **__: emoji)
    path = tmp_path / "two.json"

    def run(split: str, place: str, measured: str = "comp") -> int:
        task = {**PROTOCOL["task"], "split": measured}
        path.write_text(json.dumps({**PROTOCOL, "task": task}))
        arguments = ["eval", "bundled:emoji64", str(path), "--num-retrieved", "1"]
        return main([*arguments, "--memory-split", split, "-o", str(tmp_path / place)])

    return run


@pytest.mark.slow
def test_a_split_without_the_references_is_searched_and_recorded(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("train", "held-out") == 0
    scores = json.loads((tmp_path / "held-out" / "scores.json").read_text())
    assert scores["model"]["memory_split"] == "train"
    assert scores["leakage"] == {
        "retrieves": True,
        "documents": 185,
        "compared_by_appearance": True,
        "leaks": [],
    }
    # the measurement is the same, whatever is searched
    assert "memory" not in json.dumps([scores["measurement"], scores["scores"][0]["measurement"]])
    capsys.readouterr()
    # another memory is another evaluation
    assert evaluate("comp", "held-out") == 2
    assert "is of an evaluation with another model, protocol or setting" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_refused_claims_no_folder(evaluate: Any) -> None:
    """The next step of the message is taken in the same folder."""
    assert evaluate("all", "refused") == 2
    assert evaluate("train", "refused") == 0


def test_a_split_with_the_references_is_refused(
    evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("all", "leaks") == 2
    told = capsys.readouterr().err
    assert tells(told, "... error: the model's memory: has 2 of the 2")
    assert tells(told, "... next: retrieve from a ... --memory-split train ... --bank")
    assert evaluate("trian", "none") == 2
    assert tells(capsys.readouterr().err, "... error: split: the model's data ... 'trian'")


def test_what_is_searched_already_is_not_advised(
    evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("train", "leaks", measured="train") == 2
    told = capsys.readouterr().err
    assert tells(told, "... next: retrieve from a ... --bank ... --num-")
