"""Runs the benchmark: for each case, first the check, then timing, twice, provider by provider; wrong results are not
timed."""

from __future__ import annotations

import gc
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from cm3lab.benchmarks import measure
from cm3lab.benchmarks.measure import Stopwatch, Timing
from cm3run.benchmarks import Case, Inputs, Op, Provider, Where
from cm3run.progress import make_bar

#: An input is repeated only after this many times the cache's size, with at most this many copies
#: and bytes.
TIMES_CACHE, MAX_COPIES, MAX_COPY_BYTES = {"cpu": 2, "cuda": 5}, 64, 4 * 2**30
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "xformers",
    "mslk-cuda",
    "flashinfer-python",
    "numpy",
)
SEED = 20_240_229
#: Compiled providers are compiled for each case.
MOST_COMPILATIONS = 10_000


@dataclass(frozen=True)
class Given:
    """A case, several copies of its inputs, and the expected result."""

    op: Op
    case: Case
    copies: Sequence[Inputs]
    expected: Any


@dataclass
class Prepared:
    """A provider that passed the check, ready to be timed."""

    row: dict[str, Any]
    calls: list[Callable[[], Any]]


def stopwatch_for(where: Where) -> Stopwatch:
    """Return the stopwatch for a target; a dry run repeats as little as possible. GPU time is expensive, and GPU timings
    vary less."""
    seconds, least = {
        "full": (1.0 if where.target == "cpu" else 0.25, 20),
        "quick": (0.2, 10),
        "dry": (0.0, 1),
    }[where.size]
    if where.target == "cpu":
        return measure.CPUStopwatch(seconds, least)
    return measure.CUDAStopwatch(
        seconds, least, torch.cuda if where.device.type == "cuda" else measure.AbsentCUDA()
    )


def environment(where: Where) -> dict[str, Any]:
    """Return the machine and the versions to which the figures apply."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    device: dict[str, Any] = {"type": where.device.type, "name": _processor()}
    if where.device.type == "cuda":
        properties = torch.cuda.get_device_properties(where.device)
        device = {
            "type": "cuda",
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return {
        "device": device,
        "target": where.target,
        "size": where.size,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": found,
        "cache_bytes": measure.cache_bytes(where.device),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(
                (line.split(":")[1].strip() for line in file if line.startswith("model name")),
                platform.machine(),
            )
    except OSError:
        return platform.machine()


def _driver() -> str | None:
    """Return the NVIDIA driver's version; None if unknown."""
    import subprocess

    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


def ceilings(where: Where, stopwatch: Stopwatch) -> dict[str, Any]:
    """Measure the limits of this machine: bytes per second of a copy, operations per second of a matrix
    product."""
    large = where.target == "cuda" and not where.dry
    num_bytes = 2**30 if large else 2**20 if where.dry else 2**27
    side, dtype = (8192, torch.bfloat16) if large else (64 if where.dry else 1024, torch.float32)
    copy = measure.copy_bandwidth(stopwatch, where.device, num_bytes)
    product = measure.matmul_rate(stopwatch, where.device, side, dtype)
    kind = f"{side}^3 {str(dtype).removeprefix('torch.')}"
    return {
        "copy_bytes_per_s": None if where.dry else copy,
        "matmul_flop_per_s": None if where.dry else product,
        "matmul": kind,
    }


def run_op(
    op: Op,
    where: Where,
    stopwatch: Stopwatch,
    limits: dict[str, Any],
    *,
    providers: Sequence[str] = (),
    done: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Run all cases of an op.

    Args:
        op: the op.
        where: device and size.
        stopwatch: from `stopwatch_for`.
        limits: from `ceilings`.
        providers: names; empty: all.
        done: called with the rows of each finished case.

    Returns:
        A row (a plain dict, as in the JSON) for each case and provider.
    """
    chosen = [provider for provider in op.providers if not providers or provider.name in providers]
    rows: list[dict[str, Any]] = []
    # Beyond its recompilation limit torch runs a function uncompiled, while it is still listed as
    # compiled.
    with torch._dynamo.config.patch(
        recompile_limit=MOST_COMPILATIONS, accumulated_recompile_limit=MOST_COMPILATIONS
    ):
        for case in make_bar(op.cases(where), desc=op.name, unit="case", disable=None, leave=False):
            of_case = _run_case(op, case, chosen, where, stopwatch, limits)
            rows += of_case
            done(of_case)
    return rows


def _run_case(
    op: Op,
    case: Case,
    providers: Sequence[Provider],
    where: Where,
    stopwatch: Stopwatch,
    limits: dict[str, Any],
) -> list[dict[str, Any]]:
    copies = [
        op.inputs(case, where, SEED + number) for number in range(_num_copies(op, case, where))
    ]
    given = Given(op, case, copies, op.expected(case, copies[0]))
    rows, prepared = [], []
    for provider in providers:
        row = {
            "op": op.name,
            "case": case.name,
            "parameters": dict(case.parameters),
            "provider": provider.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "num_bytes": case.num_bytes,
            "flop": case.flop,
        }
        rows.append(row)
        calls = _gated(given, provider, where, row)
        if calls is not None:
            prepared.append(Prepared(row, calls))
    # all providers, then all again: the difference shows how reliable the figures are
    for _ in range(1 if where.dry else 2):
        for item in prepared:
            _time(item, stopwatch)
    for item in prepared:
        _complete(item, case, where, stopwatch, limits)
    del copies, given, prepared
    gc.collect()
    return rows


def _gated(
    given: Given, provider: Provider, where: Where, row: dict[str, Any]
) -> list[Callable[[], Any]] | None:
    """Return the provider's calls, one per copy of the inputs; None if it can't run or is wrong, with the reason in the
    row."""
    try:
        if (reason := provider.enabled(given.case, where)) is not None:
            row.update(status="not run", reason=reason)
            return None
        calls = [provider.prepare(given.case, inputs) for inputs in given.copies]
        verdict = given.op.gate(given.case, given.expected, calls[0]())
    except Exception as error:
        # a provider is third-party code and may raise anything; the others still run
        first = (str(error).strip().splitlines() or [""])[0]
        row.update(status="failed", reason=f"{type(error).__name__}: {first[:200]}")
        return None
    row.update(
        error=verdict.error if math.isfinite(verdict.error) else None,
        limit=verdict.limit,
        what=verdict.what,
    )
    if not verdict.passed:
        row.update(
            status="wrong",
            reason=f"{verdict.what} is {verdict.error:.2e}, limit {verdict.limit:.0e}: not timed",
        )
        return None
    row.update(status="dry run" if where.dry else "ok")
    return calls


def _num_copies(op: Op, case: Case, where: Where) -> int:
    if where.dry:
        return 2
    wanted = (
        -(-TIMES_CACHE[where.target] * measure.cache_bytes(where.device) // max(case.num_bytes, 1))
        + 1
    )
    return max(1, min(wanted, MAX_COPIES, MAX_COPY_BYTES // max(case.num_bytes, 1)))


def _time(item: Prepared, stopwatch: Stopwatch) -> None:
    for state, calls in (("warm", item.calls[:1]), ("cold", item.calls)):
        item.row.setdefault(f"{state}_runs", []).append(asdict(stopwatch.time(calls)))


def _complete(
    item: Prepared, case: Case, where: Where, stopwatch: Stopwatch, limits: dict[str, Any]
) -> None:
    """Add figures derived from the times; a dry run has none."""
    row, peak = item.row, stopwatch.peak_bytes(item.calls[0])
    runs = {state: row.pop(f"{state}_runs") for state in ("warm", "cold")}
    if where.dry:
        return
    row.update(peak_bytes=peak)
    for state, (first, again) in runs.items():
        best: Timing = Timing(**min(first, again, key=lambda one: one["median"]))
        row[state] = {
            "us": best.median,
            "p20": best.p20,
            "p80": best.p80,
            "method": best.method,
            "both_us": [first["median"], again["median"]],
            "spread": abs(first["median"] - again["median"]) / best.median,
        }
    seconds = row["warm"]["us"] * 1e-6
    row.update(
        flop_per_s=case.flop / seconds, of_matmul=case.flop / seconds / limits["matmul_flop_per_s"]
    )
    seconds = row["cold"]["us"] * 1e-6
    row.update(
        bytes_per_s=case.num_bytes / seconds,
        of_copy=case.num_bytes / seconds / limits["copy_bytes_per_s"],
    )
