"""Lines of text and a plot; the JSON file is written by `benchmarks.machine.write_json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.files import atomic_path
from cm3lab.benchmarks.retrieval.clients import WIDTH
from cm3lab.benchmarks.retrieval.runner import NEAREST
from cm3lab.benchmarks.retrieval.synthetic import MODALITIES

Row = Mapping[str, Any]
#: The goals: recall and milliseconds per query, time relative to faiss called directly, share of a training
#: step.
RECALL, MS, TIMES, SHARE = 0.95, 10.0, 1.2, 0.05


def line(row: Row) -> str:
    """Describe a row."""
    if row["part"] == "bank":
        return (
            f"bank: {row['num']:,} documents, vectors of {row['dimension']} numbers "
            f"({_mb(row['vector_bytes'])} of "
            f"{_mb(row['file_bytes'])}), written in {row['seconds']:.1f} s with "
            f"{_mb(row['memory_bytes'])} of memory"
        )
    if row["part"] == "open":
        return (
            f"opening the bank: {1e3 * row['seconds']:.0f} ms, {_mb(row['memory_bytes'])} of memory"
        )
    if row["part"] == "loader":
        return (
            f"loader: {row['share']:.1%} of a training step ({row['recipe']}, {row['steps']} steps)"
        )
    if row["part"] == "filled":
        return (
            f"{row['engine']}: filled in {row['push_s']:.1f} s, indexed in {row['index_s']:.1f} s; "
            f"{_mb(row['file_bytes'])}, of which index {_mb(row['index_bytes'])}"
        )
    if row["part"] == "clients":
        network = f", answers {row['latency_ms']:g} ms later" if row["latency_ms"] else ""
        return (
            f"pgvector, {row['threads']} threads on {row['connections']} connections{network}: "
            f"{row['queries_per_s']:.1f} queries/s, {row['ms']:.1f} ms a query (p99 {row['ms_p99']:.1f}), "
            f"recall@{WIDTH} {row['recall']:.3f}"
        )
    if row["part"] == "engine":
        asked = [
            f"{modality} recall@{NEAREST} {one['recall']:.3f} in {one['ms']:.2f} ms (p90 "
            f"{one['ms_p90']:.2f})"
            for modality, one in row["queries"].items()
        ]
        return f"{row['engine']}, in turn: {'; '.join(asked)}; in a batch {row['batch_ms']:.2f} ms"
    built = (
        f"{row['index']}: {row['description']}\n  built in {row['build_s']:.1f} s with "
        f"{_mb(row['build_bytes'])} of memory, "
        f"file {_mb(row['file_bytes'])}; opened in {1e3 * row['open_s']:.0f} ms with "
        f"{_mb(row['open_bytes'])}"
    )
    asked = [
        f"  {modality + ' queries:':<14} recall@{NEAREST} {one['recall']:.3f}; search "
        f"{one['search_ms']:.2f} ms (p90 "
        f"{one['search_ms_p90']:.2f}), with all rules {one['retrieve_ms']:.2f} ms (p90 "
        f"{one['retrieve_ms_p90']:.2f})"
        for modality, one in row["queries"].items()
    ]
    batches = [
        f"  {many['num_queries']} at once: {many['retriever_ms']:.3f} ms per query with all rules, "
        "index "
        f"{many['index_ms']:.3f}, faiss called directly {many['faiss_ms']:.3f} "
        f"({many['retriever_x']:.2f} and {many['index_x']:.2f} times faiss)"
        for many in row["batches"]
    ]
    return "\n".join([built, *asked, *batches])


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return one line per measured goal."""
    lines = []
    for row in rows:
        if row["part"] == "index":
            recall = min(one["recall"] for one in row["queries"].values())
            ms = max(one["retrieve_ms"] for one in row["queries"].values())
            # flat is for comparison, and only chosen where it is fast
            if row["index"] != "flat":
                lines.append(
                    f"{_met(recall >= RECALL and ms < MS)} {row['index']}: recall@{NEAREST} "
                    f"{recall:.3f} in {ms:.2f} ms "
                    f"per query (goal: {RECALL}, {MS:g} ms)"
                )
            if row["batches"]:
                times = max(many["retriever_x"] for many in row["batches"])
                lines.append(
                    f"{_met(times <= TIMES)} {row['index']}: batches take {times:.2f} times "
                    "faiss called directly (goal: "
                    f"{TIMES})"
                )
        elif row["part"] == "loader":
            lines.append(
                f"{_met(row['share'] < SHARE)} loader: {row['share']:.1%} of a step (goal: "
                f"{SHARE:.0%})"
            )
        elif row["part"] == "open":
            lines.append(
                f"{_met(row['seconds'] < 1 and row['memory_bytes'] < 1e9)} opening: "
                f"{row['seconds']:.2f} s, "
                f"{row['memory_bytes'] / 1e6:.0f} MB (goal: 1 s, 1 GB)"
            )
    return lines


def _met(good: bool) -> str:
    return "met:    " if good else "MISSED: "


def plot_of(path: Path) -> Path:
    """The file of the plot of the results in a JSON file."""
    return path.with_name(f"{path.stem}-recall.png")


def write_plot(path: Path, rows: Sequence[Row], environment: Mapping[str, Any]) -> Path:
    """Plot recall against milliseconds per query, with a panel per modality; dots are the chosen settings. Writes a
    PNG next to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["part"] == "index"]
    bank = next(row for row in rows if row["part"] == "bank")
    figure, panels = pyplot.subplots(
        1, len(MODALITIES), figsize=(11, 4.5), sharey=True, layout="constrained"
    )
    for axes, modality in zip(panels, MODALITIES, strict=True):
        for number, row in enumerate(shown):
            color, chosen = pyplot.get_cmap("tab10")(number), row["queries"][modality]
            points = [point[modality] for point in row["curve"]]
            axes.plot(
                [point["ms"] for point in points],
                [point["recall"] for point in points],
                "-|",
                color=color,
            )
            axes.plot(chosen["search_ms"], chosen["recall"], "o", color=color, label=row["index"])
        axes.axhline(RECALL, color="0.6", linestyle="--", linewidth=0.8)
        axes.axvline(MS, color="0.6", linestyle="--", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(f"milliseconds per search, {modality} queries")
        axes.grid(color="0.9", linewidth=0.5)
    panels[0].set_ylabel(f"recall@{NEAREST}")
    panels[0].legend(fontsize=8, loc="lower right")
    name, load = environment["device"]["name"], environment["load"][0]
    device = f"{name}, {environment['threads']} threads, load {load}"
    figure.suptitle(
        f"{bank['num']:,} vectors of {bank['dimension']} numbers on {device}", fontsize=10
    )
    target = plot_of(path)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return target
