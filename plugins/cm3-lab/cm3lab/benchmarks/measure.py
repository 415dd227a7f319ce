"""Time and memory. Two stopwatches with one interface, and a stand-in for CUDA, so that all code can run
without it.

A stopwatch gets several calls with different inputs. A repeated call finds its inputs in the cache ("warm");
enough calls in rotation don't ("cold"), as in a real step, which reads gigabytes of weights between two
kernels.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

Call = Callable[[], Any]
#: Below this, a launch costs as much as the kernel: calls are captured in a CUDA graph, as in
#: generation.
GRAPH_BELOW_US = 50.0
CALLS_IN_A_GRAPH = 10
MAX_REPETITIONS = 1000


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call.

    Args:
        median, p20, p80: statistics over the repetitions.
        num_repetitions: number of repetitions.
        method: "processor time" (of one thread), "wall clock", "events", "graph", or "events (no
            graph: why)".
    """

    median: float
    p20: float
    p80: float
    num_repetitions: int
    method: str


def timing_of(times_us: Sequence[float], method: str) -> Timing:
    """Compute median and percentiles.

    >>> timing_of([5.0, 1.0, 3.0, 2.0, 4.0], "wall clock")
    Timing(median=3.0, p20=1.8, p80=4.2, num_repetitions=5, method='wall clock')
    """
    at = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, median, p80 = torch.tensor(times_us, dtype=torch.float64).quantile(at).tolist()
    return Timing(median, round(p20, 3), round(p80, 3), len(times_us), method)


class Stopwatch(ABC):
    """Times calls.

    Args:
        seconds: approximate duration of one measurement.
        least: minimum number of repetitions.
    """

    def __init__(self, seconds: float, least: int) -> None:
        self.seconds, self.least = seconds, least

    @abstractmethod
    def time(self, calls: Sequence[Call]) -> Timing:
        """Run the calls in rotation, repeatedly."""

    @abstractmethod
    def peak_bytes(self, call: Call) -> int | None:
        """Return the peak memory of one call, in addition to its inputs; None if it can't be determined."""

    def _num_repetitions(self, one_us: float) -> int:
        wanted = self.seconds * 1e6 / max(one_us, 0.1) if one_us == one_us else 0
        return int(min(max(wanted, self.least), MAX_REPETITIONS))


class CPUStopwatch(Stopwatch):
    """Processor time of this thread if torch has one thread, which a busy machine hardly affects; otherwise
    wall-clock time."""

    def time(self, calls: Sequence[Call]) -> Timing:
        alone = torch.get_num_threads() == 1
        now = time.thread_time if alone else time.perf_counter
        for call in calls:
            call()
        begin = now()
        calls[0]()
        num = self._num_repetitions((now() - begin) * 1e6)
        times = []
        for repetition in range(num):
            call = calls[repetition % len(calls)]
            begin = now()
            call()
            times.append((now() - begin) * 1e6)
        return timing_of(times, "processor time" if alone else "wall clock")

    def peak_bytes(self, call: Call) -> int | None:
        """From the profiler's record of torch's allocations."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        with (
            _silent_stderr(),
            torch.profiler.profile(activities=activities, profile_memory=True) as profile,
        ):
            kept = call()
        del kept
        results = getattr(profile.profiler, "kineto_results", None)
        if results is None:
            return None
        events = sorted(
            (event.start_ns(), event.nbytes())
            for event in results.events()
            if event.name() == "[memory]"
        )
        now = peak = 0
        for _, num_bytes in events:
            now += num_bytes
            peak = max(peak, now)
        return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silences the message that the profiler writes to standard error from C++."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class CUDAStopwatch(Stopwatch):
    """Uses events on the device; short calls run in a CUDA graph.

    Args:
        cuda: `torch.cuda`, or a stand-in.
    """

    def __init__(self, seconds: float, least: int, cuda: Any = torch.cuda) -> None:
        super().__init__(seconds, least)
        self.cuda = cuda

    def time(self, calls: Sequence[Call]) -> Timing:
        for call in calls:
            call()
        self.cuda.synchronize()
        first = timing_of(self._by_events(calls, self.least), "events")
        if first.median >= GRAPH_BELOW_US:
            return timing_of(self._by_events(calls, self._num_repetitions(first.median)), "events")
        try:
            graph, num_calls = self._capture(calls)
        except RuntimeError as error:
            # a call that waits for the device can't be captured: worth reporting
            reason = str(error).strip().splitlines()[0][:80]
            times = self._by_events(calls, self._num_repetitions(first.median))
            return timing_of(times, f"events (no graph: {reason})")
        num = self._num_repetitions(first.median * num_calls)
        return timing_of([one / num_calls for one in self._by_events([graph.replay], num)], "graph")

    def _by_events(self, calls: Sequence[Call], num: int) -> list[float]:
        pairs = [
            (self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True))
            for _ in range(num)
        ]
        for repetition, (begin, end) in enumerate(pairs):
            begin.record()
            calls[repetition % len(calls)]()
            end.record()
        self.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]

    def _capture(self, calls: Sequence[Call]) -> tuple[Any, int]:
        """Capture a graph of `CALLS_IN_A_GRAPH` calls or all of them, after a warm-up on a separate stream, as
        required by torch."""
        num_calls = max(min(CALLS_IN_A_GRAPH, self.least), len(calls))
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for call in calls:
                call()
        self.cuda.current_stream().wait_stream(stream)
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            for number in range(num_calls):
                calls[number % len(calls)]()
        graph.replay()
        self.cuda.synchronize()
        return graph, num_calls

    def peak_bytes(self, call: Call) -> int | None:
        self.cuda.synchronize()
        before = self.cuda.memory_allocated()
        self.cuda.reset_peak_memory_stats()
        call()
        self.cuda.synchronize()
        return int(self.cuda.max_memory_allocated() - before)


class AbsentCUDA:
    """Stand-in for the parts of `torch.cuda` that `CUDAStopwatch` needs: everything runs, nothing is
    measured (NaN)."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            """Nothing to record."""

        def elapsed_time(self, end: object) -> float:
            return float("nan")

    class CUDAGraph:
        def replay(self) -> None:
            """Nothing to do: the captured calls ran at capture."""

    @contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        yield

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def synchronize(self) -> None:
        """Nothing to wait for."""

    reset_peak_memory_stats = synchronize

    def memory_allocated(self) -> int:
        return 0

    max_memory_allocated = memory_allocated


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last-level cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    units = {"K": 2**10, "M": 2**20}
    return max(
        (int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units),
        default=32 * 2**20,
    )
