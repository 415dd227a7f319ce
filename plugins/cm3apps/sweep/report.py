"""The table of a finished sweep, and its plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.reading import aligned
from cm3apps.sweep.comparison import LEVEL, Estimate, holm, paired_p
from cm3apps.sweep.plan import Plan, result_of
from cm3core.errors import DataError, MissingPackageError, close_match
from cm3core.files import atomic_path

TABLE, PLOT = "table.md", "plot.png"
COLUMNS = ("cell", "mean", "difference", "p", "p, Holm", "")


@dataclass(frozen=True)
class Measured:
    """A cell under a score.

    Args:
        label: of the cell.
        values: the score with each seed.
        cases: key of a case -> its value, averaged over seeds; empty: the score has no value for each case.
    """

    label: str
    values: tuple[float, ...]
    cases: Mapping[str, float]

    @property
    def estimate(self) -> Estimate:
        """The mean over seeds and its standard error; with one seed, over cases."""
        if len(self.values) == 1 and len(self.cases) > 1:
            over = Estimate.of(list(self.cases.values()))
            return Estimate(self.values[0], over.error)
        return Estimate.of(self.values)


@dataclass(frozen=True)
class Compared:
    """A cell beside the first one.

    Args:
        cell: the cell.
        difference: its cases less those of the first cell; None: the first cell, or a score without cases.
        p, corrected: of the paired test; None likewise.
    """

    cell: Measured
    difference: Estimate | None = None
    p: float | None = None
    corrected: float | None = None


@dataclass(frozen=True)
class ScoreTable:
    """All cells under a score.

    Args:
        name: of the score.
        higher_is_better: whether higher values are better.
        num_cases: number of cases; 0: the score has no value for each case.
        rows: the cells, the first first.
    """

    name: str
    higher_is_better: bool
    num_cases: int
    rows: tuple[Compared, ...]

    def verdict(self, row: Compared) -> str:
        """Whether a difference from the first cell is shown."""
        if row.difference is None or row.corrected is None:
            return ""
        if row.corrected >= LEVEL:
            return "not shown"
        return "better" if (row.difference.mean > 0) == self.higher_is_better else "worse"


def tables(folder: Path, plan: Plan, metrics: Sequence[str]) -> list[ScoreTable]:
    """Compare all cells.

    Args:
        folder: of the sweep, in which every run is finished.
        plan: the cells.
        metrics: scores to compare; empty: all.

    Raises:
        DataError: there is no such score, or cells were measured on different cases.
    """
    results = {run.name: result_of(folder, run) for run in plan.runs}
    cases = {name: _cases(folder, one) for name, one in results.items() if one is not None}
    first = results[plan.runs[0].name]
    assert first is not None
    names = list(metrics) or list(first["scores"])
    for name in names:
        if name not in first["scores"]:
            raise DataError(
                f"--metric {name}",
                "is no score of the protocol",
                close_match(name, first["scores"]),
            )
    compared = []
    for name in names:
        cells = []
        for cell in plan.cells:
            runs = [run.name for run in plan.runs if run.cell == cell]
            own = [results[run]["scores"][name] for run in runs]  # type: ignore[index]  # all are finished
            values = [cases[run].get(name, {}) for run in runs]
            cells.append(Measured(cell.label, tuple(one["value"] for one in own), _mean(values)))
        compared.append((name, bool(first["scores"][name]["higher_is_better"]), cells))
    return list(_tested(compared))


def _cases(folder: Path, result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Score -> key of a case -> its value."""
    found: dict[str, dict[str, float]] = {}
    for line in (folder / result["cases"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.get("scores", {}).items():
            found.setdefault(name, {})[row["key"]] = value
    return found


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each case's mean over seeds; only of cases that all seeds have."""
    keys = [key for key in values[0] if all(key in one for one in values)]
    return {key: float(np.mean([one[key] for one in values])) for key in keys}


def _tested(compared: Sequence[tuple[str, bool, list[Measured]]]) -> Iterator[ScoreTable]:
    """Test all cells against the first; p-values are corrected for the number of all tests."""
    rows: list[list[Compared]] = []
    for name, _, cells in compared:
        base = cells[0]
        own = [Compared(base)]
        for cell in cells[1:]:
            if cell.cases.keys() != base.cases.keys():
                raise DataError(
                    f"score {name}",
                    f"has other cases for {cell.label!r} than for {base.label!r}, so they can't be paired",
                    "name a protocol whose cases don't depend on the cell",
                )
            if not base.cases:
                own.append(Compared(cell))
                continue
            differences = [cell.cases[key] - base.cases[key] for key in base.cases]
            own.append(Compared(cell, Estimate.of(differences), paired_p(differences)))
        rows.append(own)
    tested = [one for own in rows for one in own if one.p is not None]
    corrected = iter(holm([one.p for one in tested if one.p is not None]))
    for (name, higher, cells), own in zip(compared, rows, strict=True):
        done = tuple(
            Compared(one.cell, one.difference, one.p, next(corrected)) if one.p is not None else one
            for one in own
        )
        yield ScoreTable(name, higher, len(cells[0].cases), done)


def shown(found: Sequence[ScoreTable], plan: Plan) -> list[str]:
    """The tables as lines of text."""
    lines: list[str] = []
    for table in found:
        lines += ["", _title(table, plan), *aligned([COLUMNS, *map(tuple, _rows(table))])]
    return [*lines[1:], "", *_notes(found, plan)]


def markdown(found: Sequence[ScoreTable], plan: Plan, command: str) -> str:
    """The tables as Markdown."""
    lines = [f"# {plan.subject}, swept", "", "```bash", command, "```"]
    for table in found:
        lines += ["", f"{_title(table, plan)}:", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        lines += ["| " + " | ".join(row) + " |" for row in _rows(table)]
    return "\n".join([*lines, "", *_notes(found, plan)]) + "\n"


def _title(table: ScoreTable, plan: Plan) -> str:
    better = "higher" if table.higher_is_better else "lower"
    cases = f", {table.num_cases:,} cases" if table.num_cases else ""
    seeds = (
        "" if plan.model is not None else f", {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}"
    )
    return f"{table.name}, {better} is better{cases}{seeds}"


def _rows(table: ScoreTable) -> Iterator[list[str]]:
    for row in table.rows:
        yield [
            row.cell.label,
            _number(row.cell.estimate),
            "" if row.difference is None else _number(row.difference, sign=True),
            _p(row.p),
            _p(row.corrected),
            table.verdict(row),
        ]


def _number(estimate: Estimate, *, sign: bool = False) -> str:
    """
    >>> _number(Estimate(4.25, 0.125)), _number(Estimate(0.5, None), sign=True)
    ('4.25 ± 0.125', '+0.5')
    """
    text = f"{estimate.mean:+.4g}" if sign else f"{estimate.mean:.4g}"
    return text if estimate.error is None else f"{text} ± {estimate.error:.2g}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _notes(found: Sequence[ScoreTable], plan: Plan) -> list[str]:
    seeds = len(plan.seeds)
    over = "over seeds" if seeds > 1 else "over cases"
    notes = [f"± is the standard error: of means {over}, of differences over cases."]
    tests = sum(one.p is not None for table in found for one in table.rows)
    if tests:
        averaged = ", each averaged over seeds" if seeds > 1 else ""
        several = f", corrected for {tests} tests by Holm's method" if tests > 1 else ""
        notes.append(
            f"p: paired sign-flip test against {found[0].rows[0].cell.label!r} over the same cases{averaged}"
            f"{several}; a difference is shown below {LEVEL:g}."
        )
        if seeds == 1 and len({run.training for run in plan.runs}) > 1:
            notes.append(
                "With one seed, a difference may come from the seed and not from the recipe: use --seeds 3 or more."
            )
    if any(len(table.rows) > 1 and not table.num_cases for table in found):
        notes.append("A score of all cases together has no paired test.")
    return notes


def write_plot(path: Path, found: Sequence[ScoreTable]) -> None:
    """Write a PNG: for each score, the cells' means with standard errors, and each seed.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingPackageError.extra(PLOT, "matplotlib", "plots")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [row.cell.label for row in found[0].rows]
    size = (5 * len(found) + 0.08 * max(map(len, labels)), 1.2 + 0.4 * len(labels))
    figure, axes = plt.subplots(
        1, len(found), figsize=size, sharey=True, squeeze=False, constrained_layout=True
    )
    for axis, table in zip(axes[0], found, strict=True):
        for place, row in enumerate(table.rows):
            estimate, colour = row.cell.estimate, "C0" if place else "C1"
            if len(row.cell.values) > 1:
                axis.plot(
                    row.cell.values, [place] * len(row.cell.values), "o", color="0.7", markersize=4
                )
            axis.errorbar(
                estimate.mean, place, xerr=estimate.error, fmt="o", color=colour, capsize=3
            )
        axis.axvline(table.rows[0].cell.estimate.mean, color="C1", linewidth=0.8, linestyle=":")
        better = "higher" if table.higher_is_better else "lower"
        axis.set(title=table.name, xlabel=f"{better} is better")
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].set_ylim(len(labels) - 0.5, -0.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
