"""The budget: the recorded usage of every entry, and the definition of a regression."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cm3kernels.aot.compiling import Usage, instructions_of
from cm3kernels.aot.entry import AotEntry, fingerprint
from cm3kernels.aot.jobs import Result

BUDGET = Path(__file__).parents[1] / "budget.json"
#: Shared memory that a block may use, bytes: 163 KiB on sm_80, 227 KiB on sm_90 and sm_100, 99 KiB on sm_120 (CUDA
#: programming guide, compute capabilities).
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
#: How much registers and shared memory may grow before it counts as a regression.
TOLERANCE = 0.05


def triton_version() -> str:
    """Return the installed version: "3.7.1"."""
    import triton

    return str(triton.__version__)


def triton_series() -> str:
    """Return the key of the budget: "3.7". The compiler, and with it register use, changes between series."""
    return ".".join(triton_version().split(".")[:2])


def read_budget(path: Path = BUDGET) -> dict[str, Any]:
    """Return the recorded usage: {"3.7": {"triton": "3.7.1", "entries": {name: {target: usage and
    fingerprint}}}}."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def unchanged(
    entries: Sequence[AotEntry], recorded: Mapping[str, Any], *, always: str = "kernel"
) -> list[Result]:
    """Return the recorded results that need not be compiled again: entries and targets with the same fingerprint,
    except the first entry of each kernel function, which is always compiled.

    Args:
        entries: all entries, sorted.
        recorded: the budget's "entries", for exactly this version of Triton.
        always: "nothing" also skips those first entries.
    """
    found, seen = [], set()
    for entry in entries:
        targets = recorded.get(entry.name, {})
        first = always == "kernel" and id(entry.kernel) not in seen
        seen.add(id(entry.kernel))
        wanted = [f"sm_{arch}" for arch in entry.archs if not first]
        found += [
            Result(
                entry.name,
                target,
                Usage(**{field.name: targets[target][field.name] for field in fields(Usage)}),
            )
            for target in wanted
            if targets.get(target, {}).get("fingerprint") == fingerprint(entry)
        ]
    return found


def findings(
    entries: Sequence[AotEntry],
    results: Sequence[Result],
    recorded: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Return all problems, one line each; empty if there are none.

    Args:
        entries: all entries.
        results: results of compilation.
        recorded: the budget's "entries" of this series: name -> target -> usage.
        tolerance: allowed growth of registers and shared memory.
    """
    by_name = {entry.name: entry for entry in entries}
    wrong = [
        finding
        for result in results
        for finding in _check(by_name[result.name], result, recorded, tolerance)
    ]
    wrong += [
        f"{name}: is in the budget, but no kernel has this entry any more"
        for name in sorted(set(recorded) - set(by_name))
    ]
    return wrong


def _check(
    entry: AotEntry, result: Result, recorded: Mapping[str, Any], tolerance: float
) -> list[str]:
    place, usage = f"{result.name} on {result.target}", result.usage
    if usage is None:
        return [f"{place}: does not compile: {result.error}"]
    arch = int(result.target[3:]) if re.fullmatch(r"sm_\d+", result.target) else None
    if arch is None:
        return []
    wrong = []
    if usage.spill:
        wrong.append(f"{place}: spills {usage.spill} bytes per thread")
    if usage.shared > SHARED_LIMIT[arch]:
        wrong.append(
            f"{place}: needs {usage.shared} bytes of shared memory, but a block has "
            f"{SHARED_LIMIT[arch]}"
        )
    wrong += [
        f"{place}: {name} does not occur ({instructions_of(usage)})"
        for name in entry.expects.get(arch, ())
        if not usage.instructions.get(name)
    ]
    if entry.multiply_adds and usage.multiply_adds > entry.multiply_adds:
        wrong.append(
            f"{place}: multiplies {usage.multiply_adds / entry.multiply_adds:.2f} times what its "
            "tiles need: they have too few rows for its warps"
        )
    budget = recorded.get(result.name, {}).get(result.target)
    if budget is None:
        return [*wrong, f"{place}: is not in the budget"]
    wrong += [
        f"{place}: {what} {now}, recorded {budget[what]}"
        for what, now in (("registers", usage.registers), ("shared", usage.shared))
        if now > budget[what] * (1 + tolerance)
    ]
    return wrong


def as_budget(
    results: Iterable[Result], entries: Iterable[AotEntry] = ()
) -> dict[str, dict[str, Any]]:
    """Return the record: name -> target -> usage and fingerprint, for aligned NVIDIA targets only."""
    prints = {entry.name: {"fingerprint": fingerprint(entry)} for entry in entries}
    recorded: dict[str, dict[str, Any]] = {}
    for result in results:
        if result.usage is not None and re.fullmatch(r"sm_\d+", result.target):
            recorded.setdefault(result.name, {})[result.target] = {
                **asdict(result.usage),
                **prints.get(result.name, {}),
            }
    return recorded


def write_budget(recorded: Mapping[str, Any], path: Path = BUDGET) -> None:
    """Replace the file atomically."""
    text = json.dumps(recorded, indent=1, sort_keys=True)
    # One line per target, so that a changed kernel changes only its own lines.
    text = re.sub(
        r"\{\n[^{}]*\"instructions\": \{[^}]*\},[^}]*\}",
        lambda match: re.sub(r"\s+", " ", match[0]),
        text,
    )
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 (atomic)
