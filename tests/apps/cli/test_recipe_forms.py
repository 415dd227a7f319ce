"""What users of Hydra type: the forms of overrides in all commands that take them, and options of other tools."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from cm3apps.cli._dataset import recipe_of
from cm3apps.cli.main import main
from cm3apps.plugin_check.overrides import config_of
from cm3core.config.schema import to_plain
from cm3core.plugins.discovery import load_registry
from messages import tells


@pytest.fixture
def cm3(capsys):
    def run(line: str, code: int = 0) -> str:
        assert main(shlex.split(line)) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


FORMS = [
    ("+train.steps=5", "train.steps=5"),
    ("++train.steps=5", "train.steps=5"),
    ("~retriever", "retriever=null"),
    ("sampler/cfg", "sampler=cfg"),
    ("'train.betas[0]=0.8'", "'train.betas=[0.8, 0.95]'"),
    ("'sampler={name: cd_k, k: 5}'", "sampler=cd_k sampler.k=5"),
]


@pytest.mark.parametrize(("form", "same"), FORMS)
def test_forms(form: str, same: str, cm3) -> None:
    assert cm3(f"recipe hash tiny {form}") == cm3(f"recipe hash tiny {same}")
    assert cm3(f"recipe show tiny --json {form}") == cm3(f"recipe show tiny --json {same}")


def test_a_hash_is_printed_alone(cm3) -> None:
    assert cm3("recipe hash tiny") in cm3("recipe diff tiny tiny").replace(")", "\n")
    assert len(cm3("recipe hash tiny").strip()) == 12


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (
            "train --config mine.yaml -o out train.steps=5",
            "cm3 train mine.yaml -o out train.steps=5",
        ),
        ("train --config=mine.yaml", "cm3 train mine.yaml"),
        ("train --config-name mine --config-path conf", "cm3 train conf/mine.yaml"),
        ("train -cn tiny +train.steps=5", "cm3 train tiny +train.steps=5"),
        ("recipe check --config-name tiny", "cm3 recipe check tiny"),
        ("tune runs/base --config pairs.yaml", "cm3 tune runs/base pairs.yaml"),
        ("train tiny --cfg job train.steps=5", "cm3 recipe show tiny train.steps=5"),
        ("train tiny -m retriever=none,bm25 -o out", "cm3 sweep tiny retriever=none,bm25"),
        (
            "recipe check --multirun tiny train.seed=1,2 sampler=cfg",
            "cm3 sweep tiny train.seed=1,2 sampler=cfg",
        ),
        ("train tiny -m train.steps=5", "cm3 train tiny train.steps=5"),
        ("tune runs/base tiny -m train.seed=1,2", "cm3 tune runs/base tiny train.seed=1"),
        ("train tiny retriever=none,bm25", "cm3 sweep tiny retriever=none,bm25"),
    ],
)
def test_options_of_other_tools(line: str, step: str, cm3, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cm3(line, 2).endswith(f"{step}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_file_stays_in_the_line(cm3, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("CM3_API = 1\n")
    line = f"--plugin {plugin} train tiny -m train.seed=1,2"
    assert cm3(line, 2).endswith(f"write cm3 --plugin {plugin} sweep tiny train.seed=1,2\n")


def test_an_option_that_nobody_has(cm3) -> None:
    assert tells(
        cm3("train tiny --confg mine.yaml", 2), "error: cm3 train: unrecognized ... --confg"
    )
    assert tells(cm3("train tiny --steps 5 --foo", 2), "error: cm3 train: unrecognized ... --foo")
    assert tells(cm3("recipe show tiny more", 2), "error: command line: more: is not key=value")


def test_a_task_takes_the_same_forms(cm3) -> None:
    record = shlex.quote(json.dumps({"question": "red?", "answer": "yes"}))
    paper = cm3(f"task show vqa --record {record} task.layout=paper")
    assert cm3(f"task show vqa --record {record} +task.layout=paper") == paper


def test_data_sets_take_the_same_forms() -> None:
    registry = load_registry()
    overrides = ["+dataset.image_size=32", "dataset.templates[0]=x {label}", "~dataset.split"]
    for target in ("dataset/emoji", "+dataset=emoji"):
        config = recipe_of(target, overrides, registry).dataset
        assert config is not None
        assert to_plain(config)["image_size"] == 32
        assert to_plain(config)["templates"][:2] == ["x {label}", "{label}"]


def test_checks_of_plugins_take_the_same_forms() -> None:
    registry = load_registry()
    config = config_of(
        "dataset", "emoji", ["+emoji.image_size=32", "dataset.templates[0]=x"], registry
    )
    assert to_plain(config)["image_size"] == 32
    assert to_plain(config)["templates"][:2] == ["x", "{label}"]


def test_a_recipe_on_the_standard_input(cm3, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "recipe hash - train.steps=5",
        "recipe diff tiny - train.steps=5",
        "recipe check -",
    ):
        text = "x-top: &top {top_p: 0.5}\nextends: tiny\nsampler: {<<: *top}\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        shown = cm3(line)
    assert shown.startswith("stdin: ")
    monkeypatch.setattr(sys, "stdin", io.StringIO("extends: tiny\ndecoder: {d_modle: 4}\n"))
    assert tells(cm3("recipe check -", 2), "error: standard input: decoder.d_modle: ... 'd_model'")


def test_a_file_with_defaults(cm3, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("defaults:\n  - tiny\n  - sampler: cfg\n  - _self_\ntrain: {steps: 5}\n")
    told = cm3(f"recipe check {path}", 2)
    assert told.endswith("write instead:\n    extends: [tiny]\n    sampler: cfg\n")
    path.write_text("extends: [tiny]\nsampler: cfg\ntrain: {steps: 5}\n")
    assert cm3(f"recipe hash {path}") == cm3("recipe hash tiny sampler=cfg train.steps=5")


# ---- JSON


def test_show_as_json(cm3) -> None:
    shown = json.loads(cm3("recipe show tiny train.steps=5 train.clip_norm=.inf --json"))
    assert (shown["name"], shown["train"]["steps"]) == ("tiny", 5)
    assert shown["train"]["clip_norm"] == ".inf"
    origins = json.loads(cm3("recipe show tiny train.steps=5 --origin --json"))
    assert origins["train.steps"] == {"value": 5, "origin": "command line"}
    assert origins["train.batch_rows"] == {"value": 4, "origin": "tiny.yaml"}


def test_diff_with_overrides_and_as_json(cm3) -> None:
    assert cm3("recipe diff tiny tiny train.steps=5") == "train.steps: 20 -> 5\n"
    shown = json.loads(cm3("recipe diff tiny tiny sampler=null train.steps=5 --json"))
    assert shown["a"] == {"name": "tiny", "hash": cm3("recipe hash tiny").strip()}
    rows = {row.pop("key"): row for row in shown["differences"]}
    assert rows["train.steps"] == {"a": 20, "b": 5}
    assert rows["sampler.name"] == {"a": "top_p"}  # b has no such key


def test_list_as_json(cm3) -> None:
    rows = json.loads(cm3("recipe list --json"))
    assert [row["name"] for row in rows] == [
        line.split()[0] for line in cm3("recipe list").splitlines()
    ]
    assert all(Path(row["path"]).is_file() and row["description"] for row in rows)
