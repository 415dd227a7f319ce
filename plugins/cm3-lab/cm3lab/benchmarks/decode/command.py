"""The command line of `cm3 bench decode`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import registry_of, whole_number
from cm3core.errors import CM3Error, DeviceError, close_match
from cm3lab.benchmarks.decode.sizes import EXTENTS, SIZES, Extent

if TYPE_CHECKING:
    from cm3lab.benchmarks.decode.workload import Setup
    from cm3run.benchmarks import Where

HELP = "image tokens per second of our engine, compared with common implementations"
DESCRIPTION = (
    "Generate the same pictures, with guidance, with our engine, transformers' Janus and LlamaGen's "
    "loop on\n"
    "transformers' Llama: random weights, the same number in the layers, the same dtype and threads. "
    "Then best of 8\n"
    "compared with one picture, and one long picture. A provider that fails the check is not timed. Prints "
    "tables; with -o\n"
    "also writes JSON and plots."
)
EXAMPLE = """examples:
  cm3 bench decode --quick
  cm3 bench decode --threads 2 -o results/decode.json
  cm3 bench decode --size 350m --batch 1 --tokens 256 --providers engine janus
  cm3 bench decode --parallel --size tiny --threads 1
  cm3 bench decode --parts --tokens 256 --threads 2 --providers engine-bf16 engine-int8"""
PLACE = "cm3 bench decode"


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--size",
        metavar="NAME",
        help=f"the decoder: {', '.join(SIZES)} (default: {EXTENTS['full'].size}; with "
        f"--quick {EXTENTS['quick'].size})",
    )
    parser.add_argument(
        "--batch",
        type=whole_number(1, 2**16),
        nargs="+",
        metavar="N",
        help="requests at a time (default: 1 8)",
    )
    parser.add_argument(
        "--tokens",
        type=whole_number(2, 2**20),
        nargs="+",
        metavar="N",
        help="image tokens per picture (default: 256 1024; with --quick 256)",
    )
    parser.add_argument(
        "--providers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="providers to measure (default: all)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, 4096),
        metavar="N",
        help="torch's CPU threads, for all providers",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use a smaller decoder, shorter pictures and fewer runs (about two minutes)",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="measure the parts of one engine step, and the lower bound of each, instead of comparing providers (CPU)",
    )
    parser.add_argument(
        "--parallel",
        action="store_true",
        help="compare several codes of a picture per step with one, on the bundled models and on random weights, "
        "instead of comparing providers",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device to measure on (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="precision of weights and matrix products, for all providers (default: bf16 on CUDA, else fp32)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="JSON file to write; plots go next to it"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; returns 1 if a provider is wrong or failed."""
    _check_known("--size", "size", [] if args.size is None else [args.size], SIZES)
    if args.out is not None:
        from cm3core.outputs import claim_file
        from cm3lab.benchmarks.decode.report import plot_of

        claim_file(args.out, *(plot_of(args.out, name) for name in ("speed", "length")))
    return _run(args)


def _run(args: Namespace) -> int:
    from cm3lab.benchmarks import machine
    from cm3lab.benchmarks.decode import report, runner

    where, extent, setup = _asked(args)
    if args.parallel:
        return _parallel(args, setup)
    providers = _providers(args, setup)
    stopwatch = machine.stopwatch_for(where)
    if args.parts:
        return _parts(providers, extent, stopwatch)
    results = _Results(args.out, where, setup, machine.roofs(where, stopwatch))
    results.print_heading()
    benchmark = runner.Benchmark(
        setup,
        providers,
        runner.Machine(where, results.limits, stopwatch),
        extent,
        runner.Listener(
            changed=results.write,
            done=lambda rows: print(
                f"\n{report.table(report.completed(rows, results.limits))}", flush=True
            ),
            told=lambda line: print(line, file=sys.stderr, flush=True),
        ),
    )
    try:
        benchmark.run()
    finally:  # Ctrl-C keeps the results so far
        if benchmark.rows:
            results.finish(benchmark.rows)
    bad = [row for row in benchmark.rows if row["status"] in ("wrong", "failed")]
    if bad:
        print(f"\n{len(bad)} of {len(benchmark.rows)} results are wrong or failed", file=sys.stderr)
    return int(bool(bad))


def _asked(args: Namespace) -> tuple[Where, Extent, Setup]:
    """Return where to measure, how much, and with which decoder."""
    import torch

    from cm3lab.benchmarks.decode.engine import GATE_TOKENS
    from cm3lab.benchmarks.decode.workload import PROMPT_TOKENS, Setup
    from cm3run.benchmarks import Where

    if args.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"{PLACE} --device cuda",
            "there is no CUDA device, or torch was built without CUDA",
            "use --device cpu",
        )
    if args.parts and args.device != "cpu":
        raise CM3Error(f"{PLACE} --parts", "only works on the CPU", "leave --device out")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    where = Where(torch.device(args.device), args.device, "quick" if args.quick else "full")
    extent = EXTENTS[where.size]
    extent = replace(
        extent,
        size=args.size or extent.size,
        batch=_unique(args.batch or extent.batch),
        tokens=_unique(args.tokens or extent.tokens),
    )
    setup = Setup(
        SIZES[extent.size],
        PROMPT_TOKENS + max(*extent.tokens, extent.longest, GATE_TOKENS),
        where.device,
        {
            "auto": torch.bfloat16 if args.device == "cuda" else torch.float32,
            "fp32": torch.float32,
            "bf16": torch.bfloat16,
        }[args.precision],
        torch.get_num_threads(),
    )
    return where, extent, setup


def _providers(args: Namespace, setup: Setup) -> list[Any]:
    """Return the requested providers, including those of plugins."""
    from cm3lab.benchmarks.decode import runner
    from cm3run.benchmarks import BenchmarkRegistry

    registry = BenchmarkRegistry()
    for add in registry_of(args).benchmarks():
        add(registry)
    providers = runner.all_providers(setup, registry.decoders)
    _check_known(
        "--providers", "provider", args.providers, [provider.name for provider in providers]
    )
    return [
        provider for provider in providers if not args.providers or provider.name in args.providers
    ]


def _parallel(args: Namespace, setup: Setup) -> int:
    """Print what several codes per step gain; returns 1 if a picture differs."""
    from cm3lab.benchmarks.decode.parallel import measured, table

    for option, given in (
        ("--parts", args.parts),
        ("--providers", args.providers),
        ("--tokens", args.tokens),
        ("--out", args.out),
    ):
        if given:
            raise CM3Error(
                f"{PLACE} --parallel", f"doesn't read {option}", "leave one of the two out"
            )
    same = True
    for results in measured(setup, _unique(args.batch or (1,))):
        print(table(results), flush=True)
        same &= all(one.same for one in results)
    return int(not same)


class _Results:
    """Prints a measurement and its machine, and writes them to `--out`."""

    def __init__(
        self, out: Path | None, where: Where, setup: Setup, limits: dict[str, Any]
    ) -> None:
        from cm3lab.benchmarks import machine
        from cm3lab.benchmarks.decode import runner
        from cm3lab.benchmarks.decode.workload import PROMPT_TOKENS

        self.out, self.setup, self.limits = out, setup, limits
        size = setup.size
        self.environment: dict[str, Any] = machine.environment(where) | {
            "decoder": asdict(size) | {"trunk_parameters": size.trunk_parameters},
            "prompt_tokens": PROMPT_TOKENS,
            "load": [runner.load(), None],
        }

    def print_heading(self) -> None:
        """Print the machine, its limits, and the decoder."""
        from cm3lab.benchmarks import machine
        from cm3lab.benchmarks.decode import report

        print(
            f"{machine.heading(self.environment, self.limits)}\n"
            f"{report.heading(self.setup, self.environment['load'][0])}",
            flush=True,
        )

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write the results so far."""
        from cm3lab.benchmarks import machine
        from cm3lab.benchmarks.decode import report, runner

        self.environment["load"][1] = runner.load()
        if self.out is not None:
            machine.write_json(
                self.out,
                "decode",
                self.environment,
                self.limits,
                report.completed(rows, self.limits),
            )

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """Print the lower bounds; write the results and their plots."""
        from cm3lab.benchmarks.decode import report

        reads, copies = (
            self.limits[name] / 1e9 for name in ("read_bytes_per_s", "copy_bytes_per_s")
        )
        print(f"\nlower bounds: reading {reads:.1f} GB/s, copying {copies:.1f} GB/s")
        if self.out is not None:
            self.write(rows)
            plots = report.write_plots(
                self.out, report.completed(rows, self.limits), self.environment, self.limits
            )
            print(f"written: {', '.join(map(str, [self.out, *plots]))}")


def _parts(providers: list[Any], extent: Any, stopwatch: Any) -> int:
    """Print the parts of engine steps."""
    import torch

    from cm3lab.benchmarks.decode.engine import EngineProvider
    from cm3lab.benchmarks.decode.parts import run_parts
    from cm3lab.benchmarks.decode.runner import READ_BYTES, read_bandwidth

    ours = [one for one in providers if isinstance(one, EngineProvider)]
    if not ours:
        raise CM3Error(f"{PLACE} --parts", "none of the providers is our engine", "name engine")
    read = read_bandwidth(stopwatch, torch.device("cpu"), READ_BYTES["cpu"])
    print(run_parts(ours, extent.batch, extent.tokens[0], read))
    return 0


def _check_known(option: str, what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise CM3Error(
                f"{PLACE} {option}", f"no {what} is called {name!r}", close_match(name, known)
            )


def _unique(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))
