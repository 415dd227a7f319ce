"""A table, a JSON file, and a plot per op."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.files import atomic_path, write_text

#: The file's format; raise it when a key changes its meaning.
FORMAT = 1


def table(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, str]) -> str:
    """Format all rows, case by case; times as "median (p20-p80)" in microseconds.

    Args:
        rows: from `runner.run_op`.
        baselines: op -> provider to which the column "x" (the speedup) refers.
    """
    lines: list[str] = []
    for op, case in dict.fromkeys((row["op"], row["case"]) for row in rows):
        of_case = [row for row in rows if (row["op"], row["case"]) == (op, case)]
        lines += [
            "",
            f"{op}: {case} ({of_case[0]['dtype']})",
            f"  {'provider':<26} {'warm us':>10} {'p20-p80':>17} {'cold us':>10} {'+-':>4} "
            f"{'x':>6} {'TFLOP/s':>8} "
            f"{'of mm':>6} {'GB/s':>7} {'of copy':>7} {'peak MB':>8}  error",
        ]
        base = next(
            (
                row["warm"]["us"]
                for row in of_case
                if row["provider"] == baselines.get(op) and "warm" in row
            ),
            None,
        )
        lines += [f"  {row['provider']:<26} {_figures(row, base)}" for row in of_case]
    return "\n".join(lines[1:])


def _figures(row: Mapping[str, Any], base: float | None) -> str:
    if "warm" not in row:
        error = f", {row['what']} {row['error']:.1e}" if row["status"] == "dry run" else ""
        return f"{row['status']}{error}" + (f": {row['reason']}" if "reason" in row else "")
    warm, cold = row["warm"], row["cold"]
    faster = f"{base / warm['us']:>6.2f}" if base else f"{'':>6}"
    flop = (
        f"{row['flop_per_s'] / 1e12:>8.3f} {row['of_matmul']:>6.0%}"
        if row["flop"]
        else f"{'':>8} {'':>6}"
    )
    peak = f"{row['peak_bytes'] / 1e6:>8.1f}" if row["peak_bytes"] is not None else f"{'?':>8}"
    note = f"  [{warm['method']}]" if warm["method"].startswith("events (") else ""
    span = f"{warm['p20']:.1f}-{warm['p80']:.1f}"
    return (
        f"{warm['us']:>10.1f} {span:>17} {cold['us']:>10.1f} "
        f"{max(warm['spread'], cold['spread']):>4.0%} {faster} {flop} "
        f"{row['bytes_per_s'] / 1e9:>7.1f} {row['of_copy']:>7.0%} {peak}  {row['error']:.1e}{note}"
    )


def heading(environment: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """Describe the machine, its versions and its measured limits."""
    device, packages = environment["device"], environment["packages"]
    known = [f"{key} {value}" for key, value in device.items() if key != "type"]
    lines = [
        ", ".join([*known, f"{environment['threads']} threads"]),
        ", ".join(f"{name} {found}" for name, found in packages.items() if found),
    ]
    if limits["copy_bytes_per_s"] is not None:
        lines.append(
            f"copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s, product {limits['matmul']} "
            f"{limits['matmul_flop_per_s'] / 1e12:.3f} TFLOP/s"
        )
    return "\n".join(lines)


def write_json(
    path: Path,
    environment: Mapping[str, Any],
    limits: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Write everything atomically, after each case, so that an interrupted run keeps its results so
    far."""
    document = {
        "format": FORMAT,
        "environment": environment,
        "ceilings": limits,
        "results": list(rows),
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_plots(
    path: Path, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> list[Path]:
    """Write one plot per op next to `path`: STEM-OP.png. A dry run draws it without points."""
    import matplotlib

    matplotlib.use("Agg")
    return [
        _plot(
            path.with_name(f"{path.stem}-{op}.png"),
            op,
            [row for row in rows if row["op"] == op],
            environment,
        )
        for op in dict.fromkeys(row["op"] for row in rows)
    ]


def _plot(
    path: Path, op: str, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> Path:
    """Plot points, not bars (a logarithmic scale has no origin): a band per case, a line per provider."""
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    cases = list(dict.fromkeys(row["case"] for row in rows))
    shown = [row["provider"] for row in rows if "warm" in row or row["status"] == "dry run"]
    providers = list(dict.fromkeys(shown))
    height = 1 / (len(providers) + 1)
    figure, axes = pyplot.subplots(
        figsize=(9, 1.4 + 0.2 * max(2, len(cases) * (len(providers) + 1))), layout="constrained"
    )
    for number, provider in enumerate(providers):
        of = [
            (place, row)
            for place, case in enumerate(cases)
            for row in rows
            if (row["case"], row["provider"]) == (case, provider) and "warm" in row
        ]
        at = [place + (number - (len(providers) - 1) / 2) * height for place, _ in of]
        warm = [row["warm"] for _, row in of]
        # With few runs, rounding may put a percentile on the wrong side of the median.
        spans = [
            [max(0.0, one["us"] - one["p20"]) for one in warm],
            [max(0.0, one["p80"] - one["us"]) for one in warm],
        ]
        color = pyplot.get_cmap("tab20")(number % 20)
        axes.errorbar(
            [one["us"] for one in warm],
            at,
            xerr=spans if warm else None,
            fmt="o",
            markersize=5,
            elinewidth=1,
            color=color,
            label=provider,
        )
        axes.plot([row["cold"]["us"] for _, row in of], at, "|", color=color, markersize=9)
    for place in range(1, len(cases), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    if any("warm" in row for row in rows):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:,g}"))
    axes.tick_params(axis="x", which="both", labelsize=7, labelrotation=30)
    axes.grid(axis="x", which="both", color="0.85", linewidth=0.5)
    axes.set_xlabel(
        "microseconds per call (point: warm cache, with p20 to p80; stroke: cold cache)"
    )
    axes.set_title(f"{op} on {environment['device']['name']}", fontsize=10)
    if providers:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return path
