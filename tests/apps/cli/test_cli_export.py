"""`cm3 export`: what is shipped of a run, and that it works elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError
from cm3core.files import write_text
from cm3core.outputs import claim_file
from cm3core.plugins import load_registry
from cm3run.checkpoint import open_checkpoint
from cm3run.checkpoint.exporting import check_target, write_model
from cm3run.checkpoint.layout import find_checkpoint
from cm3run.checkpoint.tensors import read_tensors
from messages import tells
from squares import PARTS

PLUGIN = PARTS / "train_parts.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run in `run`."""
    folder = tmp_path_factory.mktemp("export")
    options = ["train.steps=1", "train.validation_splits=[]", f"data.cache_dir={folder / 'cache'}"]
    recipe = str(PARTS / "squares.yaml")
    assert cm3("train", recipe, "-o", str(folder / "run"), "--quiet", *options) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def cm3(*arguments: str) -> int:
    return main(["--plugin", str(PLUGIN), *arguments])


@pytest.mark.parametrize(
    ("dtype", "type_"), [([], torch.float16), (["--dtype", "fp32"], torch.float32)]
)
def test_a_model_to_share(
    folder: Path, capsys: pytest.CaptureFixture[str], dtype: list[str], type_: torch.dtype
) -> None:
    capsys.readouterr()
    assert cm3("export", "run", "-o", "models/squares", *dtype) == 0
    assert capsys.readouterr().out == "models/squares\n"
    weights = read_tensors(folder / "models/squares/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {type_}
    assert not list((folder / "models").rglob("optimizer*"))
    moved = shutil.copytree(folder / "models/squares", folder / "elsewhere", dirs_exist_ok=True)
    made = ["red corner 1", "--n", "1", "--num-retrieved", "0"]
    assert cm3("generate", *made, "--model", str(moved), "-o", "out") == 0
    # an exported model is a model like any other
    assert cm3("export", "elsewhere", "-o", "models/again", "--dtype", "fp32") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "rnu", "-o", "x"], "error: rnu: does not exist\n  next: name a run's folder"),
        (
            ["export", "run", "-o", "cache"],
            "error: cache: exists and is not a model folder",
        ),
        (
            ["export", "bundled:icons65", "-o", "x"],
            "error: model 'bundled:icons65': no installed plugin ships it",
        ),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert cm3(*arguments) == 2
    assert tells(capsys.readouterr().err, f"... {message}")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("target", "cause", "next_step"),
    [
        ("run/checkpoints/step-00000001", "is a run's checkpoint", "name a new folder"),
        ("copy", "is a run's checkpoint", "name a new folder"),
        ("run/checkpoints/step-00000009", "is among a run's checkpoints", "name a new folder"),
        (
            "mine",
            "is there already, and was not written by cm3leon or was changed since (and 2 more)",
            "move it, or name another folder",
        ),
    ],
)
def test_nothing_else_is_lost(
    target: str,
    cause: str,
    next_step: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run would not resume from a checkpoint without its optimiser."""
    if target == "copy":
        shutil.copytree(folder / "run/checkpoints/step-00000001", folder / target)
    if target == "mine":
        assert cm3("export", "run", "-o", target) == 0
        for name in (".git", "b"):
            (folder / target / name).mkdir()
            (folder / target / name / "config").write_text("of mine")
        (folder / target / "README.md").write_text("of mine")
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert cm3("export", "run", "-o", target) == 2
    place = "mine/.git/config" if target == "mine" else target
    assert capsys.readouterr().err == f"error: {place}: {cause}\n  next: {next_step}\n"
    assert sorted(folder.rglob("*")) == before


def test_an_older_model_is_replaced_with_its_card(folder: Path) -> None:
    assert cm3("export", "run", "-o", "old") == 0
    for name in ("CARD.md", "CARD-faces.png"):  # as `cm3 eval card` writes them
        claim_file(folder / "old" / name)
        write_text(folder / "old" / name, "of older weights")
    assert cm3("export", "run", "-o", "old") == 0
    assert not list((folder / "old").glob("CARD*"))


@pytest.mark.parametrize("name", ["CARD.md", "model.safetensors", "plugins/notes.txt"])
def test_a_model_with_files_of_somebody_else_is_not_replaced(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their names."""
    target = f"of-{Path(name).stem}"
    assert cm3("export", "run", "-o", target) == 0
    (folder / target / name).parent.mkdir(exist_ok=True)
    (folder / target / name).write_text("mine")
    assert cm3("export", "run", "-o", target) == 2
    assert name in capsys.readouterr().err
    assert (folder / target / name).read_text() == "mine"


def test_the_folder_may_be_a_link_or_this_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model lies where the link leads to, on a larger disk for example."""
    (folder / "disk").mkdir()
    (folder / "link").symlink_to("disk")
    assert cm3("export", "run", "-o", "link") == 0
    assert (folder / "link").is_symlink()
    assert (folder / "disk/state.json").is_file()
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    assert cm3("export", "../run", "-o", ".") == 0
    assert (folder / "here/state.json").is_file()


def test_weights_that_half_precision_can_not_hold(folder: Path) -> None:
    checkpoint = find_checkpoint(folder / "run")
    weights = read_tensors(checkpoint / "model.safetensors")
    name = sorted(weights)[0]
    weights[name][0] = 1e5
    with pytest.raises(CheckpointError) as caught:
        write_model(checkpoint, folder / "large", weights, "fp16")
    assert tells(caught.value, f"weights {name}: are up to ... 05")
    assert not (folder / "large").exists()
    write_model(checkpoint, folder / "large", weights, "bf16")
    open_checkpoint(folder / "large", load_registry([PLUGIN]))


def test_a_link_that_leads_back_to_itself(tmp_path: Path) -> None:
    (loop := tmp_path / "loop").symlink_to(loop)
    with pytest.raises(CheckpointError) as caught:
        check_target(loop, "fp16")
    assert tells(caught.value, f"{loop}: is a link that leads back")


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "out\udcff"
    with pytest.raises(CheckpointError) as caught:
        check_target(folder, "fp16")
    assert tells(caught.value, f"{str(folder)!a}: has a name ... UTF")


@pytest.mark.parametrize("command", [["data", "validate"], ["memory", "build", "-o", "bank"]])
def test_data_whose_name_is_not_utf8(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "out\udcff").mkdir()
    (folder / "a.txt").write_text("red")
    assert main([*command, str(folder)]) == 2
    error = capsys.readouterr().err
    assert "not UTF-8" in error
    assert "next: rename the folder" in error
