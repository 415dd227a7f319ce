"""The table of a sweep, computed by hand from results in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3apps.sweep.grid import Cell
from cm3apps.sweep.plan import CELLS, RESULT, Plan, Run
from cm3apps.sweep.report import markdown, shown, tables, write_plot
from cm3core.errors import DataError, MissingPackageError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose
from tests.fixtures.messages import tells

RECIPE = compose("tiny", registry=load_registry())
#: Cell -> for each seed, right or wrong of each of eight cases.
RIGHT = {
    "a": ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1, 0]),
    "b": ([1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]),
    "c": ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]),
}


def store(folder: Path, *, cases: bool = True, keys: str = "k") -> Plan:
    """Results of three cells with two seeds, in percent."""
    runs = []
    for label, seeds in RIGHT.items():
        for seed, values in enumerate(seeds):
            name = f"{label}-{seed}"
            run = Run(Cell(label, (f"x={label}",)), seed, RECIPE, (), name, name)
            out = folder / CELLS / name
            out.mkdir(parents=True)
            own = keys if label == "c" else "k"
            lines = [
                {"key": f"{own}{place}", "scores": {"right": 100.0 * value} if cases else {}}
                for place, value in enumerate(values)
            ]
            (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            score = {"value": 12.5 * sum(values), "num": 8, "higher_is_better": True, "hash": "h"}
            result = {
                "cell": label,
                "hash": RECIPE.hash,
                "scores": {"right": score},
                "cases": f"{CELLS}/{name}/samples.jsonl",
            }
            (out / RESULT).write_text(json.dumps(result))
            runs.append(run)
    return Plan("tiny", tuple(runs))


def test_the_table_by_hand(tmp_path: Path) -> None:
    """Means over seeds: a 25 and 12.5, b 100 and 87.5, c 25 and 25. Against a, six of b's cases are 100 better and one 0
    or, as their last is, 0: 2 / 2**6 = 1/32. One of c's cases is 50 better: p = 1. By Holm: 2/32 and 1."""
    plan = store(tmp_path)
    [table] = tables(tmp_path, plan, [])
    first, better, same = table.rows
    assert first.cell.estimate.mean == 18.75
    assert first.cell.estimate.error == pytest.approx(6.25)  # half the difference of two
    assert better.cell.estimate.mean == 93.75
    assert same.cell.estimate.mean == 25
    assert same.cell.estimate.error == 0
    assert better.difference is not None
    assert better.difference.mean == 75
    assert (better.p, same.p) == (1 / 32, 1)
    assert (better.corrected, same.corrected) == (2 / 32, 1)
    assert [table.verdict(row) for row in table.rows] == ["", "not shown", "not shown"]
    lines = shown([table], plan)
    assert lines[0] == "right, higher is better, 8 cases, 2 seeds"
    assert lines[3].split() == [
        "b",
        "93.75",
        "±",
        "6.2",
        "+75",
        "±",
        "16",
        "0.031",
        "0.062",
        "not",
        "shown",
    ]
    assert "corrected for 2 tests" in "\n".join(lines)
    assert "| b | 93.75 ± 6.2 | +75 ± 16 | 0.031 | 0.062 | not shown |" in markdown(
        [table], plan, "cm3 sweep"
    )


def test_a_score_without_cases_has_no_test(tmp_path: Path) -> None:
    plan = store(tmp_path, cases=False)
    [table] = tables(tmp_path, plan, [])
    assert all(row.p is None for row in table.rows)
    assert "A score of all cases together has no paired test." in shown([table], plan)


def test_other_cases_can_not_be_paired(tmp_path: Path) -> None:
    plan = store(tmp_path, keys="other")
    with pytest.raises(DataError) as error:
        tables(tmp_path, plan, [])
    assert tells(error.value, "score right: has other cases for 'c' than for 'a'")


def test_an_unknown_score(tmp_path: Path) -> None:
    plan = store(tmp_path)
    with pytest.raises(DataError) as error:
        tables(tmp_path, plan, ["rigth"])
    assert tells(error.value, "--metric rigth: is no score of the protocol ... 'right'")


def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = store(tmp_path)
    found = tables(tmp_path, plan, [])
    write_plot(tmp_path / "plot.png", found)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("cm3apps.sweep.report.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError) as error:
        write_plot(tmp_path / "plot.png", found)
    assert tells(error.value, "plot.png: the package 'matplotlib' is not installed")
