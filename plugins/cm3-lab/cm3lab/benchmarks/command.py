"""The command line of `cm3 bench`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path

from cm3apps.cli import registry_of, whole_number
from cm3core.errors import CM3Error, DeviceError, close_match
from cm3lab.benchmarks import first_picture, metrics, precision, shards
from cm3lab.benchmarks.decode import command as decode
from cm3lab.benchmarks.retrieval import command as retrieval

EXAMPLE = """examples:
  cm3 bench kernels --quick
  cm3 bench kernels --device cuda -o results/h100.json
  cm3 bench kernels --op guided_sample --provider cm3/eager --provider huggingface
  cm3 bench kernels --device cuda --dry-run"""

EXAMPLES = """examples:
  cm3 bench kernels --quick
  cm3 bench decode --quick
  cm3 bench first-picture
  cm3 bench metrics --quick
  cm3 bench retrieval --quick
  cm3 bench shards --quick"""


def configure(parser: ArgumentParser) -> None:
    """The actions `kernels`, `decode`, `first-picture`, `precision`, `metrics`, `retrieval` and `shards`."""
    parser.description = (
        "Measure kernels, decoding, a process's first picture, precision, metrics, retrieval and reading of token "
        "shards."
    )
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _configure_kernels(actions)
    for name, module, description in (
        ("decode", decode, decode.DESCRIPTION),
        ("first-picture", first_picture, first_picture.HELP),
        ("precision", precision, precision.HELP),
        ("metrics", metrics, metrics.HELP),
        ("retrieval", retrieval, retrieval.DESCRIPTION),
        ("shards", shards, shards.HELP),
    ):
        module.configure(
            actions.add_parser(
                name,
                help=module.HELP,
                epilog=module.EXAMPLE,
                description=description,
                formatter_class=RawDescriptionHelpFormatter,
            )
        )


def _configure_kernels(actions: _SubParsersAction[ArgumentParser]) -> None:
    kernels = actions.add_parser(
        "kernels",
        help="compare our kernels with alternative implementations",
        epilog=EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
        description="Compare each provider's result with a float64 reference, and time the correct "
        "ones: median, 20th\n"
        "and 80th percentile, twice, with a warm and a cold cache. Prints a table; with -o also "
        "JSON and plots.",
    )
    kernels.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device to measure on (default: %(default)s)",
    )
    kernels.add_argument(
        "--op",
        action="append",
        default=[],
        metavar="NAME",
        help="an op; can be repeated (default: all)",
    )
    kernels.add_argument(
        "--provider",
        action="append",
        default=[],
        metavar="NAME",
        help="a provider; can be repeated (default: all)",
    )
    kernels.add_argument("-o", "--out", type=Path, help="JSON file to write; plots go next to it")
    kernels.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    kernels.add_argument(
        "--dry-run",
        action="store_true",
        help="run everything once on tiny inputs without timing; --device cuda then needs no GPU",
    )
    kernels.add_argument("--threads", type=whole_number(1, 4096), help="torch's CPU threads")
    kernels.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; returns 1 if a provider is wrong or failed."""
    if args.quick and args.dry_run:
        raise CM3Error(
            "cm3 bench kernels", "--quick and --dry-run can't be combined", "leave one out"
        )
    if args.out is not None:
        from cm3core.files import check_writable

        check_writable(args.out)
    if args.dry_run and "triton" not in sys.modules:
        # lets Triton's kernels run on the CPU, too
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return _run(args)


def _run(args: Namespace) -> int:
    import torch

    from cm3lab.benchmarks import report, runner
    from cm3run.benchmarks import BenchmarkRegistry, Where

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    there = args.device == "cpu" or torch.cuda.is_available()
    if not there and not args.dry_run:
        raise DeviceError(
            "cm3 bench kernels --device cuda",
            "there is no CUDA device, or torch was built without CUDA",
            "use --device cpu, or --dry-run to run everything without one",
        )
    device = torch.device(args.device if there and not (args.dry_run and _interprets()) else "cpu")
    where = Where(device, args.device, "dry" if args.dry_run else "quick" if args.quick else "full")
    registry = BenchmarkRegistry()
    for add in registry_of(args).benchmarks():
        add(registry)
    for name in args.op:
        if name not in registry.ops:
            raise CM3Error(
                "cm3 bench kernels --op",
                f"no op is called {name!r}",
                close_match(name, registry.ops),
            )
    ops = [op for name, op in registry.ops.items() if not args.op or name in args.op]
    known = {provider.name for op in ops for provider in op.providers}
    for name in args.provider:
        if name not in known:
            raise CM3Error(
                "cm3 bench kernels --provider",
                f"no provider is called {name!r}",
                close_match(name, known),
            )

    stopwatch, environment = runner.stopwatch_for(where), runner.environment(where)
    limits = runner.ceilings(where, stopwatch)
    print(report.heading(environment, limits), flush=True)
    rows: list[dict[str, object]] = []
    baselines = {op.name: op.baseline for op in ops}

    def case_done(of_case: list[dict[str, object]]) -> None:
        rows.extend(of_case)
        print(f"\n{report.table(of_case, baselines)}", flush=True)
        if args.out is not None:
            report.write_json(args.out, environment, limits, rows)

    try:
        for op in ops:
            runner.run_op(op, where, stopwatch, limits, providers=args.provider, done=case_done)
    finally:  # an interrupted run keeps its results so far
        if args.out is not None and rows:
            plots = report.write_plots(args.out, rows, environment)
            print(f"\nwritten: {', '.join(map(str, [args.out, *plots]))}", flush=True)
    bad = [row for row in rows if row["status"] in ("wrong", "failed")]
    if bad:
        print(f"\n{len(bad)} of {len(rows)} results are wrong or failed", file=sys.stderr)
    return int(bool(bad))


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
