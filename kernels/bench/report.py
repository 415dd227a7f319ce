"""Print what `on_gpu` measured so far beside what was expected, and attention of a training step by provider.

    python kernels/bench/report.py OUT

Expectations are for one H100 (SXM). They were computed: launches, live memory and graphs from runs with fake CUDA
tensors, times from bytes and operations. What differs much from its expectation is where to look first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRESENT = "cm3/triton"
#: File -> what the expectations of its figures are for: its key, and the value.
OF = {"training": ("recipe", "cm3leon-350m"), "decode": ("size", "7b")}

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A line of the report.

    Args:
        name: with the unit.
        file: the JSON file that has it.
        read: returns it from the file's contents; None or KeyError: it is not there.
        expected: the expectation; "a-b": between them.
    """

    name: str
    file: str
    read: Callable[[Results], float | None]
    expected: str


def of_kernel(
    op: str, shape: Mapping[str, object], direction: str, value: Callable[[Results], float]
) -> Callable[[Results], float]:
    """Read a value of the present implementation's first row with these values in its shape."""

    def read(found: Results) -> float:
        return next(
            value(row)
            for row in found["results"]
            if (row["op"], row["direction"], row["provider"]) == (op, direction, PRESENT)
            and shape.items() <= row["parameters"].items()
            and "warm" in row
        )

    return read


def _teraflops(row: Results) -> float:
    return float(row["flop_per_s"]) / 1e12


def _microseconds(row: Results) -> float:
    return float(row["warm"]["us"])


def figures() -> list[Figure]:
    """All lines, in the order of the report."""
    long = {"B": 1, "H": 32, "T": 4096, "D": 128, "documents": 1}
    short = {"B": 8, "H": 16, "T": 4096, "D": 64, "documents": 1}
    kernels = [
        ("attention, D 128, forward, TFLOP/s", long, "forward", "330"),
        ("attention, D 64, forward, TFLOP/s", short, "forward", "300"),
        ("attention, D 128, forward and backward, TFLOP/s", long, "both", "230-330"),
        ("attention, D 64, forward and backward, TFLOP/s", short, "both", "230-300"),
    ]
    steps = [
        ("training", "31"),
        ("training-compiled", "35"),
        ("training-sdpa", "13"),
        ("training-flex", "31-40"),
    ]
    return [
        Figure(
            "copy, GB/s", "quick", lambda found: found["ceilings"]["copy_bytes_per_s"] / 1e9, "2700"
        ),
        Figure(
            "product 8192^3 bfloat16, TFLOP/s",
            "quick",
            lambda found: found["ceilings"]["flop_per_s"]["bfloat16"] / 1e12,
            "650",
        ),
        *(
            Figure(name, "quick", of_kernel("attention", shape, way, _teraflops), expected)
            for name, shape, way, expected in kernels
        ),
        Figure(
            "guided_sample, 8,192 ids, us",
            "quick",
            of_kernel("guided_sample", {"n": 8, "V": 8192}, "forward", _microseconds),
            "20-25",
        ),
        *(
            Figure(
                f"350M step ({name}), % of a product's throughput",
                name,
                lambda found: 100 * found["of_products"],
                expected,
            )
            for name, expected in steps
        ),
        Figure("350M step, launches", "training", lambda found: found["launches"], "1223"),
        Figure(
            "350M step, live memory at its peak, GB",
            "training",
            lambda found: found["peak_gb"],
            "30.3",
        ),
        Figure(
            "7B decoding, kernels per token",
            "decode",
            lambda found: found["kernels_per_token"],
            "355",
        ),
        Figure(
            "7B decoding, ms per token", "decode", lambda found: found["ms_per_token"], "5.7-6.3"
        ),
        Figure(
            "tokens equal on CPU and device, %",
            "decode",
            lambda found: 100 * found["golden"]["equal"] / found["golden"]["tokens"],
            "100",
        ),
    ]


def lines(out: Path) -> list[str]:
    """The report of a folder that `on_gpu` fills."""
    made = [f"{'figure':<60} {'measured':>10} {'expected':>10} {'ratio':>6}"]
    for figure in figures():
        found = contents(out / f"{figure.file}.json")
        try:
            value = None if found is None else figure.read(found)
        except (KeyError, StopIteration, TypeError, ZeroDivisionError):
            value = None
        key, wanted = OF.get(figure.file.partition("-")[0], ("", ""))
        other = "" if found is None else found.get(key, wanted)
        if value is None or other != wanted:
            cause = f"{figure.file}.json is not there" if found is None else "not measured"
            cause = cause if value is None else f"{value:,.1f} with {other}"
            made.append(f"{figure.name:<60} {'-':>10} {figure.expected:>10}        {cause}")
        else:
            made.append(
                f"{figure.name:<60} {value:>10,.1f} {figure.expected:>10} {ratio(value, figure):>6.2f}"
            )
    return [*made, "", *attention_lines(out)]


def contents(path: Path) -> Results | None:
    """A JSON file; None if it isn't there or isn't whole."""
    try:
        found: Results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def ratio(value: float, figure: Figure) -> float:
    """Measured over expected; 1 within the expected range.

    >>> ratio(24.0, Figure("x", "y", lambda found: 0.0, "20-25")), ratio(50.0, Figure("x", "y", lambda found: 0.0, "20-25"))
    (1.0, 2.0)
    """
    ends = [float(end) for end in figure.expected.split("-")]
    return value / min(max(value, ends[0]), ends[-1])


def attention_lines(out: Path) -> list[str]:
    """Providers of training attention, fastest first, and those that did not run with their reason."""
    found = contents(out / "full-attention.json") or contents(out / "quick.json")
    rows = [
        row
        for row in (found or {}).get("results", [])
        if row["op"] == "attention" and row["direction"] == "both"
    ]
    if not rows:
        return ["attention of a training step: not measured"]
    times: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        if "warm" in row:
            times.setdefault(row["provider"], {})[row["shape"]] = row["warm"]["us"]
        else:
            reasons.setdefault(row["provider"], f"{row['status']}: {row.get('reason', '')}")
    present = times.get(PRESENT, {})
    parts = {
        name: sum(of_case.values()) / sum(present[case] for case in of_case)
        for name, of_case in times.items()
        if set(of_case) <= set(present)
    }
    made = [f"attention of a training step, forward and backward: time over that of {PRESENT}"]
    for name in sorted(parts, key=lambda name: parts[name]):
        missing = len(present) - len(times[name])
        made.append(
            f"  {name:<24} {parts[name]:>5.2f}{f'  ({missing} cases less)' if missing else ''}"
        )
    return made + [
        f"  {name:<24}     -  {reason}" for name, reason in reasons.items() if name not in parts
    ]


def main() -> None:
    print("\n".join(lines(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
