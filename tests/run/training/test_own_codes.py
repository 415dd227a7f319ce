"""`cm3 train` trains the image codes first where a recipe says for how long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.model import load
from cm3run.training import train
from messages import tells
from picture_files import picture, write

OWN = [
    "dataset=folder",
    "dataset.names_as_captions=true",
    "dataset.split=all",
    "image_tokenizer.weights=null",
    "image_tokenizer.train_minutes=0.001",
    "image_tokenizer.stage_size=32",
    "train.steps=1",
    "train.validation_documents=1",
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(
        tmp_path / "own", {f"{name}.png": picture(place) for place, name in enumerate("abcdefgh")}
    )


def only_codes(run: Path) -> None:
    """Remove everything from a run's folder but its codes."""
    for path in run.iterdir():
        if path.is_dir() and path.name != "codes":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


@pytest.mark.slow
def test_codes_come_first_and_the_run_keeps_them(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codes are trained once; the checkpoint has them, so that the run resumes and draws without their folder."""
    run = tmp_path / "run"
    command = ["train", "residual-tiny", "-o", str(run), *OWN, f"dataset.path={pictures}"]
    assert main(command) == 0
    assert (
        "first trains the image codes for 0.001 minutes, on 8 pictures" in capsys.readouterr().err
    )
    done = json.loads((run / "codes" / "trained.json").read_text())
    assert main(["tokenizer", "eval", str(run / "codes"), "-o", str(tmp_path / "kept.png")]) == 0
    assert "8 pictures of split 'all'" in capsys.readouterr().out
    before = load(run).components.image_tokenizer.fingerprint
    shutil.rmtree(run / "codes")
    longer = [one.replace("train.steps=1", "train.steps=2") for one in command]
    assert main(longer) == 0
    assert "first trains" not in capsys.readouterr().err
    assert not (run / "codes").exists()
    assert load(run).components.image_tokenizer.fingerprint == before
    assert done.keys() == {"settings"}


@pytest.mark.slow
def test_codes_that_are_done_are_taken_and_others_are_refused(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that stopped between its codes and its first step."""
    registry, run = load_registry(), tmp_path / "run"
    recipe = compose("residual-tiny", [*OWN, f"dataset.path={pictures}"], registry=registry)
    train(recipe, run, registry, progress=False)
    weights = (run / "codes" / "model.safetensors").read_bytes()
    only_codes(run)
    train(recipe, run, registry)
    assert "first trains" not in capsys.readouterr().err
    assert (run / "codes" / "model.safetensors").read_bytes() == weights
    other = compose(
        "residual-tiny",
        [*OWN, f"dataset.path={pictures}", "image_tokenizer.seed=7"],
        registry=registry,
    )
    only_codes(run)
    with pytest.raises(CheckpointError) as caught:
        train(other, run, registry, progress=False)
    assert tells(
        caught.value,
        "... holds image codes that were trained with other settings of image_tokenizer ... start in another folder (-o), or ...",
    )


def test_without_minutes_weights_are_asked_for(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [one for one in OWN if "minutes" not in one]
    command = ["train", "residual-tiny", "-o", str(tmp_path / "run"), *own]
    assert main([*command, f"dataset.path={pictures}"]) != 0
    assert "image_tokenizer.weights: is null, and has to name" in capsys.readouterr().err
