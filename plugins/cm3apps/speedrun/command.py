"""The command line of `cm3 speedrun`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from cm3apps.cli import add_overrides, registry_of, whole_number

EXAMPLE = """examples:
  cm3 speedrun                                         repeats the best entry
  cm3 speedrun --recipe my/entry.yaml -o my/record     yours
  cm3 speedrun --check --recipe my/entry.yaml          only checks the rules
The same command resumes. Rules and entries: docs/speedrun.md."""


def configure(parser: ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Train on the bundled icons until held-out icons reach a stated loss, judge what the model\ndraws, and write a "
        "record: the fewest minutes of processor time win. Exit code 1: the goal is missed."
    )
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.add_argument(
        "--recipe", default="speedrun", help="the entry's recipe (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(0, 2**31 - 1),
        nargs="+",
        default=[0, 1, 2],
        help="seeds of the trainings (default: 0 1 2)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the rules that a recipe must obey, and stop"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("runs/speedrun"),
        help="folder of all results (default: %(default)s)",
    )
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run an entry; return the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait spend no processor time
    from cm3apps.speedrun.entry import Entry
    from cm3apps.speedrun.rules import ICONS
    from cm3run.training import TrainingInterrupted

    plugins = "".join(f"--plugin {shlex.quote(str(path))} " for path in args.plugin)
    seeds = [str(seed) for seed in args.seeds]
    options = ["--recipe", args.recipe, "--seeds", *seeds, "-o", str(args.out), *args.overrides]
    entry = Entry(
        registry_of(args),
        args.out,
        ICONS,
        args.recipe,
        tuple(args.overrides),
        f"cm3 {plugins}speedrun {shlex.join(options)}",
    )
    if args.check:
        entry.check(args.seeds[0])
        print(f"{args.recipe} obeys the rules")
        return 0
    try:
        found = entry.run(list(dict.fromkeys(args.seeds)))
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(f"\ndone: open {args.out / 'record.md'}")
    for missed in found.missed:
        print(f"the goal is missed: {missed}", file=sys.stderr)
    return 0 if found.reached else 1
