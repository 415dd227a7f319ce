"""The command lines of `cm3 experiment scaling` and `cm3 experiment settings`. Light: they import heavy modules only when they
run."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from cm3apps.cli import registry_of, training_precision, whole_number
from cm3lab.experiments.judged import DRAWINGS, SPLITS, TRAININGS, JudgedSettings, ScalingSettings
from cm3lab.experiments.options import (
    add_model_options,
    add_training_options,
    check_arms,
    compared,
    each_once,
    loaded,
    typed,
    typed_training,
)

SCALING = """examples:
  cm3 experiment scaling --arms 1m 3m 10m --seeds 0 1 2 -o scaling
  cm3 experiment scaling --arms documents-0 documents-1 documents-2 documents-3 -o documents
  cm3 experiment scaling --arms 1m --steps 50 --num 8 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""
SETTINGS = """examples:
  cm3 experiment settings scaling/3m-0/run scaling/3m-1/run -o guidance
  cm3 experiment settings cm3-quickstart/model --arms documents-0 documents-1 documents-2 -o documents
The same command resumes an interrupted run. Open report.md in the folder when it is done."""
GUIDANCE = ("unguided", "cfg-1.5", "cfg-2", "cfg-3", "cd-k")


def configure_scaling(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = SCALING, RawDescriptionHelpFormatter
    parser.description = (
        "Train one recipe in several sizes, on several numbers of tokens, or with several numbers of retrieved\n"
        "documents, and measure each: the loss on held-out icons, and how many drawings are usable (the asked\n"
        "thing, in the asked hand, and no copy)."
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1, 2**31 - 1),
        default=600,
        metavar="N",
        help="optimiser steps of a whole training (default: %(default)s)",
    )
    _add_judged(parser)
    add_training_options(
        parser, TRAININGS, ("1m", "3m", "10m"), recipe="quickstart", out="cm3-scaling"
    )
    parser.set_defaults(run=run_scaling)


def _add_judged(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--num",
        type=whole_number(0, 2**20),
        default=100,
        metavar="N",
        help="icons to draw and judge per split; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["restyle", "variant"],
        metavar="SPLIT",
        help=f"splits to draw: {', '.join(SPLITS)} (default: restyle variant)",
    )


def run_scaling(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    check_arms("cm3 experiment scaling", args.arms, TRAININGS)
    from cm3lab.experiments.judged.scaling import ScalingExperiment

    args.overrides += training_precision(args)
    own = ["--steps", str(args.steps), "--num", str(args.num), "--splits", *args.splits]
    command = typed_training(args, "scaling", own)
    experiment = ScalingExperiment(
        registry_of(args),
        args.out,
        compared(args, command),
        ScalingSettings(
            each_once(args.splits), args.num, steps=args.steps, overrides=tuple(args.overrides)
        ),
        device=args.device,
    )
    try:
        report = experiment.run()
    except KeyboardInterrupt as stopped:
        print(str(stopped) or f"interrupted; resume with: {command}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def configure_settings(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = SETTINGS, RawDescriptionHelpFormatter
    parser.description = (
        "Draw held-out icons with trained models under several settings of generation (guidance, contrastive\n"
        "decoding, candidates, retrieved documents), and judge how many are usable. Several models count as\n"
        "seeds of one."
    )
    add_model_options(
        parser,
        {
            "--arms": (tuple(DRAWINGS), GUIDANCE, "settings to compare"),
            "--splits": (SPLITS, ("restyle", "variant"), "splits to draw"),
        },
        num="icons to draw per split",
        out="cm3-settings",
        several=True,
    )
    parser.set_defaults(run=run_settings)


def run_settings(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    from cm3lab.experiments.judged.drawing import draw

    command = shlex.join(typed(args, "settings", {"--arms": args.arms, "--splits": args.splits}))
    models = [loaded(args, name) for name in args.model]
    settings = JudgedSettings(each_once(args.splits), args.num, args.seed)
    try:
        report = draw(models, each_once(args.arms), settings, args.out, command)
    except KeyboardInterrupt:
        print(f"interrupted; resume with: {command}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0
