"""The report: cost and gain of each way of tuning, with paired errors over documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.markdown_text import code, plain
from cm3core.files import write_text
from cm3lab.experiments.tuning import ARMS, BEFORE, REFERENCE
from cm3lab.experiments.tuning.responses import difference

#: Task -> the figure and row to show.
SHOWN = {
    "edit": ("R@5", "drawn"),
    "edges": ("edge F1", "drawn"),
    "boxes": ("IoU", "drawn"),
    "place": ("IoU", "drawn"),
    "find": ("IoU", "told"),
    "answer": ("all", "told"),
    "chat": ("all", "told"),
    "caption": ("name", "told"),
}
#: Losses of an arm: split/part -> document -> nats, averaged over seeds.
Losses = dict[str, dict[str, float]]


def write_report(out: Path, facts: dict[str, Any], command: str) -> Path:
    """Write report.md; returns its path.

    Args:
        out: the experiment's folder.
        facts: as in figures.json.
        command: quoted in the report.
    """
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in facts["runs"]:
        runs[run["arm"]].append(run)
    lines = ["# Ways of tuning", "", code(command), "", *_costs(facts, runs)]
    losses = {BEFORE: facts[BEFORE], **{arm: mean_losses(own) for arm, own in runs.items()}}
    lines += _table(
        "Nats of a held-out response",
        "The negative log-likelihood of the right response, including all its tokens and its end, given its prompt; for "
        "plain documents, that of all tokens. Lower is better.",
        losses,
        lambda arm, name: f"{np.mean(list(losses[arm][name].values())):.2f}",
    )
    compared = [arm for arm in runs if arm != REFERENCE]
    if REFERENCE in runs and compared:
        lines += _table(
            f"Difference from `{REFERENCE}`",
            "Paired over documents, with its standard error; below 0 is better. " + _seeds(runs),
            {arm: losses[arm] for arm in compared},
            lambda arm, name: _shown(losses[arm][name], losses[REFERENCE].get(name, {})),
        )
    lines += _tasks(runs)
    write_text(out / "report.md", "\n".join(lines) + "\n")
    return out / "report.md"


def mean_losses(runs: Sequence[dict[str, Any]]) -> Losses:
    """Return the losses of an arm: for each document, the mean over seeds."""
    found: Losses = {}
    for name in runs[0]["losses"]:
        own = [run["losses"][name] for run in runs]
        found[name] = {
            document: float(np.mean([one[document] for one in own])) for document in own[0]
        }
    return found


def _seeds(runs: dict[str, list[dict[str, Any]]]) -> str:
    most = max(map(len, runs.values()))
    if most == 1:
        return "One seed: the error does not include variation between seeds."
    return f"Means over at most {most} seeds; the error is that over documents."


def _shown(values: dict[str, float], others: dict[str, float]) -> str:
    mean, error, number = difference(values, others)
    return f"{mean:+.2f} ± {error:.2f}" if number else ""


def _costs(facts: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "## Cost of a step",
        "",
        f"Methods are trained for {facts['minutes']:g} minutes of computation each, converted to steps by the measured step "
        "time; losses and layouts for the same number of steps as the reference.",
        "",
        "| arm | trained parameters | memory, MB | seconds a step | tokens a second | steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys([*facts["costs"], *runs]):
        cost = facts["costs"].get(arm) or facts["costs"][REFERENCE]
        steps = f"{runs[arm][0]['steps']:,}" if arm in runs else ""
        lines.append(
            f"| `{arm}`: {plain(ARMS[arm].title)} | {cost['trained']:,.0f} | {cost['memory'] / 1e6:,.1f} | "
            f"{cost['seconds']:.3f} | {cost['tokens'] / cost['seconds']:,.0f} | {steps} |"
        )
    return [
        *lines,
        "",
        "Memory: weights, gradients, optimiser state, and activations kept for the backward pass.",
        "",
    ]


def _table(title: str, text: str, losses: dict[str, Losses], shown: Any) -> list[str]:
    """Return a row per split and part, with a column per arm."""
    names = list(dict.fromkeys(name for own in losses.values() for name in own))
    lines = [
        f"## {title}",
        "",
        text,
        "",
        f"| split | part | documents |{''.join(f' {arm} |' for arm in losses)}",
        "| --- | --- | --- |" + " --- |" * len(losses),
    ]
    for name in names:
        split, _, part = name.partition("/")
        number = max(len(own.get(name, {})) for own in losses.values())
        cells = [shown(arm, name) if own.get(name) else "" for arm, own in losses.items()]
        lines.append(f"| {plain(split)} | {plain(part)} | {number} | {' | '.join(cells)} |")
    return [*lines, ""]


def _tasks(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a row per task and split, with a column per arm."""
    places = list(
        dict.fromkeys(
            (task, split)
            for own in runs.values()
            for run in own
            for task, splits in run["tasks"].items()
            for split in splits
        )
    )
    if not places:
        return []
    lines = [
        "## Tasks",
        "",
        "Measured as in `cm3 experiment tasks`; a share p of n records has a standard error of sqrt(p(1 - p)/n).",
        "",
        f"| task | figure | split | records |{''.join(f' {arm} |' for arm in runs)}",
        "| --- | --- | --- | --- |" + " --- |" * len(runs),
    ]
    for task, split in places:
        figure, row = SHOWN[task]
        cells, number = [], 0
        for own in runs.values():
            found = [
                run["tasks"][task][split] for run in own if split in run["tasks"].get(task, {})
            ]
            values = [one["figures"][row][figure] for one in found]
            cells.append(f"{np.mean(values):.2f}" if values else "")
            number = max([number, *(one["num"] for one in found)])
        lines.append(f"| {task} | {figure} | {plain(split)} | {number} | {' | '.join(cells)} |")
    return [*lines, ""]
