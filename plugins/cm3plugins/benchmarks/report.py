"""A table for people, JSON for programs, a plot for each op."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.files import atomic_path, write_text

#: The file's format; raised when a key changes its meaning.
FORMAT = 1


def table(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, str]) -> str:
    """All rows, case by case; times as "median (p20-p80)" in microseconds.

    Args:
        rows: of `runner.run_op`.
        baselines: op -> provider that the column "x" compares with (how many times as fast).
    """
    lines: list[str] = []
    for op, case in dict.fromkeys((row["op"], row["case"]) for row in rows):
        of_case = [row for row in rows if (row["op"], row["case"]) == (op, case)]
        lines += ["", f"{op}: {case} ({of_case[0]['dtype']})",
                  f"  {'provider':<26} {'warm us':>10} {'p20-p80':>17} {'cold us':>10} {'+-':>4} {'x':>6} {'TFLOP/s':>8} "
                  f"{'of mm':>6} {'GB/s':>7} {'of copy':>7} {'peak MB':>8}  error"]
        base = next((row["warm"]["us"] for row in of_case if row["provider"] == baselines.get(op) and "warm" in row), None)
        lines += [f"  {row['provider']:<26} {_figures(row, base)}" for row in of_case]
    return "\n".join(lines[1:])


def _figures(row: Mapping[str, Any], base: float | None) -> str:
    if "warm" not in row:
        error = f", {row['what']} {row['error']:.1e}" if row["status"] == "dry run" else ""
        return f"{row['status']}{error}" + (f": {row['reason']}" if "reason" in row else "")
    warm, cold = row["warm"], row["cold"]
    faster = f"{base / warm['us']:>6.2f}" if base else f"{'':>6}"
    flop = f"{row['flop_per_s'] / 1e12:>8.3f} {row['of_matmul']:>6.0%}" if row["flop"] else f"{'':>8} {'':>6}"
    peak = f"{row['peak_bytes'] / 1e6:>8.1f}" if row["peak_bytes"] is not None else f"{'?':>8}"
    note = f"  [{warm['method']}]" if warm["method"].startswith("events (") else ""
    span = f"{warm['p20']:.1f}-{warm['p80']:.1f}"
    return (f"{warm['us']:>10.1f} {span:>17} {cold['us']:>10.1f} {max(warm['spread'], cold['spread']):>4.0%} {faster} {flop} "
            f"{row['bytes_per_s'] / 1e9:>7.1f} {row['of_copy']:>7.0%} {peak}  {row['error']:.1e}{note}")


def heading(environment: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """The machine, the versions and its measured ceilings."""
    device, packages = environment["device"], environment["packages"]
    known = [f"{key} {value}" for key, value in device.items() if key != "type"]
    lines = [", ".join([*known, f"{environment['threads']} threads"]),
             ", ".join(f"{name} {found}" for name, found in packages.items() if found)]
    if limits["copy_bytes_per_s"] is not None:
        lines.append(f"copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s, product {limits['matmul']} "
                     f"{limits['matmul_flop_per_s'] / 1e12:.3f} TFLOP/s")
    return "\n".join(lines)


def write_json(path: Path, environment: Mapping[str, Any], limits: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Everything, atomically; after each case, so that an interrupted run leaves what it has."""
    document = {"format": FORMAT, "environment": environment, "ceilings": limits, "results": list(rows)}
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_plots(path: Path, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> list[Path]:
    """One picture for each op beside `path`: STEM-OP.png. A dry run draws it with empty bars."""
    import matplotlib

    matplotlib.use("Agg")
    return [_plot(path.with_name(f"{path.stem}-{op}.png"), op, [row for row in rows if row["op"] == op], environment)
            for op in dict.fromkeys(row["op"] for row in rows)]


def _plot(path: Path, op: str, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> Path:
    """Horizontal bars on a logarithmic scale, a group for each case: warm a bar, cold a stroke; thin lines are p20 to p80."""
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    shown = [row["provider"] for row in rows if "warm" in row or row["status"] == "dry run"]
    providers = list(dict.fromkeys(shown))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * max(1, len(cases) * (len(providers) + 1))))
    height = 1 / (len(providers) + 1)
    for number, provider in enumerate(providers):
        of = [(place, row) for place, case in enumerate(cases) for row in rows
              if (row["case"], row["provider"]) == (case, provider) and "warm" in row]
        at = [place + (number - (len(providers) - 1) / 2) * height for place, _ in of]
        warm = [row["warm"] for _, row in of]
        spans = [[one["us"] - one["p20"] for one in warm], [one["p80"] - one["us"] for one in warm]]
        axes.barh(at, [one["us"] for one in warm], height * 0.9, label=provider, xerr=spans if warm else None,
                  error_kw={"lw": 0.6})
        axes.plot([row["cold"]["us"] for _, row in of], at, "|", color="black", markersize=7, label=None)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    if any("warm" in row for row in rows):
        axes.set_xscale("log")
    axes.set_xlabel("microseconds a call (bar: warm cache, stroke: cold)")
    axes.set_title(f"{op} on {environment['device']['name']}", fontsize=10)
    if providers:
        axes.legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return path
