"""What a cell's outcomes are worth: each way to break a law is found, and what the table said is none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from swapping import cells
from swapping.cells import (
    WITH_OPTIONS,
    Outcome,
    Result,
    Swap,
    claims,
    is_message,
    keys_of,
    run_cell,
)
from swapping.ingredients import Kitchen, as_overrides
from swapping.report import breaks_a_law, grouped, groups, row_of, summary

RUNS, REFUSED = {"runs": True}, {"runs": False, "message": "no"}
TABLE = {"valid": True, "commands": {"train": RUNS, "generate": RUNS, "caption": REFUSED}}
SAID = [Outcome("train", "runs"), Outcome("generate", "runs"), Outcome("caption", "refused", "e")]


def result(outcomes: list[Outcome], table: dict[str, Any] = TABLE, **data: Any) -> Result:
    return Result((Swap("sampler", "cfg"),), ["sampler=cfg"], table, outcomes, **data)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("error: train.steps: is 0, must be 1 or more\n  next: correct the value\n", True),
        ("note: 'a' is unknown\nerror: train.steps: is 0\n  next: correct it\n", True),
        ("error: train.steps: is 0\n", False),
        ("error: it failed\n  next: try again\n", False),
        ("error: a: b\n  next: c\nerror: a: b\n  next: c\n", False),
        ("Traceback (most recent call last):\nerror: a: b\n  next: c\n", False),
        ("", False),
    ],
)
def test_messages_of_three_parts(text: str, whole: bool) -> None:
    assert is_message(text) is whole


def test_what_the_table_said_breaks_no_law() -> None:
    told = result(SAID)
    assert [verdict for _, verdict in told.verdicts] == ["as said"] * 3
    assert told.kind == "trains, refused by a later command: as said"
    assert not told.bad
    assert not breaks_a_law([row_of(told)])
    assert result([Outcome("train", "refused")], {"valid": False}).kind == "refused by check"
    assert result(SAID[:2]).kind == "works in every command"


@pytest.mark.parametrize(
    ("outcomes", "table", "kind"),
    [
        ([Outcome("train", "refused")], TABLE, "passes check, refused by train: lie"),
        ([Outcome("train", "runs")], {"valid": False}, "refused by check, and runs: lie"),
        (
            [*SAID[:1], Outcome("generate", "refused"), SAID[2]],
            TABLE,
            "trains, refused by a later command: lie",
        ),
        ([*SAID[:2], Outcome("caption", "runs")], TABLE, "runs, and check refuses it: lie"),
        ([*SAID[:1], Outcome("generate", "traceback")], TABLE, "fault: traceback in generate"),
        ([Outcome("train", "bad message")], {"valid": False}, "fault: bad message in train"),
        ([*SAID[:2], Outcome("caption", "writes")], TABLE, "fault: writes in caption"),
    ],
)
def test_each_way_to_break_a_law(outcomes: list[Outcome], table: dict[str, Any], kind: str) -> None:
    told = result(outcomes, table)
    assert told.kind == kind
    assert len(told.bad) == 1
    assert breaks_a_law([row_of(told)])


def test_what_only_the_data_show_is_no_lie() -> None:
    outcomes = [Outcome("train", "refused", "error: dataset: no documents\n  next: add some")]
    told = result(outcomes, data_table={"valid": False})
    assert told.kind == "passes check, refused by train: by its data"
    assert not told.bad
    assert result(outcomes, data_table=TABLE).bad


def test_generation_with_options_runs_if_it_may_be_forced() -> None:
    for runs, force in ((True, False), (False, True)):
        verdict = {"runs": runs, "force": force}
        table = {**TABLE, "commands": {**TABLE["commands"], WITH_OPTIONS: verdict}}
        assert claims(table, WITH_OPTIONS)
    assert not claims(TABLE, WITH_OPTIONS)


def test_groups_have_the_smallest_cell_first() -> None:
    def cell(number: int, message: str) -> Any:
        swaps = tuple(Swap("sampler", str(place)) for place in range(number))
        return row_of(Result(swaps, [], TABLE, [Outcome("train", "refused", message)]))

    rows = [cell(3, "error: x: is 3"), cell(1, "error: x: is 4"), cell(2, "error: y: is 4")]
    found = groups(rows)
    assert [[len(row["swaps"]) for row in of] for of in found.values()] == [[1, 3], [2]]
    assert "train: lie, refused (2 cells)" in grouped(rows)
    assert "3  passes check, refused by train: lie" in summary(rows)


# ---- commands


def _writes(out: Path) -> None:
    out.mkdir()
    (out / "000.png").touch()


@pytest.mark.parametrize(
    ("printed", "code", "write", "state"),
    [
        ("done\n", 0, None, "runs"),
        ("error: a: b\n  next: c\n", 2, None, "refused"),
        ("error: a: b\n", 2, None, "bad message"),
        ("error: a: b\n  next: c\n", 2, _writes, "writes"),
        ("", ValueError("x"), None, "traceback"),
        ("error: a: b\n  next: c\n", SystemExit(2), None, "refused"),
    ],
)
def test_outcomes_of_a_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: str,
    code: int | BaseException,
    write: Callable[[Path], None] | None,
    state: str,
) -> None:
    out = tmp_path / "out"

    def main(arguments: list[str]) -> int:
        print(printed, end="", file=sys.stderr)
        if write is not None:
            write(out)
        if isinstance(code, BaseException):
            raise code
        return code

    monkeypatch.setattr(cells, "main", main)
    outcome = cells._outcome("generate", ["generate"], out)
    assert outcome.state == state
    assert ("000.png" in outcome.message) is (state == "writes")


# ---- keys


def test_keys_of_swaps(kitchen: Kitchen) -> None:
    base = keys_of([], kitchen)
    assert keys_of([Swap("sampler", "cfg")], kitchen) == {**base, "sampler": "cfg"}
    tracker = keys_of([Swap("tracker", "tensorboard")], kitchen)
    assert tracker == {**base, "train.trackers": "[tensorboard]"}
    # a swapped section loses the base's keys
    assert "dataset.path" in base
    assert "dataset.path" not in keys_of([Swap("dataset", "icons", bare=True)], kitchen)


def test_what_a_component_needs_gives_way_to_swaps(kitchen: Kitchen) -> None:
    needs = keys_of([Swap("retriever", "dense")], kitchen)
    assert (needs["retriever"], needs["embedder"]) == ("dense", "light_encoder")
    both = keys_of([Swap("retriever", "dense"), Swap("embedder", "minilm")], kitchen)
    assert both["embedder"] == "minilm"
    # the condition's data set, not that of the task that it needs
    keys = keys_of([Swap("condition", "edges")], kitchen)
    assert (keys["task"], keys["dataset"]) == ("structure", "conditioned")
    assert "dataset.columns" not in keys
    swaps = [Swap("task", "vqa"), Swap("dataset", "folder")]
    assert keys_of(swaps, kitchen)["dataset"] == "folder"
    assert keys_of(swaps, kitchen) == keys_of(swaps[::-1], kitchen)


# ---- whole cells


def test_a_refused_recipe_trains_nothing(kitchen: Kitchen) -> None:
    told = run_cell([Swap("retriever", "dense", bare=True)], kitchen)
    assert told.kind == "refused by check"
    assert [(one.command, one.state) for one in told.outcomes] == [("train", "refused")]


@pytest.mark.slow
def test_a_false_table_is_found(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if check said that a model which only continues documents fills holes."""

    def said(overrides: object, *, data: bool = False) -> dict[str, Any]:
        return {"valid": True, "commands": dict.fromkeys(cells.PLAIN, RUNS)}

    monkeypatch.setattr(cells, "table_of", said)
    told = run_cell([Swap("objective", "causal"), Swap("sampler", "cfg")], kitchen)
    assert told.kind == "trains, refused by a later command: lie"
    assert [one.command for one, _ in told.bad] == ["infill", "caption"]
    smallest = cells.shrunk(told, kitchen)
    assert smallest.swaps == (Swap("objective", "causal"),)


@pytest.mark.parametrize(
    "swap", [Swap("objective", "causal"), Swap("retriever", "dense", bare=True)], ids=str
)
def test_the_table_is_that_of_recipe_check(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str], swap: Swap
) -> None:
    overrides = as_overrides(keys_of([swap], kitchen))
    code = main(["recipe", "check", "tiny", "--json", *overrides])
    printed, table = json.loads(capsys.readouterr().out), cells.table_of(overrides)
    assert (code == 0) is printed["valid"] is table["valid"]

    def told(values: Mapping[str, str]) -> str:
        return f"{values['place']}: {values['cause']}\n  next: {values['next_step']}"

    if not table["valid"]:
        assert told(printed) == table["message"]
        return
    assert printed["commands"].keys() == table["commands"].keys()
    for command, values in printed["commands"].items():
        assert values["runs"] == table["commands"][command]["runs"]
        assert values["runs"] or told(values) == table["commands"][command]["message"]
