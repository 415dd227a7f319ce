"""Plugin files that a checkpoint carries: written with it, shown, and run only when trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

import ul2_plugin
from cm3apps.cli import main as cli
from cm3core.errors import CheckpointError, PluginError, TrustError
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.discovery import FILE_MODULE
from cm3core.plugins.registry import COMPONENTS
from cm3core.recipe import compose
from cm3run.checkpoint import export_model, latest_checkpoint
from cm3run.checkpoint.carried import CARRIED, MOST_BYTES, read_carried
from cm3run.model.model import load
from cm3run.training import train
from messages import tells

UL2 = Path(ul2_plugin.__file__)
PARTS = Path(__file__).parents[2] / "fixtures" / "train" / "train_parts.py"
SHA = hashlib.sha256(UL2.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def carrying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model whose objective is a plugin file."""
    registry = load_registry([PARTS, UL2], environ={})
    cache = tmp_path_factory.mktemp("cache")
    recipe = compose(
        str(PARTS.parent / "squares.yaml"),
        [
            f"data.cache_dir={cache}",
            "train.steps=1",
            "train.validation_splits=[]",
            "objective=ul2",
        ],
        registry=registry,
    )
    out = tmp_path_factory.mktemp("run") / "out"
    train(recipe, out, registry, progress=False)
    return export_model(out, tmp_path_factory.mktemp("export") / "model", "fp32")


@pytest.fixture
def model(carrying: Path, tmp_path: Path) -> Path:
    """A copy of the model, without the module that training left in memory."""
    sys.modules.pop(f"{FILE_MODULE}ul2_plugin", None)
    return Path(shutil.copytree(carrying, tmp_path / "model"))


@pytest.fixture
def registry() -> Registry:
    """Without the plugin of the objective."""
    return load_registry([PARTS], environ={})


def test_what_the_recipe_needs_is_carried(model: Path) -> None:
    assert sorted(path.name for path in (model / CARRIED).iterdir()) == [
        "train_parts.py",
        "ul2_plugin.py",
    ]
    assert (model / CARRIED / UL2.name).read_bytes() == UL2.read_bytes()


def test_plugins_that_the_recipe_does_not_need_are_not(
    small_run: Path, small_registry: Registry
) -> None:
    newest = latest_checkpoint(small_run)
    assert newest is not None
    assert [one.path.name for one in read_carried(newest)] == ["train_parts.py"]


def test_it_is_not_run_unasked(model: Path, registry: Registry) -> None:
    """The refusal shows hash and path, and how to go on; the file would have left a trace."""
    path, trace = model / CARRIED / UL2.name, model.parent / "ran"
    path.write_text(f"open({str(trace)!r}, 'w')\n" + path.read_text())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError) as error:
        load(model, registry=registry)
    assert tells(
        error.value.cause,
        f"needs a plugin that is not loaded; its code is in the checkpoint: {path} (SHA-256 {sha}).",
    )
    assert tells(error.value.next_step, f"read it (less {path} ... --trust-plugin {sha}")
    with pytest.raises(CheckpointError):  # a hash of what it was before
        load(model, registry=registry, trust_plugins=[SHA])
    assert not trace.exists()
    load(model, registry=registry, trust_plugins=[sha])
    assert trace.exists()


@pytest.mark.parametrize("digits", [SHA, SHA[:16], SHA.upper()])
def test_a_trusted_file_is_run(model: Path, registry: Registry, digits: str) -> None:
    opened = load(model, registry=registry, trust_plugins=[digits])
    assert opened.components.vocabulary.control == ("R", "S", "X")
    # for this model alone
    assert "ul2" not in registry.names("objective")


@pytest.mark.parametrize(
    ("digits", "cause"),
    [
        ("0" * 64, "is not the SHA-256 of a plugin file in "),
        (SHA[:8], "is not a SHA-256 of 16 to 64 hexadecimal digits"),
        ("", "is not a SHA-256 of 16 to 64 hexadecimal digits"),
        ("all", "is not a SHA-256 of 16 to 64 hexadecimal digits"),
    ],
)
def test_nothing_but_the_hash_trusts_it(
    model: Path, registry: Registry, digits: str, cause: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        load(model, registry=registry, trust_plugins=[digits])
    assert error.value.cause.startswith(cause)
    assert f"has {SHA}" in error.value.next_step
    assert f"{FILE_MODULE}ul2_plugin" not in sys.modules


def test_a_plugin_of_ones_own_takes_its_place(model: Path) -> None:
    (model / CARRIED / UL2.name).write_text("raise SystemExit\n")
    load(model, registry=load_registry([PARTS, UL2], environ={}))


def test_a_trusted_file_that_is_broken_names_itself(model: Path, registry: Registry) -> None:
    path = model / CARRIED / UL2.name
    path.write_text("1 / 0\n")
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(PluginError, match=r"ul2_plugin\.py.*ZeroDivisionError"):
        load(model, registry=registry, trust_plugins=[sha])


@pytest.mark.parametrize("what", ["link", "folder", "name", "large", "many"])
def test_what_is_no_small_plain_file_is_refused(model: Path, registry: Registry, what: str) -> None:
    folder = model / CARRIED
    if what == "link":
        (folder / UL2.name).unlink()
        (folder / UL2.name).symlink_to(UL2)
    elif what == "folder":
        (folder / "more").mkdir()
    elif what == "name":
        (folder / "a-b.py").touch()
    elif what == "large":
        (folder / "large.py").write_bytes(b"#" * (MOST_BYTES + 1))
    else:
        for number in range(8):
            (folder / f"a{number}.py").touch()
    refused = (
        (TrustError, "target of the link")
        if what == "link"
        else (
            CheckpointError,
            "is not one of at most 8 plugin files",
        )
    )
    for trusted in ([], [SHA]):
        kind, message = (CheckpointError, "is not one of") if trusted else refused
        with pytest.raises(kind, match=message):
            load(model, registry=registry, trust_plugins=trusted)


def test_a_model_that_needs_none_of_them_does_not_look(model: Path) -> None:
    (model / CARRIED / "a-b.py").touch()
    load(model, registry=load_registry([PARTS, UL2], environ={}))


def test_a_large_plugin_is_left_out(tmp_path: Path, small_registry: Registry) -> None:
    from cm3run.checkpoint.carried import write_carried

    large = tmp_path / "large_ul2.py"
    large.write_bytes(UL2.read_bytes() + b"#" * MOST_BYTES)
    registry = load_registry([PARTS, large], environ={})
    recipe = compose(str(PARTS.parent / "squares.yaml"), ["objective=ul2"], registry=registry)
    write_carried(tmp_path, recipe, registry)
    assert [path.name for path in (tmp_path / CARRIED).iterdir()] == ["train_parts.py"]


def test_the_command_line_asks_for_the_hash(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--plugin", str(PARTS), "generate", "a", "--model", str(model)]
    assert cli.main([*command, "-o", str(model.parent / "out")]) == 2
    assert f"--trust-plugin {SHA}" in capsys.readouterr().err


def test_old_checkpoints_carry_nothing(model: Path, registry: Registry) -> None:
    shutil.rmtree(model / CARRIED)
    (model / COMPONENTS).unlink()
    assert read_carried(model) == []
    with pytest.raises(PluginError, match="no objective is called 'ul2'"):
        load(model, registry=registry)
    assert json.loads((model / "state.json").read_text())["files"]
