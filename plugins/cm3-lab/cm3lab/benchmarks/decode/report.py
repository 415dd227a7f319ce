"""Tables and plots; the JSON file is written by `benchmarks.machine.write_json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cm3core.files import atomic_path
from cm3lab.benchmarks.decode.engine import VARIANTS
from cm3lab.benchmarks.decode.workload import Setup

Row = Mapping[str, Any]
#: The provider to compare with: our engine with its defaults.
OURS = next(iter(VARIANTS))


def heading(setup: Setup, load: float | None) -> str:
    """Describe the decoder and the load of the machine."""
    size, dtype = setup.size, str(setup.dtype).removeprefix("torch.")
    return (
        f"decoder {size.name}: {size.num_layers} layers of width {size.width} with "
        f"{size.trunk_parameters / 1e6:.1f}M parameters, "
        f"{size.num_codes} codes, {dtype}; load {load}"
    )


def completed(rows: Sequence[Row], limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add values that depend on other rows and on the bandwidth: `of_read` and `of_copy`, the lower bound's share
    of a step's time; and `engine_x`, our engine's speedup over this provider in this
    case."""
    speed = {
        (row["part"], row["case"]): row["tokens_per_s"]
        for row in rows
        if row["provider"] == OURS and "tokens_per_s" in row
    }
    result = []
    for row in rows:
        result.append(dict(row))
        if "ms_per_step" in row:
            least = row["floor_bytes_per_step"] / (row["ms_per_step"] * 1e-3)
            result[-1].update(
                of_read=least / limits["read_bytes_per_s"],
                of_copy=least / limits["copy_bytes_per_s"],
            )
            if (row["part"], row["case"]) in speed:
                result[-1]["engine_x"] = speed[row["part"], row["case"]] / row["tokens_per_s"]
    return result


def table(rows: Sequence[Row]) -> str:
    """Format all rows, case by case; `rows` are `completed`."""
    lines: list[str] = []
    for part, case in dict.fromkeys((row["part"], row["case"]) for row in rows):
        of_case = [row for row in rows if (row["part"], row["case"]) == (part, case)]
        lines += [
            "",
            f"{part}: {case} ({of_case[0]['dtype']})",
            f"  {'provider':<18} {'seconds':>9} {'p20-p80':>17} {'runs':>4} {'tokens/s':>9} "
            f"{'ms/step':>8} {'of read':>7} "
            f"{'of copy':>7} {OURS + ' x':>9}",
        ]
        lines += [f"  {row['provider']:<18} {_figures(row)}" for row in of_case]
    return "\n".join(lines[1:])


def _figures(row: Row) -> str:
    if "seconds" not in row:
        return f"{row['status']}: {row['reason']}"
    seconds, note = row["seconds"], ""
    if "ratio_to_one" in row:
        note = f"  {row['ratio_to_one']:.2f} times one"
    if "speedup" in row:
        note = f"  {row['speedup']:.1f} times as fast as reading it again"
    if "points" in row:
        first, last = quarters(row["points"])
        note = f"  first quarter {first:.2f} ms per token, last {last:.2f}"
    span, times = (
        f"{seconds['p20']:.2f}-{seconds['p80']:.2f}",
        f"{row['engine_x']:.2f}" if "engine_x" in row else "",
    )
    # a run failed after successful ones
    status = "" if row["status"] == "ok" else f"  {row['status']}: {row['reason']}"
    return (
        f"{seconds['median']:>9.2f} {span:>17} {len(seconds['runs']):>4} "
        f"{row['tokens_per_s']:>9.1f} "
        f"{row['ms_per_step']:>8.2f} {row['of_read']:>7.0%} {row['of_copy']:>7.0%} "
        f"{times:>9}{note}{status}"
    )


def quarters(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the milliseconds per token in the first and in the last quarter of the curve, without the first point
    (which includes the prompt).

    >>> quarters([[1, 9.0], [2, 10.0], [3, 11.0], [4, 13.0], [5, 15.0]])
    (1000.0, 2000.0)
    """
    width = max(1, len(points) // 4)
    if len(points) <= width:
        return float("nan"), float("nan")

    def rate(begin: Sequence[float], end: Sequence[float]) -> float:
        return (end[1] - begin[1]) / (end[0] - begin[0]) * 1e3

    return rate(points[0], points[width]), rate(points[-1 - width], points[-1])


def write_plots(
    path: Path, rows: Sequence[Row], environment: Mapping[str, Any], limits: Mapping[str, Any]
) -> list[Path]:
    """Write plots next to `path` for the parts that were run: STEM-speed.png and STEM-length.png. `rows` are
    `completed`."""
    import matplotlib

    matplotlib.use("Agg")
    title = (
        f"{environment['decoder']['name']} on {environment['device']['name']}, "
        f"{environment['threads']} threads, "
        f"load {environment['load'][0]}"
    )
    timed = [row for row in rows if "seconds" in row]
    bars, curves = (
        [row for row in timed if row["part"] != "length"],
        [row for row in timed if row.get("points")],
    )
    plots = [(_plot_speed, "speed", bars), (_plot_length, "length", curves)]
    return [plot(plot_of(path, name), shown, title, limits) for plot, name, shown in plots if shown]


def plot_of(path: Path, name: str) -> Path:
    """The file of a plot of the results in a JSON file."""
    return path.with_name(f"{path.stem}-{name}.png")


def _plot_speed(path: Path, rows: Sequence[Row], title: str, limits: Mapping[str, Any]) -> Path:
    """Plot a group for each case: tokens per second, and milliseconds per step with p20 to p80 and a mark at the
    lower bound (reading)."""
    from matplotlib import pyplot

    cases, providers = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "provider")
    )
    figure, both = pyplot.subplots(
        1, 2, figsize=(13, 1.6 + 0.24 * len(cases) * (len(providers) + 1)), sharey=True
    )
    height = 1 / (len(providers) + 1)
    for provider in providers:
        of = [row for row in rows if row["provider"] == provider]
        in_case = [
            [other["provider"] for other in rows if other["case"] == row["case"]] for row in of
        ]
        at = [
            cases.index(row["case"]) + (names.index(provider) - (len(names) - 1) / 2) * height
            for row, names in zip(of, in_case, strict=True)
        ]
        color = (
            both[0]
            .barh(at, [row["tokens_per_s"] for row in of], height * 0.9, label=provider)[0]
            .get_facecolor()
        )
        scales = [1e3 / row["parameters"]["tokens"] for row in of]
        spans = [
            [
                abs(row["seconds"][end] - row["seconds"]["median"]) * scale
                for row, scale in zip(of, scales, strict=True)
            ]
            for end in ("p20", "p80")
        ]
        both[1].errorbar(
            [row["ms_per_step"] for row in of],
            at,
            xerr=spans,
            fmt="o",
            markersize=5,
            elinewidth=1,
            color=color,
        )
        floors = [row["floor_bytes_per_step"] / limits["read_bytes_per_s"] * 1e3 for row in of]
        both[1].plot(floors, at, "|", color=color, markersize=9)
    both[0].set_yticks(range(len(cases)), cases, fontsize=8)
    both[0].invert_yaxis()
    both[0].set_xlabel("image tokens per second of finished pictures, with guidance")
    both[1].set_xlabel("milliseconds per step (mark: lower bound from reading)")
    both[1].set_xscale("log")
    both[0].legend(fontsize=7)
    return _saved(path, figure, title)


def _plot_length(path: Path, rows: Sequence[Row], title: str, limits: Mapping[str, Any]) -> Path:
    """Plot time against tokens of one long picture: cumulative, and per token with its lower bound."""
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4))
    for row in rows:
        points = row["points"]
        (line,) = both[0].plot(
            [tokens for tokens, _ in points],
            [seconds for _, seconds in points],
            label=row["provider"],
        )
        steps = [
            ((a[0] + b[0]) / 2, (b[1] - a[1]) / (b[0] - a[0]) * 1e3) for a, b in pairwise(points)
        ]
        both[1].plot(
            [tokens for tokens, _ in steps],
            [ms for _, ms in steps],
            color=line.get_color(),
            label=row["provider"],
        )
        least = [
            num_bytes / limits["read_bytes_per_s"] * 1e3
            for num_bytes in row["floor_bytes_first_and_last"]
        ]
        both[1].plot(
            [1, row["parameters"]["tokens"]],
            least,
            "--",
            color=line.get_color(),
            label=f"{row['provider']}: floor",
        )
    both[0].set_ylabel("seconds")
    both[1].set_ylabel("milliseconds per token")
    for axes in both:
        axes.set_xlabel("image tokens of one picture")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    return _saved(path, figure, title)


def _saved(path: Path, figure: Any, title: str) -> Path:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return path
