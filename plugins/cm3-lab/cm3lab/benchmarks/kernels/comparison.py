"""`cm3 bench compare`: whether kernels became slower between two JSON files of `cm3 bench kernels`. Light: no torch."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3apps.cli import real_number
from cm3core.errors import CM3Error, DataError

HELP = "compare two results of `cm3 bench kernels -o FILE.json`"
DESCRIPTION = """Compare the times of each op, shape, dtype, direction and provider in two JSON files of one device.

Slower: the median is more than --threshold times the old one, and the ranges don't overlap, from the least of
the 20th percentile and both medians to the greatest of the 80th and both medians. The exit code is 0 without
anything slower, 1 if something is slower or no longer gives a right result, and 2 if nothing can be compared."""
EXAMPLE = """examples:
  cm3 bench compare old.json new.json
  cm3 bench compare old.json new.json --threshold 1.2"""
PLACE = "cm3 bench compare"
#: What must be the same in both rows.
KEY = ("op", "shape", "dtype", "direction", "provider")
STATES = ("warm", "cold")
#: The format that `cm3lab.benchmarks.machine` writes, which would import torch.
FORMAT = 2
Key = tuple[str, ...]


@dataclass(frozen=True)
class Timed:
    """A stored time: the median in microseconds, and the range within which medians differ by chance."""

    us: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Result:
    """A row: its status, the reason of one that was not timed, and its times by state of the cache."""

    status: str
    reason: str
    times: Mapping[str, Timed]


@dataclass(frozen=True)
class Results:
    """A file: the machine with its roofs (name -> bytes or operations per second), and the rows."""

    path: Path
    device: str
    threads: int
    packages: Mapping[str, str | None]
    roofs: Mapping[str, float]
    rows: Mapping[Key, Result]


@dataclass(frozen=True)
class Line:
    """A compared time; `verdict` is "slower", "faster", "within spread" (the threshold is passed, but the ranges overlap)
    or "same"."""

    key: Key
    state: str
    old: Timed
    new: Timed
    verdict: str

    @property
    def ratio(self) -> float:
        return self.new.us / self.old.us


@dataclass(frozen=True)
class Comparison:
    """Compared times; results that are no longer right; what only one file has, with the reason where the other gives
    one."""

    lines: list[Line]
    broken: list[tuple[Key, str]]
    only_old: list[tuple[Key, str]]
    only_new: list[tuple[Key, str]]

    @property
    def regressed(self) -> bool:
        return bool(self.broken) or any(line.verdict == "slower" for line in self.lines)


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the earlier results, a file")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the later results, a file")
    parser.add_argument(
        "--threshold",
        type=real_number(1, 100),
        default=1.05,
        metavar="RATIO",
        help="new time over old time beyond which a kernel is slower (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print the comparison; returns 1 if something regressed."""
    old, new = load(args.old), load(args.new)
    check_comparable(old, new)
    found = compare(old, new, args.threshold)
    if not (found.lines or found.broken):
        raise CM3Error(
            f"{PLACE} {args.old} {args.new}",
            f"no {', '.join(KEY[:-1])} and {KEY[-1]} is timed in both",
            "measure both with the same options of `cm3 bench kernels`",
        )
    print("\n".join(described(old, new, found, args.threshold)))
    return int(found.regressed)


def compare(old: Results, new: Results, threshold: float) -> Comparison:
    """Compare what both files have."""
    lines, broken, only_old, only_new = [], [], [], []
    for key, before in old.rows.items():
        after = new.rows.get(key)
        if not before.times:
            continue
        if after is not None and after.status in ("wrong", "failed"):
            broken.append((key, f"{after.status}: {after.reason}"))
        elif after is None or not after.times:
            only_old.append((key, "" if after is None else f"{after.status}: {after.reason}"))
        else:
            for state in STATES:
                one, other = before.times[state], after.times[state]
                lines.append(Line(key, state, one, other, verdict_of(one, other, threshold)))
    for key, after in new.rows.items():
        before_too = old.rows.get(key)
        if after.times and (before_too is None or not before_too.times):
            reason = "" if before_too is None else f"{before_too.status}: {before_too.reason}"
            only_new.append((key, reason))
    return Comparison(lines, broken, only_old, only_new)


def verdict_of(old: Timed, new: Timed, threshold: float) -> str:
    """Return how a time changed.

    >>> verdict_of(Timed(100, 99, 102, "graph"), Timed(110, 103, 111, "graph"), 1.05)
    'slower'
    >>> verdict_of(Timed(100, 99, 104, "graph"), Timed(110, 103, 111, "graph"), 1.05)
    'within spread'
    """
    apart = new.low > old.high or new.high < old.low
    if new.us > old.us * threshold:
        return "slower" if apart else "within spread"
    if new.us * threshold < old.us:
        return "faster" if apart else "within spread"
    return "same"


def check_comparable(old: Results, new: Results) -> None:
    """Refuse times of different devices or thread counts."""
    for what, one, other in (
        ("device", old.device, new.device),
        ("number of threads", old.threads, new.threads),
    ):
        if one != other:
            raise CM3Error(
                f"{PLACE} {old.path} {new.path}",
                f"the {what} is {one} in the first and {other} in the second",
                "measure both on one machine with the same --device and --threads",
            )


def described(old: Results, new: Results, found: Comparison, threshold: float) -> list[str]:
    """Return the report: times that changed, results that broke, what is in one file only, counts."""
    lines = [f"{old.device}, {old.threads} threads; threshold {threshold:g}"]
    for name in sorted({*old.packages, *new.packages}):
        before, after = old.packages.get(name), new.packages.get(name)
        if before != after:
            lines.append(f"{name} {before or 'not installed'} -> {after or 'not installed'}")
    for name in sorted(old.roofs.keys() & new.roofs.keys()):
        ratio = new.roofs[name] / old.roofs[name]
        if max(ratio, 1 / ratio) > threshold:
            lines.append(f"the machine's roof {name} is {ratio:.2f} times the earlier one")
    changed = [line for line in found.lines if line.verdict != "same"]
    for line in sorted(changed, key=lambda line: -line.ratio):
        method = (
            f"  [{line.old.method} -> {line.new.method}]"
            if line.old.method != line.new.method
            else ""
        )
        lines.append(
            f"{line.verdict:<13} {line.ratio:>6.2f} x  {line.old.us:,.1f} -> {line.new.us:,.1f} us  "
            f"{named(line.key)} {line.state}{method}"
        )
    lines += [f"{'broken':<13} {named(key)}  ({reason})" for key, reason in found.broken]
    for file, only in ((old, found.only_old), (new, found.only_new)):
        lines += [
            f"only in {file.path}: {named(key)}{f'  (the other: {reason})' if reason else ''}"
            for key, reason in only
        ]
    count: Callable[[str], int] = [line.verdict for line in found.lines].count
    lines.append(
        f"{len(found.lines)} times compared: {count('slower')} slower, {count('faster')} faster, "
        f"{count('within spread')} within their spread, {count('same')} the same; "
        f"{len(found.broken)} broken; {len(found.only_old)} only in the first, "
        f"{len(found.only_new)} only in the second"
    )
    return lines


def named(key: Key) -> str:
    return " ".join(key)


def load(path: Path) -> Results:
    """Read a JSON file of `cm3 bench kernels`.

    Raises:
        CM3Error: it is not there, no such file, of another format, or was not timed.
    """
    from cm3core.files import read_text
    from cm3run.json_text import parse_json

    place, again = f"{PLACE} {path}", "write it by `cm3 bench kernels -o FILE.json`"
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(place, f"can't be read ({error})", again) from error
    found = parse_json(text, place, again)
    if not isinstance(found, dict) or found.get("benchmark") != "kernels":
        raise DataError(place, "has no results of `cm3 bench kernels`", again)
    if found.get("format") != FORMAT:
        cause = f"has the format {found.get('format')!r}, this version reads {FORMAT}"
        raise DataError(place, cause, "measure again with this version")
    try:
        results = _results(path, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        cause = f"is damaged ({type(error).__name__}: {error})"
        raise DataError(place, cause, again) from error
    if not any(row.times for row in results.rows.values()):
        raise DataError(
            place, "has no times: nothing ran, or it was a dry run", "measure without --dry-run"
        )
    return results


def _results(path: Path, found: Mapping[str, Any]) -> Results:
    environment = found["environment"]
    device = environment["device"]
    name = f"{device['type']} {device['name']}"
    rows = {}
    for row in found["results"]:
        key = tuple(str(row[name]) for name in KEY)
        times = {state: _timed(row[state]) for state in STATES} if STATES[0] in row else {}
        rows[key] = Result(str(row["status"]), str(row.get("reason", "")), times)
    ceilings = found["ceilings"]
    roofs = {"copy": ceilings["copy_bytes_per_s"], **ceilings["flop_per_s"]}
    measured = {key: float(value) for key, value in roofs.items() if value is not None}
    if not all(math.isfinite(value) and value > 0 for value in measured.values()):
        raise ValueError("a roof is not positive")
    packages = dict(environment["packages"])
    return Results(path, name, int(environment["threads"]), packages, measured, rows)


def _timed(row: Mapping[str, Any]) -> Timed:
    us, p20, p80 = (float(row[name]) for name in ("us", "p20", "p80"))
    medians = [float(one) for one in row["both_us"]]
    every = [us, p20, p80, *medians]
    if not all(math.isfinite(one) and one > 0 for one in every):
        raise ValueError(f"a time is {min(every)}, must be positive")
    return Timed(us, min(p20, *medians), max(p80, *medians), str(row["method"]))
