"""Runs cases: for each, first the check, then timing, twice, provider by provider; wrong results are not timed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config

from cm3lab.benchmarks import measure
from cm3lab.benchmarks.measure import Stopwatch, Timing
from cm3run.benchmarks import Case, Inputs, Op, Provider, Where, directed
from cm3run.progress import make_bar

#: An input is repeated only after this many times the cache's size, with at most this many copies
#: and bytes.
TIMES_CACHE, MAX_COPIES, MAX_COPY_BYTES = {"cpu": 2, "cuda": 5}, 64, 4 * 2**30
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


@dataclass(frozen=True)
class Machine:
    """Where cases run, and what they are measured with.

    Args:
        where: device and size.
        stopwatch: from `machine.stopwatch_for`.
        roofs: from `machine.roofs`, with the dtype of every case.
    """

    where: Where
    stopwatch: Stopwatch
    roofs: Mapping[str, Any]


def run_op(
    op: Op,
    cases: Sequence[Case],
    machine: Machine,
    *,
    providers: Sequence[str] = (),
    done: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Run cases of an op.

    Args:
        op: the op.
        cases: made by `op.case`.
        machine: where they run.
        providers: names; empty: all.
        done: called with the rows of each finished case.

    Returns:
        A row (a plain dict, as in the JSON) for each case and provider.
    """
    chosen = [provider for provider in op.providers if not providers or provider.name in providers]
    rows: list[dict[str, Any]] = []
    # Beyond its recompilation limit torch runs a function uncompiled, while it is still listed as
    # compiled. A backward that is timed alone reads its graph many times, which donated buffers forbid.
    with (
        torch._dynamo.config.patch(
            recompile_limit=MOST_COMPILATIONS, accumulated_recompile_limit=MOST_COMPILATIONS
        ),
        torch._functorch.config.patch(donated_buffer=False),
    ):
        for case in make_bar(cases, desc=op.name, unit="case", disable=None, leave=False):
            of_case = _run_case(op, case, chosen, machine)
            rows += of_case
            done(of_case)
    return rows


def _run_case(
    op: Op, case: Case, providers: Sequence[Provider], machine: Machine
) -> list[dict[str, Any]]:
    rows = [_row(op, case, provider) for provider in providers]
    try:
        given = _given(op, case, machine.where)
    except Exception as error:
        # an op may be third-party code, and a device's memory may run out; the other cases still run
        for row in rows:
            row.update(status="failed", reason=f"inputs and reference: {_told(error)}")
        return rows
    prepared: list[Prepared] = []
    for provider, row in zip(providers, rows, strict=True):
        calls = _gated(given, provider, machine.where, row)
        if calls is not None:
            prepared.append(Prepared(row, calls))
    # all providers, then all again: the difference shows how reliable the figures are
    for _ in range(1 if machine.where.dry else 2):
        for item in prepared:
            _time(item, machine.stopwatch)
    for item in prepared:
        _complete(item, case, machine)
    base = next((row["warm"]["us"] for row in rows if _is_base(row, op)), None)
    for row in rows:
        if base is not None and "warm" in row:
            row["speedup"] = base / row["warm"]["us"]
    del given, prepared
    gc.collect()
    return rows


def _row(op: Op, case: Case, provider: Provider) -> dict[str, Any]:
    """Return what a row has before its provider ran."""
    return {
        "op": op.name,
        "shape": case.name,
        "parameters": dict(case.parameters),
        "dtype": _dtype(case),
        "direction": case.direction,
        "provider": provider.name,
        "num_bytes": case.num_bytes,
        "flop": case.flop,
    }


def _given(op: Op, case: Case, where: Where) -> Given:
    copies = [_inputs(op, case, where, number) for number in range(_num_copies(case, where))]
    return Given(op, case, copies, op.expected(case, copies[0]))


def _told(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _is_base(row: Mapping[str, Any], op: Op) -> bool:
    return row["provider"] == op.baseline and "warm" in row


def _dtype(case: Case) -> str:
    return str(case.dtype).removeprefix("torch.")


def _inputs(op: Op, case: Case, where: Where, number: int) -> Inputs:
    """Return fresh inputs, with gradients if the case has a backward."""
    made = op.inputs(case, where, SEED + number)
    for name in op.gradients if case.direction != "forward" else ():
        made[name].requires_grad_()
    return made


def _gated(
    given: Given, provider: Provider, where: Where, row: dict[str, Any]
) -> list[Callable[[], Any]] | None:
    """Return the provider's calls, one per copy of the inputs; None if it can't run or is wrong, with the reason in the
    row."""
    op, case = given.op, given.case
    try:
        if (reason := provider.enabled(case, where)) is not None:
            row.update(status="not run", reason=reason)
            return None
        calls = [
            directed(op, case, inputs, provider.prepare(case, inputs)) for inputs in given.copies
        ]
        if case.direction == "backward":
            calls[0]()  # what the second reads of the kept graph must still be there
        verdict = op.gate(case, given.expected, calls[0]())
    except Exception as error:
        # a provider is third-party code and may raise anything; the others still run
        row.update(status="failed", reason=_told(error))
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


def _num_copies(case: Case, where: Where) -> int:
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


def _complete(item: Prepared, case: Case, machine: Machine) -> None:
    """Add figures derived from the times; a dry run has none."""
    row, peak = item.row, machine.stopwatch.peak_bytes(item.calls[0])
    runs = {state: row.pop(f"{state}_runs") for state in ("warm", "cold")}
    if machine.where.dry:
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
    seconds = row["cold"]["us"] * 1e-6
    row.update(
        flop_per_s=case.flop / seconds,
        bytes_per_s=case.num_bytes / seconds,
        roof=roof_of(case, machine.roofs, seconds),
    )


def roof_of(case: Case, roofs: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the roof that binds a case, the least time that it allows, and its fraction of the time taken.

    Args:
        case: its bytes and operations.
        roofs: from `machine.roofs`.
        seconds: the time of a call whose inputs are not in the cache.

    Returns:
        `binds`: "memory" if the bytes take longer at the bandwidth of a copy than the operations at the rate of a matrix
        product in this dtype, else "compute"; `us`, the longer of both; `fraction`: of `seconds`. Above 1 if a cache
        still has the inputs.
    """
    memory = case.num_bytes / roofs["copy_bytes_per_s"]
    compute = case.flop / roofs["flop_per_s"][_dtype(case)]
    least = max(memory, compute)
    return {
        "binds": "memory" if memory >= compute else "compute",
        "us": least * 1e6,
        "fraction": least / seconds,
    }
