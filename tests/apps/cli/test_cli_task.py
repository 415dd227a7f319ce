"""`cm3 task`: what is listed and shown, and what is refused."""

from __future__ import annotations

import json
import shlex

import pytest

from cm3apps.cli.main import main
from cm3core.plugins import load_registry
from messages import tells


@pytest.fixture
def cm3(capsys):
    def run(line: str, code: int = 0) -> str:
        assert main(shlex.split(line)) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def test_all_tasks(cm3) -> None:
    lines = cm3("task list").splitlines()
    assert any(
        line.split() == ["edit", "source,", "instruction", "->", "target", "cm3", "edit"]
        for line in lines
    )
    assert any(
        line.split()[0] == "structure" and line.endswith("cm3 generate --condition")
        for line in lines
    )
    assert [line.split()[0] for line in lines] == sorted(load_registry().names("task"))


def test_a_model_that_was_not_tuned(cm3) -> None:
    assert cm3("task list --model bundled:emoji64") == (
        "tuned for no task: generate and caption use plain documents\n"
    )


RECORD = shlex.quote(json.dumps({"question": "red?", "answer": "yes"}))


def test_both_layouts(cm3) -> None:
    last = cm3(f"task show vqa --record {RECORD}")
    assert last.splitlines()[:9] == [
        "task vqa: image, question -> answer",
        "prompt",
        "  0  picture  given",
        "  1  text     Question: red? Answer:",
        "  2  text     ____",
        "document",
        "  0  picture  given",
        "  1  text     Question: red? Answer:",
        "  2  text     [yes]",
    ]
    paper = cm3(
        f"task show vqa task.layout=paper --model bundled:emoji64 --record {RECORD}"
    ).splitlines()
    assert "  0  text     Question: red? Answer: [yes.]" in paper
    [end] = [line.split() for line in paper if line.startswith("  '.'")]
    assert end == ["'.'", "6", "6"]  # counts with response_only too, six times as the recipe says
    [codes] = [line.split() for line in paper if "image codes" in line]
    assert codes[1:] == ["image", "codes", "1", "0"]


def test_wordings_are_drawn(cm3) -> None:
    assert "Question: red?\n" in cm3(f"task show vqa --seed 1 --record {RECORD}")


def test_a_file_of_a_record(cm3, tmp_path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"caption": "a bell"}')
    assert "a bell" in cm3(f"task show t2i --record {file}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("task show vqaa", "error: cm3 task show: task.name: no task is called 'vqaa'"),
        (
            "task show vqa layout=paper",
            "error: layout=paper: is not task.KEY=VALUE ... e.g",
        ),
        (
            "task show vqa task.layout=first",
            "error: command line: task.layout: is 'first'",
        ),
        (
            """task show vqa --record '{"q": 1}'""",
            "error: --record: the task has ... 'q'",
        ),
        ("task show vqa --record nowhere.json", "error: --record nowhere.json: can't be read ("),
        ("task show vqa --record '{'", "error: --record: is not JSON: "),
        (
            """task show vqa --record '{"question": ""}'""",
            "error: --record: has an empty field 'question'",
        ),
    ],
)
def test_what_is_refused(cm3, line: str, message: str) -> None:
    assert tells(cm3(line, code=2), message)
