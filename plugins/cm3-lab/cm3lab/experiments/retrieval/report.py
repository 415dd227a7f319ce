"""The report: its tables, with curves and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cm3apps.markdown_text import code, plain
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import PixelArray
from cm3core.files import atomic_path, write_text
from cm3lab.experiments.retrieval.arms import ARMS
from cm3lab.experiments.retrieval.tables import (
    SPLIT_TITLES,
    by_arm,
    drawings,
    equal_time,
    gain,
    losses,
    predicted,
    trainings,
)

#: Rows of the table of pictures, for each split.
NUM_SHOWN = 12


def write_report(
    out: Path, runs: Sequence[dict[str, Any]], command: str, told: dict[str, dict[str, float]]
) -> Path:
    """Write report.md, curves.png and pictures-<split>.png; returns the report's path.

    Args:
        out: the experiment's folder.
        runs: one for each arm and seed, see `RetrievalExperiment`.
        command: quoted in the report.
        told: "split/memory/retriever" -> the fields of `counting.Told`.
    """
    lines = [
        "# What retrieved documents gain",
        "",
        code(command),
        "",
        "Loss: nats a token of the query's image tokens on held-out documents. Prepended documents",
        "do not count.",
        "",
        "![loss over tokens and over time](curves.png)",
        "",
    ]
    lines += trainings(runs)
    splits = list(dict.fromkeys(name.split("/")[0] for run in runs for name in run["losses"]))
    lines += gain(runs, splits) + equal_time(runs, splits) + predicted(told, runs)
    for split in splits:
        lines += losses(runs, split)
    if any(run["drawn"] for run in runs):
        lines += drawings(
            runs, [split for split in splits if any(split in run["drawn"] for run in runs)]
        )
        for split in splits:
            if _pictures(out, runs, split):
                lines += [f"![pictures, {plain(split)}]({quote(f'pictures-{split}.png')})", ""]
    _curves(out / "curves.png", runs)
    write_text(out / "report.md", "\n".join(lines) + "\n")
    return out / "report.md"


def _pictures(out: Path, runs: Sequence[dict[str, Any]], split: str) -> bool:
    """Write a table: prompt, real, and each arm's prepended document and picture.

    Returns False when there are no pictures.
    """
    first_seed = {run["arm"]: run["seed"] for run in reversed(runs)}
    arrays = {}
    for arm, seed in ((run["arm"], run["seed"]) for run in runs):
        path = out / f"{arm}-{seed}" / "drawn.npz"
        if seed == first_seed[arm] and path.exists():
            with np.load(path, allow_pickle=False) as file:
                arrays[arm] = {name: file[name] for name in file.files if name.startswith(split)}
    if not any(arrays.values()):
        return False
    some = next(iter(arrays.values()))
    header, columns = ["real"], [some[f"{split}_real"]]
    for arm, own in arrays.items():
        if ARMS[arm].num_retrieved:
            header.append("retrieved")
            columns.append(own[f"{split}_front"])
        header.append(arm)
        columns.append(own[f"{split}_drawn"])
    texts = some[f"{split}_text"]
    rows: list[Row] = []
    for place in range(min(NUM_SHOWN, len(texts))):
        tiles: list[PixelArray | None] = [column[place] for column in columns]
        rows.append((str(texts[place]), tiles))
    write_table(out / f"pictures-{split}.png", header, rows, num_blocks=1 if len(header) > 5 else 2)
    return True


def _curves(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Losses over tokens and over minutes; each arm with its own documents prepended."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points_of_all = [point for run in runs for point in run["curve"]]
    splits = [
        split
        for split in SPLIT_TITLES
        if any(f"validation/{split}/image_loss" in point for point in points_of_all)
    ]
    if not splits:
        return
    figure, axes = plt.subplots(len(splits), 2, figsize=(11, 3.6 * len(splits)), squeeze=False)
    for row, split in enumerate(splits):
        for column, (key, unit, scale) in enumerate(
            (("tokens", "million tokens", 1e6), ("elapsed_s", "minutes", 60))
        ):
            axis = axes[row][column]
            for place, (arm, own) in enumerate(by_arm(runs).items()):
                suffix = "_retrieved" if ARMS[arm].num_retrieved else ""
                for number, run in enumerate(own):
                    points = [
                        point
                        for point in run["curve"]
                        if f"validation/{split}/image_loss{suffix}" in point
                    ]
                    axis.plot(
                        [point[key] / scale for point in points],
                        [point[f"validation/{split}/image_loss{suffix}"] for point in points],
                        color=f"C{place}",
                        label=ARMS[arm].title if number == 0 else None,
                        linewidth=1.2,
                    )
            axis.set_xlabel(unit)
            axis.set_ylabel(f"{split}: nats an image token")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
            axis.yaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
            axis.legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
