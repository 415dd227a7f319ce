"""The command line of `cm3 bench kernels`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from cm3apps.cli import registry_of, whole_number
from cm3core.errors import CM3Error, DeviceError

HELP = "compare our kernels with alternative implementations"
DESCRIPTION = """Compare each provider's result with a float64 reference, and time the correct ones: median, 20th
and 80th percentile, twice, with a warm and a cold cache; memory at its peak; and the share of the time that
the machine's roof allows. The roofs, a copy and a matrix product in each dtype, are measured first."""
EXAMPLE = """examples:
  cm3 bench kernels --list
  cm3 bench kernels --quick
  cm3 bench kernels --op attention --shape B=8,H=16,T=1024,D=64 --shape T=2048 --direction both
  cm3 bench kernels --op guided_sample --provider cm3/eager --provider huggingface
  cm3 bench kernels --device cuda --dtype bfloat16,float16 -o h100.json -o h100.csv -o h100.png
  cm3 bench kernels --device cuda --dry-run"""


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device to measure on (default: %(default)s)",
    )
    for name, metavar, text in (
        ("op", "OP[,OP]", "ops (default: all)"),
        ("provider", "NAME", "a provider; can be repeated (default: all)"),
        (
            "shape",
            "KEY=VALUE,...",
            "a shape of every named op, in its own keys, others by default; can be repeated (default: "
            "the op's shapes)",
        ),
        (
            "dtype",
            "DTYPE[,DTYPE]",
            "dtypes of the inputs (default: float32 on a CPU, bfloat16 on CUDA)",
        ),
        (
            "direction",
            "DIRECTION[,...]",
            "forward; backward, the gradients alone; both, one after the other (default: forward, and "
            "both where an op has a backward)",
        ),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=text)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="file to write, in the format of its suffix: .json, .csv, or a plot as .png, .svg or .pdf; can be "
        "repeated",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the ops, their keys with defaults, dtypes, directions and providers, and what can't run here "
        "and why; measure nothing",
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run everything once on tiny inputs without timing; --device cuda then needs no GPU",
    )
    parser.add_argument("--threads", type=whole_number(1, 4096), help="torch's CPU threads")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; returns 1 if a provider is wrong or failed."""
    if args.quick and args.dry_run:
        raise CM3Error(
            "cm3 bench kernels", "--quick and --dry-run can't be combined", "leave one out"
        )
    if args.list:
        given = {"-o": args.out, "--shape": args.shape, "--dtype": args.dtype}
        given |= {"--direction": args.direction, "--provider": args.provider}
        for option, values in given.items():
            if values:
                raise CM3Error(
                    f"cm3 bench kernels --list {option}",
                    "a list measures nothing and has all keys, dtypes, directions and providers",
                    f"leave out --list or {option}",
                )
    if args.dry_run and "triton" not in sys.modules:
        # lets Triton's kernels run on the CPU, too
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return _run(args)


def _run(args: Namespace) -> int:
    import torch

    from cm3lab.benchmarks import machine
    from cm3lab.benchmarks.kernels import report, runner, selection

    files = report.Files(args.out)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    where = _where(args)
    registry = _benchmarks(args)
    asked = selection.Asked(args.op, args.provider, args.shape, args.dtype, args.direction)
    if args.list:
        print(selection.listing(registry, asked, where))
        return 0
    chosen = selection.selected(registry, asked, where)

    stopwatch, environment = machine.stopwatch_for(where), machine.environment(where)
    limits = machine.roofs(where, stopwatch, selection.dtypes_of(chosen))
    print(machine.heading(environment, limits), flush=True)
    rows: list[dict[str, object]] = []

    def case_done(of_case: list[dict[str, object]]) -> None:
        rows.extend(of_case)
        print(f"\n{report.table(of_case)}", flush=True)
        files.write(environment, limits, rows)

    place = runner.Machine(where, stopwatch, limits)
    try:
        for op, cases in chosen:
            runner.run_op(op, cases, place, providers=args.provider, done=case_done)
    finally:  # an interrupted run keeps its results so far
        if files.paths and rows:
            files.finish(environment, rows)
            print(f"\nwritten: {', '.join(map(str, files.paths))}", flush=True)
    bad = [row for row in rows if row["status"] in ("wrong", "failed")]
    if bad:
        print(f"\n{len(bad)} of {len(rows)} results are wrong or failed", file=sys.stderr)
    return int(bool(bad))


def _where(args: Namespace) -> Any:
    """Where the tensors are, and for which device the benchmark is meant."""
    import torch

    from cm3run.benchmarks import Where

    there = args.device == "cpu" or torch.cuda.is_available()
    if not there and not args.dry_run:
        raise DeviceError(
            "cm3 bench kernels --device cuda",
            "there is no CUDA device, or torch was built without CUDA",
            "use --device cpu, or --dry-run to run everything without one",
        )
    interprets = args.dry_run and os.environ.get("TRITON_INTERPRET") == "1"
    device = torch.device(args.device if there and not interprets else "cpu")
    return Where(device, args.device, "dry" if args.dry_run else "quick" if args.quick else "full")


def _benchmarks(args: Namespace) -> Any:
    """The ops with the providers of all plugins, and the attention backends as providers."""
    from cm3lab.benchmarks.kernels.ops.backends import add_backends
    from cm3run.benchmarks import BenchmarkRegistry

    plugins, registry = registry_of(args), BenchmarkRegistry()
    for add in plugins.benchmarks():
        add(registry)
    add_backends(registry, plugins)
    return registry
