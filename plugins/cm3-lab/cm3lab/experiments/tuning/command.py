"""The command line of `cm3 experiment tuning`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from cm3apps.cli import (
    real_number,
    registry_of,
    training_precision,
    whole_number,
)
from cm3lab.experiments.options import (
    add_training_options,
    check_arms,
    compared,
    each_once,
    typed_training,
)
from cm3lab.experiments.tasks import SPLITS, TASKS
from cm3lab.experiments.tuning import ARMS, TuningSettings

PLACE = "cm3 experiment tuning"
EXAMPLE = """examples:
  cm3 experiment tuning -o tuning
  cm3 experiment tuning --arms full lora --seeds 0 1 --minutes 10 -o tuning
  cm3 experiment tuning --set lora tune.rank=64 --set lora train.learning_rate=6e-3 -o rank-64
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Tune one model on one mixture in several ways, and measure each on held-out data: methods (all\n"
        "parameters, LoRA, DoRA, the head) for the same computation time; the loss of responses alone, and\n"
        "answers before pictures, for the same number of steps. Writes report.md and figures.json."
    )
    parser.add_argument(
        "--base",
        default="lab:icons64",
        metavar="MODEL",
        help="model to tune: a run, a checkpoint, an exported model, PLUGIN:NAME or hf://USER/NAME (default: %(default)s)",
    )
    _add_measured(parser)
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        dest="own",
        metavar=("ARM", "KEY=VALUE"),
        help="override of the recipe for one arm; can be repeated",
    )
    add_training_options(parser, ARMS, None, recipe="icons-tuned", out="cm3-tuning")
    parser.set_defaults(run=run)


def _add_measured(parser: ArgumentParser) -> None:
    """How long each arm is tuned, and what is measured of it."""
    parser.add_argument(
        "--minutes",
        type=real_number(0, 1e6, above=True),
        default=30.0,
        metavar="M",
        help="minutes of computation per method, converted to steps by a measured step time (default: %(default)s)",
    )
    parser.add_argument(
        "--documents",
        type=whole_number(2, 100_000),
        default=64,
        metavar="N",
        help="held-out documents per part of the mixture and split whose response loss is measured "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--num",
        type=whole_number(0, 2**20),
        default=32,
        metavar="N",
        help="records to generate or answer per task and split; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["comp", "unseen"],
        metavar="SPLIT",
        help=f"held-out splits; for icons {', '.join(SPLITS[:-1])} (default: comp unseen)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=["edit", "answer"],
        metavar="TASK",
        help=f"tasks to generate or answer, for icon models: {', '.join(TASKS)} (default: edit answer)",
    )


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    own: dict[str, list[str]] = {}
    for arm, override in args.own:
        own.setdefault(arm, []).append(override)
    check_arms(PLACE, [*args.arms, *own], ARMS)
    from cm3lab.experiments.tuning.experiment import TuningExperiment

    args.overrides += training_precision(args)
    experiment = TuningExperiment(
        registry_of(args),
        args.out,
        compared(args, _typed(args)),
        TuningSettings(
            args.base,
            args.minutes,
            args.documents,
            args.num,
            each_once(args.splits),
            each_once(args.tasks),
            tuple(args.overrides),
            own,
        ),
        device=args.device,
    )
    try:
        report = experiment.run()
    except KeyboardInterrupt as stopped:
        print(str(stopped) or f"interrupted; resume with: {_typed(args)}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _typed(args: Namespace) -> str:
    own = [
        *(
            "--base",
            args.base,
            "--minutes",
            f"{args.minutes:g}",
            "--documents",
            str(args.documents),
        ),
        *("--num", str(args.num), "--splits", *args.splits, "--tasks", *args.tasks),
        *(word for one in args.own for word in ("--set", *one)),
    ]
    return typed_training(args, "tuning", own)
