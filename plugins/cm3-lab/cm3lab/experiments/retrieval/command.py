"""The command line of `cm3 experiment retrieval`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from cm3apps.cli import registry_of, training_precision, whole_number
from cm3core.errors import CM3Error
from cm3lab.experiments.options import add_training_options, check_arms, compared, typed_training
from cm3lab.experiments.retrieval import ARMS, RetrievalSettings

PLACE = "cm3 experiment retrieval"
DEFAULT_ARMS = ("none", "bm25-1", "bm25-2", "dense-1", "random-1")
EXAMPLE = """examples:
  cm3 experiment retrieval -o gain
  cm3 experiment retrieval --arms none bm25-1 --seeds 0 1 2 --steps 20000 -o gain
  cm3 experiment retrieval --steps 200 --pictures 8 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Train the same decoder with and without retrieved documents, on the same number of tokens, and\n"
        "measure all of them on held-out documents: the loss on the query's image tokens with every memory,\n"
        "retriever and number of documents; and generated pictures, by their distance from real ones\n"
        "(KID) and by whether they show the prompt's subject (R@5)."
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1, 2**63 - 1),
        metavar="N",
        help="optimiser steps of each training (default: the recipe's)",
    )
    parser.add_argument(
        "--documents",
        type=whole_number(2, 2**31 - 1),
        default=150,
        metavar="N",
        help="held-out documents to measure per split (default: %(default)s)",
    )
    parser.add_argument(
        "--pictures",
        type=whole_number(0, 2**20),
        default=48,
        metavar="N",
        help="pictures to generate per split and arm; 0: none (default: %(default)s)",
    )
    add_training_options(parser, ARMS, DEFAULT_ARMS, recipe="retrieval-gain", out="cm3-retrieval")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    check_arms(PLACE, args.arms, ARMS)
    if 0 < args.pictures < 2:
        raise CM3Error(
            PLACE,
            "--pictures is 1, but the distance of a single picture is meaningless",
            "use 2 or more, or 0 for none",
        )
    from cm3lab.experiments.retrieval.experiment import RetrievalExperiment
    from cm3run.training import TrainingInterrupted

    args.overrides += training_precision(args)
    experiment = RetrievalExperiment(
        registry_of(args),
        args.out,
        compared(args, _typed(args)),
        RetrievalSettings(tuple(args.overrides), args.steps, args.documents, args.pictures),
    )
    try:
        report = experiment.run()
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _typed(args: Namespace) -> str:
    own = [] if args.steps is None else ["--steps", str(args.steps)]
    own += ["--documents", str(args.documents), "--pictures", str(args.pictures)]
    return typed_training(args, "retrieval", own)
