"""A run replaces and deletes only what this user's commands wrote; one that began on another machine goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3core.errors import FileError
from cm3run.training.saving import run_lock

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


def train(out: Path, steps: int, *overrides: str) -> int:
    return main(
        [
            *("--plugin", str(PARTS / "train_parts.py"), "train", str(PARTS / "squares.yaml")),
            *("-o", str(out), "--quiet", f"train.steps={steps}", "train.validation_splits=[]"),
            *("train.checkpoint_every_steps=1", "train.keep_checkpoints=2", "train.num_threads=1"),
            *("decoder.context_length=128", "train.log_every_steps=1", *overrides),
        ]
    )


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("recipe.yaml", "components.json", "provenance.json", "metrics.jsonl"),
        *("samples/step-00000004.png", "checkpoints/step-00000001/notes.txt"),
    ],
)
def test_a_new_run_refuses_files_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(FileError) as refused, run_lock(tmp_path):
        pass
    assert refused.value.place == str(tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / ".lock").exists()


def test_a_run_of_another_machine_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints are not deleted, and what is replaced is kept."""
    assert train(tmp_path / "there", 2, "train.learning_rate=0.001") == 0
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    metrics = tmp_path / "here" / "metrics.jsonl"
    with metrics.open("a") as file:  # after the last checkpoint, as a kill leaves it
        file.write('{"step": 3, "loss": 1.0}\n')
    before = metrics.read_text()
    capsys.readouterr()
    assert train(tmp_path / "here", 5, "train.learning_rate=0.001") == 0
    assert "note:" in capsys.readouterr().err
    assert names(tmp_path / "here") == [f"step-0000000{step}" for step in (1, 2, 4, 5)]
    assert (tmp_path / "here" / "metrics-1.jsonl").read_text() == before
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert train(tmp_path / "there", 5, "train.learning_rate=0.001") == 0
    assert names(tmp_path / "there") == ["step-00000004", "step-00000005"]
    assert not list((tmp_path / "there").glob("*-1.*"))


def test_a_changed_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    assert train(tmp_path, 2) == 0
    (tmp_path / "checkpoints" / "step-00000001" / "notes.txt").write_text("mine")
    assert train(tmp_path, 4) == 0
    assert names(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]
    kept = tmp_path / "checkpoints" / "step-00000001" / "notes.txt"
    assert kept.read_text() == "mine"
