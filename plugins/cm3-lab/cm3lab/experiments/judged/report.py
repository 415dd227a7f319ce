"""Tables of judged icons, in Markdown: a table is a list of lines. Figures are means over seeds (of training), with their
standard deviation where there are several, otherwise with the standard error over icons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.markdown_text import code, plain
from cm3core.files import atomic_path, write_text
from cm3lab.experiments.judged.judging import BESIDE, SCORES
from cm3lab.experiments.retrieval.report import by_arm

#: What a table shows of a run: arm, seed, judged icons by split, ...
Run = dict[str, Any]


def mean(values: Sequence[Sequence[float | None]], digits: int = 0) -> str:
    """The mean, and the standard deviation over several; of one: its standard error, if known.

    >>> mean([[10.0, 3.0], [14.0, 3.5]]), mean([[10.0, 3.0]]), mean([[1.234, None]], 2)
    ('12 ± 3', '10 ± 3', '1.23')
    """
    numbers = [float(one[0]) for one in values if one[0] is not None]
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else values[0][1]
    text = f"{np.mean(numbers):.{digits}f}"
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def judged_tables(runs: Sequence[Run], titles: Mapping[str, str]) -> list[str]:
    """A table of each split: arms, then what they are compared with."""
    lines = []
    for split in runs[0]["judged"]:
        lines += [
            f"## Icons of `{plain(split)}`, percent",
            "",
            f"| | {' | '.join(SCORES.values())} |",
            "| --- |" + " --- |" * len(SCORES),
        ]
        for arm, own in by_arm(runs).items():
            cells = [mean([run["judged"][split]["scores"][name] for run in own]) for name in SCORES]
            lines.append(f"| {titles[arm]} | {' | '.join(cells)} |")
        for row in BESIDE:
            beside = runs[0]["judged"][split]["beside"][row]
            cells = [mean([beside[name]]) for name in SCORES]
            lines.append(f"| *{row}* | {' | '.join(cells)} |")
        lines.append("")
    return lines


def losses(runs: Sequence[Run], titles: Mapping[str, str]) -> list[str]:
    """A table of trainings: their cost, and their losses at the end."""
    names = sorted(
        {name for run in runs for name in run["curve"][-1] if "/image_loss" in name},
        key=lambda name: (name.endswith("_retrieved"), name),
    )
    titles_of = [
        f"{name.split('/')[1]}{', documents' if name.endswith('_retrieved') else ''}"
        for name in names
    ]
    lines = [
        "## Loss",
        "",
        "Nats an image token of held-out icons, after training, without and with documents.",
        "",
        f"| trained | parameters | million tokens | minutes | {' | '.join(titles_of)} |",
        "| --- | --- | --- | --- |" + " --- |" * len(names),
    ]
    for arm, own in by_arm(runs).items():
        cells = [
            mean([[run["curve"][-1].get(name), None] for run in own], 3)
            if all(name in run["curve"][-1] for run in own)
            else "–"
            for name in names
        ]
        minutes = mean([[run["seconds"] / 60, None] for run in own])
        lines.append(
            f"| {titles[arm]} | {own[0]['parameters'] / 1e6:.1f}M | {own[0]['tokens'] / 1e6:.2f} | {minutes} | "
            f"{' | '.join(cells)} |"
        )
    return [*lines, ""]


def write_report(out: Path, title: str, command: str, sections: Sequence[str], seeds: int) -> Path:
    """Write report.md; returns its path."""
    spread = (
        f"Means of {seeds} trainings with other seeds, with their standard deviation."
        if seeds > 1
        else "One training of each: ± is the standard error over icons, without that over trainings."
    )
    lines = [f"# {title}", "", code(command), "", spread, ""]
    lines += [
        "Usable: the asked thing, in the asked hand, and no copy. In the folder of each arm and split, `verdicts.png` shows",
        "every icon with its documents and its verdict.",
        "",
        *sections,
    ]
    write_text(out / "report.md", "\n".join(lines) + "\n")
    return out / "report.md"


def plot_curves(path: Path, runs: Sequence[Run], titles: Mapping[str, str], split: str) -> None:
    """Plot the loss of a split over tokens, with documents where the arm has them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    for place, (arm, own) in enumerate(by_arm(runs).items()):
        for number, run in enumerate(own):
            best = f"validation/{split}/image_loss"
            name = f"{best}_retrieved" if f"{best}_retrieved" in run["curve"][-1] else best
            points = [point for point in run["curve"] if name in point and point["tokens"]]
            axis.plot(
                [point["tokens"] / 1e6 for point in points],
                [point[name] for point in points],
                color=f"C{place}",
                label=titles[arm] if number == 0 else None,
                linewidth=1.2,
            )
    axis.set_xlabel("million tokens")
    axis.set_ylabel(f"{split}: nats an image token")
    axis.set_xscale("log")
    axis.legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
