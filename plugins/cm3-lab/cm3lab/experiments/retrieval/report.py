"""The report, in Markdown, with curves and pictures: a table is a list of lines. Figures are means over seeds, with their spread.

Legend: `runs` come from `RetrievalExperiment`, one per arm and seed; `told` is "split/memory/retriever"
-> the fields of `counting.Told`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cm3apps.markdown_text import code, plain
from cm3apps.quickstart.pictures import Row, write_table
from cm3core.document import PixelArray
from cm3core.files import atomic_path, write_text
from cm3lab.experiments.retrieval import ARMS, OWN

SPLIT_TITLES = {
    "comp": "drawings held out (`comp`)",
    "unseen": "held out by name (`unseen`)",
}


def _mean(values: Sequence[float], digits: int) -> str:
    """Format the mean, and the standard deviation if there are several."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def by_arm(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        found[run["arm"]].append(run)
    return found


def trainings(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cost of each arm's training."""
    rows = ["| trained with | steps | million tokens | minutes |", "| --- | --- | --- | --- |"]
    for arm, own in by_arm(runs).items():
        minutes = _mean([run["seconds"] / 60 for run in own], 1)
        rows.append(
            f"| {ARMS[arm].title} | {own[0]['steps']:,} | {own[0]['tokens'] / 1e6:.2f} | "
            f"{minutes} |"
        )
    return [*rows, ""]


def gain(runs: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    """Return each arm with the documents it was trained with, and the difference from training without."""
    with_nothing = {
        (run["seed"], split): run["losses"][split]
        for run in runs
        for split in splits
        if run["arm"] == "none"
    }
    memories = list(
        dict.fromkeys(name.split("/")[1] for run in runs for name in run["losses"] if "/" in name)
    )
    memories = [memory for memory in memories if memory != OWN]
    lines = [
        "## The gain",
        "",
        "Every arm with its own retriever and number of documents. In brackets after each loss: the difference from "
        "the arm",
        "without documents and the same seed; below 0 is a gain. The last column is not a result but a probe: the answer",
        "itself is prepended, so a decoder that uses prepended documents has nothing left to predict.",
        "",
        "| split | trained with | nothing prepended "
        f"|{''.join(f' memory {one} |' for one in memories)} the answer itself |",
        "| --- | --- | --- | --- |" + " --- |" * len(memories),
    ]
    for split in splits:
        for arm, own in by_arm(runs).items():
            retriever, _, number = arm.rpartition("-")
            names = [
                split,
                *(f"{split}/{memory}/{retriever}/{number}" for memory in memories),
                f"{split}/{OWN}/{OWN}/1",
            ]
            cells = [_beside(own, name, with_nothing, split) for name in names]
            lines.append(f"| {plain(split)} | {ARMS[arm].title} | {' | '.join(cells)} |")
    return [*lines, ""]


def equal_time(runs: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    """Return validation losses at the minute at which the fastest training ended, interpolated linearly between
    validations."""
    ends = [run["curve"][-1]["elapsed_s"] for run in runs if run["curve"]]
    names = [
        (split, f"validation/{split}/image_loss")
        for split in splits
        if any(f"validation/{split}/image_loss" in point for run in runs for point in run["curve"])
    ]
    if not names or len(by_arm(runs)) < 2:
        return []
    seconds = min(ends)
    lines = [
        "## At equal time",
        "",
        f"The same losses of the validation's documents after {seconds / 60:.1f} minutes of wall-clock time, when the "
        "first training ended, each arm with",
        "its own documents from the memory `train`. This is only meaningful if nothing else ran on the machine.",
        "",
        f"| trained with |{''.join(f' {plain(split)} |' for split, _ in names)}",
        "| --- |" + " --- |" * len(names),
    ]
    for arm, own in by_arm(runs).items():
        suffix = "_retrieved" if ARMS[arm].num_retrieved else ""
        cells = [
            _mean([_at(run["curve"], name + suffix, seconds) for run in own], 3)
            for _, name in names
        ]
        lines.append(f"| {ARMS[arm].title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _at(points: Sequence[dict[str, float]], name: str, seconds: float) -> float:
    """Return a curve's value at a time; beyond its ends, the first or last value."""
    own = [(point["elapsed_s"], point[name]) for point in points if name in point]
    times, values = [at for at, _ in own], [value for _, value in own]
    return float(np.interp(seconds, times, values)) if own else float("nan")


def predicted(told: dict[str, dict[str, float]], runs: Sequence[dict[str, Any]] = ()) -> list[str]:
    """Return the possible gain, by counting, and the decoders' gain from the same first document."""
    if not told:
        return []
    lines = [
        "## What the documents predict",
        "",
        "Without any decoder: nats of a cell's colour (of 16), given the cells to its left and above it, as counted in "
        "training pictures,",
        "and given also the same cell of the first document. The caption is ignored. Last: nats per code that decoders "
        "trained with one",
        "such document gain from it, compared with nothing prepended.",
        "",
        "| split | memory | retriever | same code | without | with the document | gain | decoders gain |",
        "| --- |" + " --- |" * 7,
    ]
    for name, values in told.items():
        split, _, retriever = name.split("/")
        gains = [
            run["losses"][split] - run["losses"][f"{name}/1"]
            for run in runs
            if run["arm"] == f"{retriever}-1" and f"{name}/1" in run["losses"]
        ]
        without, beside = values["without"], values["with_document"]
        numbers = f"{values['same']:.3f} | {without:.3f} | {beside:.3f} | {without - beside:+.3f}"
        used = _mean(gains, 3) if gains else "–"
        lines.append(f"| {' | '.join(map(plain, name.split('/')))} | {numbers} | {used} |")
    return [*lines, ""]


def _beside(
    runs: Sequence[dict[str, Any]],
    name: str,
    with_nothing: dict[tuple[int, str], float],
    split: str,
) -> str:
    """Format a cell: the mean loss, and its mean difference from the arm without documents, if any."""
    if any(name not in run["losses"] for run in runs):
        return "–"
    text = _mean([run["losses"][name] for run in runs], 3)
    pairs = [
        (run["losses"][name], with_nothing[run["seed"], split])
        for run in runs
        if (run["seed"], split) in with_nothing
    ]
    if not pairs or runs[0]["arm"] == "none":
        return text
    differences = [own - other for own, other in pairs]
    mean = f"{np.mean(differences):+.3f}"
    return (
        f"{text} ({mean})"
        if len(differences) < 2
        else f"{text} ({mean} ± {np.std(differences, ddof=1):.3f})"
    )


def losses(runs: Sequence[dict[str, Any]], split: str) -> list[str]:
    """Return a table of arms by conditions."""
    names = list(
        dict.fromkeys(name for run in runs for name in run["losses"] if name.split("/")[0] == split)
    )
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        parts = name.split("/")
        if len(parts) == 1 or parts[1] != OWN:  # shown in the first table
            groups[(parts[1], parts[2]) if len(parts) > 1 else ("", "")].append(name)
    title = SPLIT_TITLES.get(split, plain(split))
    lines = [f"## {title[:1].upper()}{title[1:]}", ""]
    header = ["trained with", "nothing prepended"]
    columns = [groups.pop(("", ""), [])[:1]]
    for (memory, retriever), own in groups.items():
        header.append(
            f"{retriever}, memory {memory}: {', '.join(name.rpartition('/')[2] for name in own)}"
        )
        columns.append(own)
    lines += [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for arm, own_runs in by_arm(runs).items():
        cells = [
            " / ".join(_mean([run["losses"][name] for run in own_runs], 3) for name in column)
            for column in columns
        ]
        lines.append(f"| {ARMS[arm].title} | {' | '.join(cells)} |")
    return [*lines, ""]


def drawings(runs: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    """Return the scores of the pictures."""
    lines = [
        "## Pictures",
        "",
        "KID: distance from training pictures in the features of EfficientNet-Lite1, times 1000; "
        "R@5: the real",
        "picture is among the five nearest of 100 real ones (blurred pixels; icons: in the same set and "
        "style); finish: a",
        "classifier of real icons names the requested one (outline, filled, duotone, ...). Real pictures: after "
        "the image",
        "tokenizer. Copying: the same for the first prepended picture. Each arm generates with the same number of "
        "prepended",
        "documents as in training.",
        "",
        "| split | trained with | KID | R@5 | copying | finish | copying |",
        "| --- |" + " --- |" * 6,
    ]
    for split in splits:
        first = next(run["drawn"][split] for run in runs if run["drawn"])
        halves = f"{first['floor']:.1f} ± {first['floor_spread']:.1f}"
        lines.append(
            f"| {plain(split)} | real pictures (two halves of the training's: {halves}) | "
            f"{first['real_kid']:.1f} | {_some([first], 'real_r5')} | | {_some([first], 'real_finish')} | |"
        )
        for arm, own in by_arm(runs).items():
            scores = [run["drawn"][split] for run in own if run["drawn"]]
            if scores:
                cells = [_some(scores, name) for name in ("r5", "copy_r5", "finish", "copy_finish")]
                lines.append(
                    f"| {plain(split)} | {ARMS[arm].title} | {_mean([one['kid'] for one in scores], 1)} "
                    f"| {' | '.join(cells)} |"
                )
    return [*lines, ""]


def _some(scores: Sequence[dict[str, Any]], name: str) -> str:
    """Format a score's mean; empty if there is none."""
    return "" if scores[0][name] is None else _mean([one[name] for one in scores], 2)


#: Rows of the table of pictures per split.
NUM_SHOWN = 12


def write_report(
    out: Path, runs: Sequence[dict[str, Any]], command: str, told: dict[str, dict[str, float]]
) -> Path:
    """Write report.md, curves.png and pictures-<split>.png; returns the report's path.

    Args:
        out: the experiment's folder.
        runs: one per arm and seed, see `RetrievalExperiment`.
        command: quoted in the report.
        told: "split/memory/retriever" -> the fields of `counting.Told`.
    """
    lines = [
        "# What retrieved documents gain",
        "",
        code(command),
        "",
        "Loss: nats per token on the query's image tokens of held-out documents. Prepended documents",
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

    Returns False if there are no pictures.
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
    """Plot losses over tokens and over minutes; each arm with its own documents prepended."""
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
            axis.set_ylabel(f"{split}: nats per image token")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
            axis.yaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
            axis.legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
