"""Runs the benchmark: the check, then four parts; after every single run the rows contain the results so
far.

compare      every provider draws the same pictures; the providers alternate, so that a busy
             minute affects all of them
candidates   N pictures of one prompt compared with one picture, only our engine
length       one long picture, with the time after each of its rows, only our engine
conversation  a short picture after a long conversation, which is cached or read again, only our engine
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import CM3Error
from cm3lab.benchmarks import measure
from cm3lab.benchmarks.decode.baselines import baselines, plain_loops
from cm3lab.benchmarks.decode.engine import (
    EngineProvider,
    RandomModel,
    engines,
)
from cm3lab.benchmarks.decode.sizes import Extent
from cm3lab.benchmarks.decode.workload import Setup, decode_case, least_bytes, step_bytes
from cm3lab.benchmarks.machine import copy_bandwidth
from cm3lab.benchmarks.measure import Stopwatch
from cm3run.benchmarks import Case, DecodeProvider, Where

Row = dict[str, Any]
#: Bytes read to measure read bandwidth: many times any cache.
READ_BYTES = {"cpu": 2**28, "cuda": 2**30}
#: Maximum points of the curve of cost against length.
NUM_POINTS = 64
#: Image tokens of a picture in answer to a question.
REPLY_TOKENS = 16


def all_providers(
    setup: Setup, added: Sequence[Callable[[Setup], DecodeProvider]] = ()
) -> list[DecodeProvider]:
    """Return our variants, then the baselines, then plugins' providers.

    Raises:
        CM3Error: two providers have the same name.
    """
    model = RandomModel(setup)
    found = [*engines(setup, model), *plain_loops(setup, model), *baselines(setup)]
    for make in added:
        provider = make(setup)
        if provider.name in {other.name for other in found}:
            raise CM3Error(
                f"provider {provider.name!r}",
                "cm3 bench decode already has a provider of this name",
                "use another name",
            )
        found.append(provider)
    return found


def load() -> float | None:
    """Return the number of runnable processes, averaged over a minute; None if the system doesn't report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def read_bandwidth(stopwatch: Stopwatch, device: torch.device, num_bytes: int) -> float:
    """Measure the bytes per second of summing a large tensor: the limit for products of few rows, which read a lot
    and barely write."""
    source = torch.ones(num_bytes // 4, device=device)
    return num_bytes / (stopwatch.time([source.sum]).median * 1e-6)


@dataclass(frozen=True)
class Listener:
    """Callbacks while the benchmark runs.

    Args:
        changed: called with all rows after any change.
        done: called with a case's rows once it is finished.
        told: called with a line to report.
    """

    changed: Callable[[list[Row]], None] = lambda rows: None
    done: Callable[[list[Row]], None] = lambda rows: None
    told: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Machine:
    """The machine and the stopwatch.

    Args:
        where: device and extent ("full" or "quick").
        limits: from `machine.roofs`; `read_bytes_per_s` is added, and both bandwidths grow
            if a later measurement finds more: other load on the machine must not make a step look near its
            lower bound.
        stopwatch: stopwatch of the kernels' runner.
    """

    where: Where
    limits: Row
    stopwatch: Stopwatch


@dataclass
class Job:
    """A provider that draws one case, the times of its runs, and whether it may run again."""

    row: Row
    draw: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    stopped: bool = False


class Benchmark:
    """One run of the benchmark.

    Args:
        setup: size, device, dtype, threads.
        providers: from `all_providers`.
        machine: machine to measure on.
        extent: how much to measure.
        listener: receives results.
    """

    def __init__(
        self,
        setup: Setup,
        providers: Sequence[DecodeProvider],
        machine: Machine,
        extent: Extent,
        listener: Listener | None = None,
    ) -> None:
        self.setup, self.providers, self.extent = setup, providers, extent
        self.where, self.limits = machine.where, machine.limits
        self.rows: list[Row] = []
        self._stopwatch, self._listener = machine.stopwatch, listener or Listener()
        self._refusals: dict[str, Row] = {}
        # with one thread, the process's own time: a busy machine hardly affects it
        alone = self.where.device.type == "cpu" and setup.threads == 1
        self._now, self._method = (
            (time.process_time, "processor time") if alone else (time.perf_counter, "wall clock")
        )

    def run(self) -> list[Row]:
        """Run everything; returns the rows, as in the JSON."""
        self.measure_bandwidth()
        self.gate()
        for batch in self.extent.batch:
            for tokens in self.extent.tokens:
                self.compare(batch, tokens)
        ours = [provider for provider in self.providers if isinstance(provider, EngineProvider)]
        for tokens in self.extent.tokens if ours else ():
            self.candidates(ours, tokens)
        for provider in ours:
            self.length(provider)
            self.conversation(provider)
        return self.rows

    def measure_bandwidth(self) -> None:
        """Measure copying and reading; keeps the highest value of this run."""
        num_bytes = READ_BYTES[self.where.target]
        for name, function in (
            ("copy_bytes_per_s", copy_bandwidth),
            ("read_bytes_per_s", read_bandwidth),
        ):
            self.limits[name] = max(
                self.limits.get(name) or 0.0,
                function(self._stopwatch, self.where.device, num_bytes),
            )

    def gate(self) -> None:
        """Select the providers that may be timed; records the reason for the others."""
        case = decode_case(self.setup, self.extent.tokens[0])
        for provider in self.providers:
            if (reason := provider.enabled(case, self.where)) is not None:
                self._refuse(provider, status="not run", reason=reason)
                continue
            try:
                verdict = provider.verify()
            except Exception as error:
                # a provider is third-party code and may raise anything; the others still run
                self._refuse(provider, **_failure(error))
                continue
            self._listener.told(f"{provider.name}: {verdict.error:g} {verdict.what}")
            if not verdict.passed:
                self._refuse(
                    provider, status="wrong", reason=f"{verdict.error:g} {verdict.what}: not timed"
                )

    def _refuse(self, provider: DecodeProvider, **why: str) -> None:
        self._listener.told(f"{provider.name}: {why['status']}: {why['reason']}")
        self._refusals[provider.name] = dict(why)

    def part(self, name: str, work: Sequence[tuple[DecodeProvider, Case]]) -> list[Row]:
        """Time each provider on its case, alternating, until each has used its time; at least one
        run each."""
        rows, jobs = [], []
        for provider, case in work:
            rows.append(self._row(name, provider, case))
            jobs.append(
                self._prepared(rows[-1], provider, case, partial(provider.prepare, case, {}))
            )
        while waiting := [job for job in jobs if self._wants_more(job)]:
            for job in waiting:
                self._draw(job)
        return rows

    def _prepared(
        self,
        row: Row,
        provider: DecodeProvider,
        case: Case,
        prepare: Callable[[], Callable[[], Tensor]],
    ) -> Job:
        """Return a job that is ready to be timed, or stopped."""
        job = Job(row, lambda: torch.empty(0), stopped=provider.name in self._refusals)
        if not job.stopped:
            try:
                job.draw = prepare()
                provider.warm_up(case)
            except Exception as error:  # as above
                job.stopped = True
                row.update(_failure(error))
        return job

    def _finish(self, rows: list[Row]) -> None:
        """Report after each case."""
        self.measure_bandwidth()
        self._listener.changed(self.rows)
        self._listener.done(rows)
        gc.collect()

    def _wants_more(self, job: Job) -> bool:
        enough = sum(job.seconds) >= self.extent.seconds or len(job.seconds) >= self.extent.max_runs
        return not job.stopped and not (job.seconds and enough)

    def _draw(self, job: Job) -> None:
        """Run once: measure the time, and check the codes."""
        row, parameters = job.row, job.row["parameters"]
        shape = (parameters["batch"] * parameters["candidates"], parameters["tokens"])
        try:
            begin = self._now()
            codes = job.draw()
            seconds = self._now() - begin
        except Exception as error:  # as above
            job.stopped = True
            row.update(_failure(error))
            return
        if (
            tuple(codes.shape) != shape
            or codes.min() < 0
            or codes.max() >= self.setup.size.num_codes
        ):
            job.stopped = True
            row.update(
                status="wrong",
                reason=f"codes {list(codes.shape)}, must be {list(shape)} and in range: not timed",
            )
            return
        job.seconds.append(seconds)
        timing = measure.timing_of([one * 1e6 for one in job.seconds], self._method)
        median, p20, p80 = (one * 1e-6 for one in (timing.median, timing.p20, timing.p80))
        row.pop("reason", None)
        row.update(
            status="ok",
            tokens_per_s=codes.numel() / median,
            ms_per_step=median / shape[1] * 1e3,
            seconds={
                "median": median,
                "p20": p20,
                "p80": p80,
                "runs": list(job.seconds),
                "method": timing.method,
            },
        )
        self._listener.told(f"{row['case']}: {row['provider']} {seconds:.2f} s")
        self._listener.changed(self.rows)

    def _row(self, part: str, provider: DecodeProvider, case: Case) -> Row:
        """Add a row that reports an interruption until there is a result."""
        row: Row = {
            "part": part,
            "case": case.name,
            "parameters": dict(case.parameters),
            "provider": provider.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "status": "not run",
            "reason": "interrupted",
            **self._refusals.get(provider.name, {}),
        }
        if provider.name not in self._refusals:
            floor = least_bytes(self.setup.size, case.parameters, *provider.number_bytes)
            row.update(trunk_parameters=provider.trunk_parameters, floor_bytes_per_step=floor)
        self.rows.append(row)
        return row

    def compare(self, batch: int, tokens: int) -> None:
        """Let all providers draw the same pictures."""
        case = decode_case(self.setup, tokens, batch=batch)
        self._finish(self.part("compare", [(provider, case) for provider in self.providers]))

    def candidates(self, providers: Sequence[EngineProvider], tokens: int) -> None:
        """Compare N pictures of one prompt with one."""
        one, many = (
            decode_case(
                self.setup, tokens, candidates=count, name=f"{count} of one prompt, {tokens} tokens"
            )
            for count in (1, self.extent.candidates)
        )
        rows = self.part(
            "candidates", [(provider, case) for case in (one, many) for provider in providers]
        )
        for alone, together in zip(rows[: len(providers)], rows[len(providers) :], strict=True):
            if "seconds" in alone and "seconds" in together:
                together["ratio_to_one"] = (
                    together["seconds"]["median"] / alone["seconds"]["median"]
                )
        self._finish(rows)

    def conversation(self, provider: EngineProvider) -> None:
        """Compare a picture with few tokens in answer to a question after cached pictures with one after pictures that are
        read again, alternating."""
        tokens = REPLY_TOKENS
        number = max(0, self.extent.longest - 2 * tokens) // (tokens + 2)
        cases = [
            replace(case, parameters={**case.parameters, "pictures": number, "keep": keep})
            for keep in (False, True)
            for case in [
                decode_case(
                    self.setup,
                    tokens,
                    name=f"{tokens} tokens behind {number * (tokens + 2)}, "
                    + ("kept" if keep else "read anew"),
                )
            ]
        ]
        rows = [self._row("conversation", provider, case) for case in cases]
        jobs = [
            self._prepared(
                row, provider, case, partial(provider.replying, case, case.parameters["keep"])
            )
            for row, case in zip(rows, cases, strict=True)
        ]
        while waiting := [job for job in jobs if self._wants_more(job)]:
            for job in waiting:
                self._draw(job)
        anew, kept = rows
        if "seconds" in anew and "seconds" in kept:
            kept["speedup"] = anew["seconds"]["median"] / kept["seconds"]["median"]
        self._finish(rows)

    def length(self, provider: EngineProvider) -> None:
        """Draw one long picture, once: (tokens, seconds since the start) from the engine's progress
        reports."""
        tokens = self.extent.longest
        case = decode_case(self.setup, tokens, name=f"one picture of {tokens} tokens")
        row = self._row("length", provider, case)
        stamps: list[tuple[int, float]] = []
        job = self._prepared(
            row,
            provider,
            case,
            lambda: provider.drawing(
                case, progress=lambda drawn, total: stamps.append((drawn, self._now()))
            ),
        )
        if not job.stopped:
            begin = self._now()
            self._draw(job)
        if job.seconds:
            row["points"] = [
                [drawn, at - begin] for drawn, at in thinned(stamps, tokens // NUM_POINTS)
            ]
            row["floor_bytes_first_and_last"] = [
                step_bytes(self.setup.size, case.parameters, drawn, *provider.number_bytes)
                for drawn in (1, tokens - 1)
            ]
        self._finish([row])


def thinned(stamps: Sequence[tuple[int, float]], distance: int) -> list[tuple[int, float]]:
    """Keep points at least `distance` tokens after the previously kept one, and the last one.

    >>> thinned([(1, 0.1), (2, 0.2), (4, 0.3), (5, 0.4)], 2)
    [(2, 0.2), (4, 0.3), (5, 0.4)]
    """
    kept: list[tuple[int, float]] = []
    for stamp in stamps:
        if stamp is stamps[-1] or stamp[0] - (kept[-1][0] if kept else 0) >= distance:
            kept.append(stamp)
    return kept


def _failure(error: Exception) -> dict[str, str]:
    first = (str(error).strip().splitlines() or [""])[0]
    return {"status": "failed", "reason": f"{type(error).__name__}: {first[:200]}"}
