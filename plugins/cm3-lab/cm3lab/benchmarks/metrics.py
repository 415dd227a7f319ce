"""`cm3 bench metrics`: cost of scoring many pictures once their features are known: FID's sums and linear algebra,
KID, and precision, recall, density, coverage.

Features are random, generated chunk by chunk, as in an evaluation. Times are processor and wall-clock time; memory
is NumPy's peak in addition to the chunk, as counted by Python's tracemalloc.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import whole_number

if TYPE_CHECKING:
    import numpy as np

    from cm3core.interfaces.metric import Metric, MetricConfig

HELP = "scoring many pictures: FID's sums and linear algebra, KID, precision and recall"
EXAMPLE = """examples:
  cm3 bench metrics --quick
  OPENBLAS_NUM_THREADS=2 cm3 bench metrics -o metrics.json"""
#: Pictures per set, and features per picture: as for FID-30k, and for a trial.
FULL, QUICK = (30_000, 2048), (2_000, 256)
METRICS = ("fid", "kid", "prdc")
_SEED = 0


@dataclass(frozen=True)
class Timing:
    """One step.

    Args:
        metric, step: what is timed.
        num, dimension: pictures per set, features per picture.
        wall_s, processor_s: seconds.
        peak_mb: peak memory of NumPy, in MB (10^6 bytes).
    """

    metric: str
    step: str
    num: int
    dimension: int
    wall_s: float
    processor_s: float
    peak_mb: float


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--num",
        type=whole_number(10, 2**24),
        metavar="N",
        help=f"pictures in each of the two sets (default: {FULL[0]:,}; with --quick {QUICK[0]:,})",
    )
    parser.add_argument(
        "--dimension",
        type=whole_number(8, 2**14),
        metavar="N",
        help=f"features per picture (default: {FULL[1]:,}, Inception's; with --quick {QUICK[1]})",
    )
    parser.add_argument(
        "--metric",
        action="append",
        choices=METRICS,
        default=[],
        dest="metrics",
        help="a metric; can be repeated (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="use few pictures (takes seconds)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Measure, print, and save each line immediately; returns the exit code 0."""
    from cm3core.files import write_text
    from cm3core.outputs import claim_file

    if args.out is not None:
        claim_file(args.out)
    num, dimension = QUICK if args.quick else FULL
    num, dimension = args.num or num, args.dimension or dimension
    rows: list[Timing] = []
    print(f"{'metric':8}  {'step':15}  {'clock, s':>9}  {'processor, s':>12}  {'memory, MB':>10}")
    for timing in measure(num, dimension, args.metrics or METRICS):
        rows.append(timing)
        print(
            f"{timing.metric:8}  {timing.step:15}  {timing.wall_s:9.2f}  {timing.processor_s:12.2f}  "
            f"{timing.peak_mb:10.1f}",
            flush=True,
        )
        if args.out is not None:
            write_text(args.out, _json(rows))
    print(f"{num:,} pictures per set, {dimension:,} features per picture")
    return 0


def measure(num: int, dimension: int, names: Sequence[str] = METRICS) -> Iterator[Timing]:
    """Time metrics on random features.

    Args:
        num: pictures in each of the two sets.
        dimension: features per picture.
        names: names of the metrics.
    """
    from cm3plugins.metrics import FIDConfig, KIDConfig, PRDCConfig

    configs: dict[str, MetricConfig] = {
        "fid": FIDConfig(),
        "kid": KIDConfig(subset_size=min(1000, num)),
        "prdc": PRDCConfig(),
    }
    for name in names:
        metric = configs[name].build()
        yield feeding(name, metric, num, dimension)
        yield _timed(name, "score", num, dimension, metric.result)


def feeding(name: str, metric: Metric, num: int, dimension: int) -> Timing:
    """Feed all features to a metric, and time it."""
    return _timed(name, "features", num, dimension, lambda: _feed(metric, num, dimension))


def _feed(metric: Metric, num: int, dimension: int) -> float:
    """Feed all features to a metric; returns the seconds of processor time for generating them."""
    import time

    import numpy as np

    from cm3core.interfaces.metric import MetricBatch
    from cm3run.evaluation.features import CHUNK

    drawing = 0.0
    for seed, name in enumerate(("features", "reference_features")):
        rng = np.random.default_rng([_SEED, seed])
        for start in range(0, num, CHUNK):
            places = range(start, min(start + CHUNK, num))
            begin = time.process_time()
            rows: np.ndarray[Any, Any] = rng.standard_normal((len(places), dimension), np.float32)
            drawing += time.process_time() - begin
            given: dict[str, Any] = {name: rows}
            metric.update(MetricBatch(places, given))
    return drawing


def _timed(metric: str, step: str, num: int, dimension: int, call: Callable[[], Any]) -> Timing:
    import time
    import tracemalloc

    tracemalloc.start()
    wall, processor = time.perf_counter(), time.process_time()
    try:
        drawing = call()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    left_out = drawing if isinstance(drawing, float) else 0.0
    return Timing(
        metric,
        step,
        num,
        dimension,
        round(wall - left_out, 3),
        round(processor - left_out, 3),
        round(peak / 1e6, 1),
    )


def _json(rows: list[Timing]) -> str:
    import json
    import platform

    import numpy as np

    environment = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    return (
        json.dumps({"environment": environment, "results": [asdict(row) for row in rows]}, indent=1)
        + "\n"
    )
