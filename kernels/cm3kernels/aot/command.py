"""The command `python -m cm3kernels.aot`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cm3kernels.aot.budget import (
    BUDGET,
    as_budget,
    findings,
    read_budget,
    triton_series,
    triton_version,
    unchanged,
    write_budget,
)
from cm3kernels.aot.compiling import instructions_of
from cm3kernels.aot.entry import collect, fingerprint
from cm3kernels.aot.jobs import Result, jobs_of, remaining, run

DESCRIPTION = "Compile every kernel and shipped launch configuration without a GPU, and compare with a budget."
HEADING = f"{'kernel and configuration':<56} {'target':<16} {'regs':>5} {'spill':>6} {'shared':>8}"


def line(result: Result, *, show_instructions: bool = False) -> str:
    """Format a result under `HEADING`."""
    usage = result.usage
    figures = f"{usage.registers:>5} {usage.spill:>6} {usage.shared:>8}" if usage else result.error
    extra = f"  {instructions_of(usage)}" if usage and show_instructions else ""
    return f"{result.name:<56} {result.target:<16} {figures}{extra}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if an entry exceeds its budget."""
    parser = argparse.ArgumentParser(prog="python -m cm3kernels.aot", description=DESCRIPTION)
    parser.add_argument(
        "--changed",
        nargs="?",
        const="kernel",
        choices=("kernel", "nothing"),
        help="skip unchanged entries, except one of each kernel (skip those, too, with 'nothing')",
    )
    parser.add_argument("--write", action="store_true", help="record the kernels' present usage")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only entries whose name contains this; no comparison",
    )
    parser.add_argument("--show", action="store_true", help="print the instructions found")
    parser.add_argument(
        "--extended",
        action="store_true",
        help="every entry on AMD and unaligned, not just one of each kernel",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--budget", type=Path, default=BUDGET, help="the budget's file (default: the package's)"
    )
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported, here and in the workers
    entries, series, budget = collect(), triton_series(), read_budget(args.budget)
    for entry in (
        entries
    ):  # in one order: Triton's key of a kernel depends on those that were computed before
        fingerprint(entry)
    chosen = [entry for entry in entries if args.only in entry.name]
    before = budget.get(series, {}).get("entries", {})
    same_version = budget.get(series, {}).get("triton") == triton_version()
    results = (
        unchanged(chosen, before, always=args.changed) if args.changed and same_version else []
    )
    num_known = len(results)
    print(HEADING)
    for result in run(
        remaining(jobs_of(chosen, extended=args.extended), results),
        num_processes=args.jobs,
        all_instructions=args.write or args.show,
    ):
        print(line(result, show_instructions=args.show), flush=True)
        results.append(result)
    if args.write:
        recorded = {
            **{name: usage for name, usage in before.items() if args.only not in name},
            **as_budget(results, chosen),
        }
        write_budget(
            {**budget, series: {"triton": triton_version(), "entries": recorded}}, args.budget
        )
    if args.only and not args.write:
        return int(any(result.usage is None for result in results))
    now = read_budget(args.budget).get(series, {}).get("entries", {})
    wrong = findings(
        chosen, results, {name: usage for name, usage in now.items() if args.only in name}
    )
    print(
        "\n".join(
            [
                "",
                f"{num_known} results as recorded; {len(wrong)} findings (Triton {series})",
                *(f"  {finding}" for finding in wrong),
            ]
        )
    )
    return int(bool(wrong))
