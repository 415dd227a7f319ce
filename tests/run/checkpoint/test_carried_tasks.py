"""A model tuned for a task of a `--plugin` file: its checkpoint carries the file, and the task, its metric
and whatever else the file provides are there once it is trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3core.errors import GenerationError
from cm3core.images import save_png
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.discovery import FILE_MODULE
from cm3run.checkpoint import export_model
from cm3run.model import load
from squares import PARTS

PLUGIN = '''
from dataclasses import dataclass

from cm3core.hookspecs import hookimpl
from cm3core.interfaces import Metric, MetricConfig, Score, Task, TaskConfig
from cm3core.interfaces.task import Blank

CM3_API = 1


@dataclass(kw_only=True)
class ShoutConfig(TaskConfig):
    """A picture to its caption, after a word."""

    serves = "caption"
    word: str = "red"

    def build(self):
        return Shout(self.word)


class Shout(Task):
    fields = {"image": "image", "caption": "text"}
    responses = ("caption",)

    def __init__(self, word):
        self.word = word

    def _lines(self, given, rng):
        return [given["image"], (f"{self.word} ", Blank("caption"))]


@dataclass(kw_only=True)
class LengthConfig(MetricConfig):
    """Mean number of letters of the prompts."""

    def build(self):
        return Length()


class Length(Metric):
    needs = (("prompts",),)

    def __init__(self):
        super().__init__()
        self.letters = []

    def _update(self, group, indices, columns):
        self.letters += [len(prompt) for prompt in columns["prompts"]]

    def _merge(self, other):
        self.letters += other.letters

    def _result(self):
        return [Score("letters", sum(self.letters) / len(self.letters), len(self.letters), True)]


@hookimpl
def cm3_tasks():
    return {"shout": ShoutConfig}


@hookimpl
def cm3_metrics():
    return {"letters": LengthConfig}
'''
TRAIN_PARTS = PARTS / "train_parts.py"
SHA = hashlib.sha256(PLUGIN.encode()).hexdigest()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that was tuned for the plugin's task."""
    folder = tmp_path_factory.mktemp("tuned")
    plugin = folder / "shouting.py"
    plugin.write_text(PLUGIN)
    options = ["train.steps=1", "train.validation_splits=[]", f"data.cache_dir={folder / 'cache'}"]
    recipe = str(PARTS / "squares.yaml")
    plugins = ["--plugin", str(TRAIN_PARTS), "--plugin", str(plugin)]
    out = folder / "run"
    command = [*plugins, "train", recipe, "-o", str(out), "--quiet", "task=shout", *options]
    assert main(command) == 0
    return export_model(out, folder / "model", "fp32")


@pytest.fixture
def model(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, without what training left in memory."""
    sys.modules.pop(f"{FILE_MODULE}shouting", None)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tuned, tmp_path / "model"))


@pytest.fixture
def registry() -> Registry:
    return load_registry([TRAIN_PARTS], environ={})


def cm3(*arguments: str, code: int = 0) -> None:
    assert main(["--plugin", str(TRAIN_PARTS), *arguments]) == code


def test_a_trusted_task_is_used(model: Path, registry: Registry) -> None:
    opened = load(model, registry=registry, trust_plugins=[SHA])
    assert (opened.tasks.names, opened.tasks.lost) == (["shout"], {})
    picture = registry.config_class("image_tokenizer", "colours")().build().decode
    import numpy as np

    pixels = picture(np.zeros((1, 16), np.int32))[0]
    text = opened.caption(pixels, max_tokens=4)
    assert opened.do("shout", {"image": pixels}, max_tokens=4)["caption"] == text.text
    assert "shout" not in registry.names("task"), "for this model alone"


def test_without_trust_the_task_says_how_to_get_it(model: Path, registry: Registry) -> None:
    import numpy as np

    opened = load(model, registry=registry)
    with pytest.raises(GenerationError) as error:
        opened.do("shout", {"image": np.zeros((8, 8, 3), np.uint8)})
    assert error.value.cause == "the plugin that provides it is not in use"
    assert f"--trust-plugin {SHA}" in error.value.next_step


def test_commands_list_show_and_use_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ["--model", str(model), "--trust-plugin", SHA]
    cm3("task", "list", *trust)
    assert capsys.readouterr().out.split()[:4] == ["shout", "image", "->", "caption"]
    cm3("task", "show", "shout", *trust, "--record", '{"caption": "blue"}')
    assert "  1  text     red [blue]" in capsys.readouterr().out
    cm3("task", "show", "shout", "task.word=green", *trust, "--record", '{"caption": "blue"}')
    assert "  1  text     green [blue]" in capsys.readouterr().out
    import numpy as np

    save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    cm3("caption", str(tmp_path / "a.png"), *trust, "--max-tokens", "4")


def test_commands_without_trust_name_the_hash(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cm3("task", "list", "--model", str(model))
    assert capsys.readouterr().out == (
        f"shout              the plugin that provides it is not in use; --trust-plugin {SHA} runs "
        f"{model / 'plugins' / 'shouting.py'}; read that file first\n"
    )


def test_an_evaluation_finds_its_metric(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = {
        "format": "cm3 protocol 1",
        "name": "letters",
        "title": "",
        "size": 8,
        "task": {"name": "documents", "dataset": {"name": "squares"}, "split": "held"},
        "scores": [{"metric": {"name": "letters"}}],
    }
    (tmp_path / "letters.json").write_text(json.dumps(protocol))
    command = ["eval", str(model), str(tmp_path / "letters.json"), "-o", str(tmp_path / "out")]
    cm3(*command, code=2)
    assert "no metric is called 'letters'" in capsys.readouterr().err
    cm3(*command, "--trust-plugin", SHA)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert [(row["name"], row["num"]) for row in scores] == [("letters", 5)]
    assert scores[0]["measurement"]["metric"]["name"] == "shouting/letters"
