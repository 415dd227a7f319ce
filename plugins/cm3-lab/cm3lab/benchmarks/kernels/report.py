"""A table; files of results: JSON, CSV, a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import CM3Error, MissingPackageError
from cm3core.files import atomic_path, write_text
from cm3core.outputs import claim_file
from cm3lab.benchmarks.machine import write_json

Row = Mapping[str, Any]
PLACE = "cm3 bench kernels -o"
PICTURES = (".png", ".svg", ".pdf")
SUFFIXES = (".json", ".csv", *PICTURES)
#: Column of the CSV -> where a row has its value; those of the machine come after them.
COLUMNS: dict[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in ("op", "shape", "dtype", "direction", "provider", "status", "reason")
    },
    **{
        f"{state}_{name}": (state, name)
        for state in ("warm", "cold")
        for name in ("us", "p20", "p80", "spread", "method")
    },
    "roof": ("roof", "binds"),
    "roof_us": ("roof", "us"),
    "roof_fraction": ("roof", "fraction"),
    **{name: (name,) for name in ("num_bytes", "bytes_per_s", "flop", "flop_per_s")},
    **{name: (name,) for name in ("speedup", "peak_bytes", "error", "limit", "what")},
}


def table(rows: Sequence[Row]) -> str:
    """Format all rows, case by case; times as "median (p20-p80)" in microseconds."""
    lines: list[str] = []
    heads = [(row["op"], row["shape"], row["dtype"], row["direction"]) for row in rows]
    for head in dict.fromkeys(heads):
        of_case = [row for row, own in zip(rows, heads, strict=True) if own == head]
        op, shape, dtype, direction = head
        lines += [
            "",
            f"{op} {shape} {dtype} {direction}",
            f"  {'provider':<26} {'warm us':>10} {'p20-p80':>17} {'cold us':>10} {'+-':>4} "
            f"{'x':>6} {'TFLOP/s':>8} {'GB/s':>7} {'roof':>12} {'peak MB':>8}  error",
        ]
        ran = [row for row in of_case if row["status"] != "not run"]
        lines += [f"  {row['provider']:<26} {_figures(row)}" for row in ran]
        reasons: dict[str, list[str]] = {}
        for row in of_case:
            if row["status"] == "not run":
                reasons.setdefault(row["reason"], []).append(row["provider"])
        lines += [f"  not run: {', '.join(of)} ({reason})" for reason, of in reasons.items()]
    return "\n".join(lines[1:])


def _figures(row: Row) -> str:
    if "warm" not in row:
        error = f", {row['what']} {row['error']:.1e}" if row["status"] == "dry run" else ""
        return f"{row['status']}{error}" + (f": {row['reason']}" if "reason" in row else "")
    warm, cold, roof = row["warm"], row["cold"], row["roof"]
    faster = f"{row['speedup']:>6.2f}" if "speedup" in row else f"{'':>6}"
    flop = f"{row['flop_per_s'] / 1e12:>8.3f}" if row["flop"] else f"{'':>8}"
    peak = f"{row['peak_bytes'] / 1e6:>8.1f}" if row["peak_bytes"] is not None else f"{'?':>8}"
    note = f"  [{warm['method']}]" if warm["method"].startswith("events (") else ""
    span = f"{warm['p20']:.1f}-{warm['p80']:.1f}"
    of_roof = f"{roof['fraction']:.0%} {roof['binds']}"
    return (
        f"{warm['us']:>10.1f} {span:>17} {cold['us']:>10.1f} "
        f"{max(warm['spread'], cold['spread']):>4.0%} {faster} {flop} "
        f"{row['bytes_per_s'] / 1e9:>7.1f} {of_roof:>12} {peak}  {row['error']:.1e}{note}"
    )


class Files:
    """The files of a run, each in the format of its suffix.

    Args:
        paths: of `-o`; JSON, CSV or a picture.

    Raises:
        CM3Error: an unknown suffix, or a place that can't be written.
        MissingPackageError: a picture without matplotlib.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(dict.fromkeys(paths))
        for path in self.paths:
            if path.suffix.lower() not in SUFFIXES:
                raise CM3Error(
                    f"{PLACE} {path}",
                    f"the format {path.suffix or 'without a suffix'} is not supported",
                    f"end the file's name with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}",
                )
            if path.suffix.lower() in PICTURES:
                _require_matplotlib(path)
            claim_file(path)

    def write(self, environment: Row, limits: Row, rows: Sequence[Row]) -> None:
        """Write JSON and CSV; called after each case, so that an interrupted run keeps its results so far."""
        for path in self.paths:
            if path.suffix.lower() == ".json":
                write_json(path, "kernels", environment, limits, rows)
            elif path.suffix.lower() == ".csv":
                write_text(path, csv_text(environment, rows))

    def finish(self, environment: Row, rows: Sequence[Row]) -> None:
        """Draw the pictures."""
        for path in self.paths:
            if path.suffix.lower() in PICTURES:
                write_plot(path, rows, environment)


def _require_matplotlib(path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackageError.extra(f"{PLACE} {path}", "matplotlib", "plots") from None


def csv_text(environment: Row, rows: Sequence[Row]) -> str:
    """Return a line for each case and provider, in the columns of `COLUMNS` and those of the machine; what a row lacks
    is empty."""
    machine = {
        "device": environment["device"]["name"],
        "threads": environment["threads"],
        **{name: environment["packages"].get(name) for name in ("torch", "triton")},
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *machine], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _value(row, keys) for name, keys in COLUMNS.items()} | machine)
    return text.getvalue()


def _value(row: Any, keys: Sequence[str]) -> Any:
    """Return the value at these keys, one in the other; None if a key is not there."""
    for key in keys:
        row = None if row is None else row.get(key)
    return row


def write_plot(path: Path, rows: Sequence[Row], environment: Row) -> None:
    """Plot points, not bars (a logarithmic scale has no origin): a panel per op, a band per case, a line per
    provider. A dry run has no points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ops = list(dict.fromkeys(row["op"] for row in rows))
    panels = [[row for row in rows if row["op"] == op] for op in ops]
    heights = [max(3, len(_cases(of)) * (len(_shown(of)) + 1)) for of in panels]
    figure, axes = pyplot.subplots(
        len(ops),
        figsize=(11, 1 + 0.2 * sum(heights) + 0.8 * len(ops)),
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for op, of, own in zip(ops, panels, axes[:, 0], strict=True):
        _panel(own, op, of)
    figure.suptitle(f"{environment['device']['name']}, {environment['threads']} threads", size=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=120)
    pyplot.close(figure)


def _cases(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row["shape"], row["dtype"], row["direction"]) for row in rows))


def _shown(rows: Sequence[Row]) -> list[str]:
    """Return the providers that were timed or, in a dry run, ran."""
    names = [row["provider"] for row in rows if "warm" in row or row["status"] == "dry run"]
    return list(dict.fromkeys(names))


def _panel(axes: Any, op: str, rows: Sequence[Row]) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    cases, providers = _cases(rows), _shown(rows)
    height = 1 / (len(providers) + 1)
    timed = [row for row in rows if "warm" in row]
    for number, provider in enumerate(providers):
        of = [row for row in timed if row["provider"] == provider]
        offset = (number - (len(providers) - 1) / 2) * height
        at = [cases.index((row["shape"], row["dtype"], row["direction"])) + offset for row in of]
        warm = [row["warm"] for row in of]
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
        axes.plot([row["cold"]["us"] for row in of], at, "|", color=color, markersize=9)
    for place, case in enumerate(cases):
        least = [
            row["roof"]["us"]
            for row in timed
            if (row["shape"], row["dtype"], row["direction"]) == case
        ]
        axes.vlines(least[:1], place - 0.5, place + 0.5, color="0.3", linestyle=":", linewidth=1)
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    axes.set_yticks(range(len(cases)), ["\n".join((one[0], " ".join(one[1:]))) for one in cases])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    if timed:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:,g}"))
    axes.tick_params(axis="x", which="both", labelsize=7, labelrotation=30)
    axes.grid(axis="x", which="both", color="0.85", linewidth=0.5)
    axes.set_xlabel(
        "microseconds per call (point: warm cache, with p20 to p80; stroke: cold cache; dotted: the roof)",
        fontsize=8,
    )
    axes.set_title(op, fontsize=10)
    if providers:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
