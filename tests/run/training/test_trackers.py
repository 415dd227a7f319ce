"""Trackers of a run: which events they get, in which order, and that none of them changes a training."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3core.errors import CM3Error, MissingPackageError, PluginError, RecipeError
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import compose
from cm3run.checkpoint import latest_checkpoint
from cm3run.model import load
from cm3run.training import TrainingInterrupted, train
from messages import tells
from squares import PARTS

#: Trackers that write a line for each event into a file, one of which fails and one of which draws.
PLUGIN = '''
import json
import random
from dataclasses import dataclass

from cm3core.errors import MissingPackageError
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import Tracker, TrackerConfig

CM3_API = 1
METHODS = [name for name in vars(Tracker) if name.startswith("on_")] + ["flush", "close"]


@dataclass(kw_only=True)
class LinesConfig(TrackerConfig):
    """Every event.

    Args:
        file: name of the file.
        fails_at: event at which it fails.
    """

    is_default = True
    file: str = "events.jsonl"
    fails_at: str = ""

    def check(self):
        from cm3core.errors import RecipeError

        super().check()
        if not self.file:
            raise RecipeError("tracker.file", "is empty", "name one")

    def build(self):
        return Lines(self)


class Lines(Tracker):
    def __init__(self, config):
        self.config = config


def told(method):
    def tell(self, event=None):
        import torch

        torch.rand(3), random.random()
        if method == "on_start":
            self.path = event.folder / self.config.file
        line = {"method": method, "step": getattr(event, "step", None)}
        if hasattr(event, "values"):
            line["values"] = sorted(event.values)
        if method == "on_start":
            line["facts"] = [event.name, event.recipe_hash, event.recipe["train"]["steps"],
                             event.num_parameters == event.num_trained > 0, event.command]
        if method == "on_picture":
            line["shape"] = list(event.pixels_HWC.shape)
        if method in ("on_checkpoint",):
            line["there"] = (event.folder / "state.json").is_file()
        with self.path.open("a") as file:
            file.write(json.dumps(line) + chr(10))
        if method == self.config.fails_at:
            raise SystemExit(3)
    return tell


for method in METHODS:
    setattr(Lines, method, told(method))


@dataclass(kw_only=True)
class AbsentConfig(TrackerConfig):
    """Of a service whose package is not installed."""

    def build(self):
        raise MissingPackageError("tracker.absent", "the package 'absent' is not installed", "pip install absent")


@hookimpl
def cm3_trackers():
    return {"lines": LinesConfig, "absent": AbsentConfig}
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "telling.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def registry(plugin: Path) -> Registry:
    return load_registry([PARTS / "train_parts.py", plugin], environ={})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(out: Path, registry: Registry, cache: Path, *overrides: str, **options: Any) -> Any:
    own = [
        "train.steps=6",
        "train.log_every_steps=2",
        "train.validate_every_steps=3",
        "train.validation_splits=[held]",
        "train.checkpoint_every_steps=3",
        f"data.cache_dir={cache}",
    ]
    recipe = compose(str(PARTS / "squares.yaml"), [*own, *overrides], registry=registry)
    return train(recipe, out, registry, progress=False, command="again", **options)


def lines(out: Path, file: str = "events.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / file).read_text().splitlines()]


def told(out: Path, file: str = "events.jsonl") -> list[tuple[str, int | None]]:
    return [
        (line["method"].removeprefix("on_"), line["step"])
        for line in lines(out, file)
        if line["method"] != "on_step"
    ]


def weights(out: Path) -> str:
    newest = latest_checkpoint(out)
    assert newest is not None
    files = sorted(newest.rglob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


LINES = "train.trackers=[lines]"


def test_every_event_in_order_and_the_training_is_the_same(
    tmp_path: Path, registry: Registry, cache: Path
) -> None:
    """The tracker draws from torch's generator at every event; the weights are those without it."""
    run(tmp_path / "none", registry, cache, "train.trackers=[]", "decoder.dropout=0.2")
    run(
        tmp_path / "some",
        registry,
        cache,
        LINES,
        "decoder.dropout=0.2",
        "train.sample_every_steps=4",
    )
    assert weights(tmp_path / "none") == weights(tmp_path / "some")
    assert not (tmp_path / "some" / "tensorboard").exists(), "only what is named"
    assert told(tmp_path / "some") == [
        ("start", 0),
        ("metrics", 2),
        ("validation", 3),
        ("flush", None),
        ("checkpoint", 3),
        ("metrics", 4),
        ("picture", 4),
        ("metrics", 6),
        ("validation", 6),
        ("flush", None),
        ("checkpoint", 6),
        ("end", 6),
        ("close", None),
    ]
    recorded = lines(tmp_path / "some")
    assert [line["step"] for line in recorded if line["method"] == "on_step"] == [1, 2, 3, 4, 5, 6]
    by_method = {line["method"]: line for line in recorded}
    name, _, steps, whole, command = by_method["on_start"]["facts"]
    assert (name, steps, whole, command) == ("squares", 6, True, "again")
    assert "train/image_loss" in by_method["on_metrics"]["values"]
    assert "validation/held/image_loss" in by_method["on_validation"]["values"]
    assert by_method["on_picture"]["shape"][2] == 3
    assert by_method["on_checkpoint"]["there"]


def test_interrupted_and_resumed(tmp_path: Path, registry: Registry, cache: Path) -> None:
    """With other trackers than before: they are no part of what a run must keep."""
    pytest.importorskip("tensorboard", reason="needs pip install 'cm3leon[tensorboard]'")

    def stop(state: Any) -> None:
        if state.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        run(tmp_path, registry, cache, LINES, callbacks=[stop])
    assert told(tmp_path)[-4:] == [
        ("flush", None),
        ("checkpoint", 4),
        ("interrupt", 4),
        ("close", None),
    ]
    run(tmp_path, registry, cache, "train.trackers=[tensorboard, {name: lines, file: later.jsonl}]")
    assert told(tmp_path, "later.jsonl")[0] == ("start", 4)
    assert told(tmp_path, "later.jsonl")[-2:] == [("end", 6), ("close", None)]
    assert (tmp_path / "tensorboard").is_dir()


def test_a_failure_is_told(tmp_path: Path, registry: Registry, cache: Path) -> None:
    def fail(state: Any) -> None:
        raise CM3Error("here", "it broke", "mend it")

    with pytest.raises(CM3Error, match="it broke"):
        run(tmp_path, registry, cache, LINES, callbacks=[fail])
    assert told(tmp_path) == [("start", 0), ("failure", 1), ("close", None)]


@pytest.mark.parametrize(
    "method", ["on_start", "on_step", "on_metrics", "flush", "on_checkpoint", "on_end", "close"]
)
def test_an_error_of_a_tracker_ends_nothing(
    method: str,
    tmp_path: Path,
    registry: Registry,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even SystemExit. The others are told on."""
    one = f"{{name: lines, fails_at: {method}}}"
    result = run(
        tmp_path, registry, cache, f"train.trackers=[{one}, {{name: lines, file: b.jsonl}}]"
    )
    assert result.step == 6
    err = capsys.readouterr().err
    assert err.count("is disabled from now on") == 1
    assert f"the tracker 'lines' is disabled from now on, because its {method} failed (3)" in err
    assert told(tmp_path, "b.jsonl")[-2:] == [("end", 6), ("close", None)]
    last = "close" if method != "close" else method
    assert lines(tmp_path)[-1]["method"] == last


def test_the_default_is_cm3leons_own(tmp_path: Path, registry: Registry, cache: Path) -> None:
    """A plugin's `is_default` sees nobody's training unasked."""
    pytest.importorskip("tensorboard", reason="needs pip install 'cm3leon[tensorboard]'")
    run(tmp_path, registry, cache)
    assert (tmp_path / "tensorboard").is_dir()
    assert not (tmp_path / "events.jsonl").exists()


def test_what_is_missing_is_said_before_training(
    tmp_path: Path, registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CM3Error, match="the package 'absent' is not installed"):
        run(tmp_path, registry, cache, "train.trackers=[absent]")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError) as error:
        run(tmp_path, registry, cache, "train.trackers=[tensorboard]")
    assert tells(error.value, "tracker 'tensorboard': the package 'tensorboard'")
    assert latest_checkpoint(tmp_path) is None


def test_without_tensorboard_a_run_that_did_not_ask_for_it_trains(
    tmp_path: Path,
    registry: Registry,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(tmp_path, registry, cache).step == 6
    assert not (tmp_path / "tensorboard").exists()
    assert tells(
        capsys.readouterr().err,
        "... note: the tracker 'tensorboard' is skipped ... 'cm3leon[tensorboard]'",
    )


def test_checks_name_the_place(registry: Registry) -> None:
    def composed(*overrides: str) -> Any:
        recipe = compose(str(PARTS / "squares.yaml"), overrides, registry=registry)
        recipe.check()
        return recipe

    with pytest.raises(RecipeError) as error:
        composed("train.trackers=[tensorboard, {name: lines, file: ''}]")
    assert str(error.value) == "train.trackers.1.file: is empty\n  next: name one"
    with pytest.raises(PluginError) as error:
        composed("train.trackers=[tensorbord]")
    assert tells(error.value, "command line: train.trackers.0.name: no tracker")
    with pytest.raises(RecipeError) as error:
        composed("tracker=lines")
    assert tells(error.value, "tracker: is not read as a section ... train.trackers")
    plain, named = composed(), composed(LINES)
    assert plain.hash == named.hash
    assert "trackers" not in plain.to_yaml()
    assert "trackers:\n  - name: lines\n    file: events.jsonl" in named.to_yaml()


def test_a_model_opens_without_the_plugin_of_its_trackers(
    tmp_path: Path, plugin: Path, registry: Registry, cache: Path
) -> None:
    """It was for training; its source is not carried along either."""
    run(tmp_path / "out", registry, cache, LINES)
    newest = latest_checkpoint(tmp_path / "out")
    assert newest is not None
    assert [path.name for path in (newest / "plugins").iterdir()] == ["train_parts.py"]
    without = load_registry([PARTS / "train_parts.py"], environ={})
    opened = load(tmp_path / "out", registry=without)
    assert opened.recipe.train.trackers is None
    assert (
        opened.recipe.hash
        == compose(str(tmp_path / "out" / "recipe.yaml"), [], registry=registry).hash
    )


def test_the_command_line(tmp_path: Path, plugin: Path, cache: Path) -> None:
    command = ["--plugin", str(PARTS / "train_parts.py"), "--plugin", str(plugin), "train"]
    recipe = [
        str(PARTS / "squares.yaml"),
        "-o",
        str(tmp_path),
        "--quiet",
        f"data.cache_dir={cache}",
    ]
    assert main([*command, *recipe, "train.steps=1", LINES]) == 0
    assert told(tmp_path)[-1] == ("close", None)
    assert lines(tmp_path)[0]["facts"][-1].startswith("cm3 --plugin")
