"""The command line of `cm3 quickstart`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3apps.cli import (
    add_device,
    add_overrides,
    add_training_precision,
    real_number,
    registry_of,
    training_precision,
)

EXAMPLE = """examples:
  cm3 quickstart
  cm3 quickstart --minutes 8 -o small
  cm3 quickstart --tokenizer train -o from-scratch
  cm3 quickstart dataset.sprites=my/drawings -o mine
  cm3 quickstart --recipe quickstart --minutes 18 -o icons
The same command resumes an interrupted run. When it is done, open report.md in the folder."""


def configure(parser: ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Train a small CM3leon on scenes of bundled drawings, with retrieved documents prepended; judge exactly what it draws "
        "of objects that it never saw; answer prompts, caption and inpaint; and write a report."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--minutes",
        type=real_number(0, 10_000_000, above=True),
        default=25.0,
        help="length of the whole run, on this machine (default: %(default)g)",
    )
    parser.add_argument(
        "--tokenizer",
        choices=("bundled", "train"),
        default="bundled",
        help="use the bundled image tokenizer, or train one from scratch first (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer-minutes",
        type=real_number(0, 10_000_000, above=True),
        default=12.0,
        help="with --tokenizer train: minutes for it, in addition to --minutes (default: %(default)g)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-quickstart"),
        help="folder of all results (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe",
        default="scenes-small",
        help="the recipe to train, such as quickstart, for icons (default: %(default)s)",
    )
    add_device(parser, "where the networks are trained and run")
    add_training_precision(parser)
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the quickstart; return the exit code."""
    from cm3apps.quickstart.pipeline import RECIPE, Quickstart
    from cm3run.training import TrainingInterrupted

    plugins = "".join(f"--plugin {shlex.quote(str(path))} " for path in args.plugin)
    options = ["--minutes", f"{args.minutes:g}", "-o", str(args.out)]
    if args.tokenizer == "train":
        options += ["--tokenizer", "train", "--tokenizer-minutes", f"{args.tokenizer_minutes:g}"]
    if args.recipe != RECIPE:
        options += ["--recipe", args.recipe]
    if args.device is not None:
        options += ["--device", args.device]
    args.overrides += training_precision(args)
    command = f"cm3 {plugins}quickstart {shlex.join([*options, *args.overrides])}"
    quickstart = Quickstart(
        registry_of(args),
        args.out,
        minutes=args.minutes,
        recipe_name=args.recipe,
        overrides=args.overrides,
        tokenizer_minutes=args.tokenizer_minutes if args.tokenizer == "train" else None,
        command=command,
    )
    try:
        report = quickstart.run()
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0
