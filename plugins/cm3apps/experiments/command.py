"""The command line of `cm3 experiment`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from cm3apps.experiments.icons import command as icons
from cm3apps.experiments.patch_knn import command as patch_knn
from cm3apps.experiments.retrieval.arms import ARMS
from cm3apps.experiments.tasks import command as tasks
from cm3apps.experiments.tuning import command as tuning
from cm3core.cli import (
    add_device,
    add_overrides,
    add_training_precision,
    registry_of,
    training_precision,
    whole_number,
)
from cm3core.errors import CM3Error, close_match

PLACE = "cm3 experiment retrieval"
DEFAULT_ARMS = ("none", "bm25-1", "bm25-2", "dense-1", "random-1")
EXAMPLE = """examples:
  cm3 experiment retrieval -o gain
  cm3 experiment retrieval --arms none bm25-1 --seeds 0 1 2 --steps 20000 -o gain
  cm3 experiment retrieval --steps 200 --pictures 8 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """The experiments."""
    parser.description = "Questions about the method, answered by training and measuring."
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="EXPERIMENT", required=True)
    patch_knn.configure(
        actions.add_parser(
            "patch-knn", help="what similar places in a memory's pictures gain (sampler patch_knn)"
        )
    )
    icons.configure(actions.add_parser("icons", help="how well a model of icons draws"))
    tasks.configure(
        actions.add_parser("tasks", help="what a tuned model of icons does of each task")
    )
    tuning.configure(actions.add_parser("tuning", help="ways of tuning a model, side by side"))
    _configure_retrieval(actions)


def _configure_retrieval(actions: Any) -> None:
    one = actions.add_parser(
        "retrieval",
        help="what retrieved documents gain",
        epilog=EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
        description="Train the same decoder with and without retrieved documents, on as many tokens, and measure\n"
        "all of them on held-out documents: the loss of the query's image tokens under every memory,\n"
        "retriever and number of documents; and generated pictures, by their distance from real ones\n"
        "(KID) and by whether they show what the prompt names (R@5).",
    )
    one.add_argument(
        "--arms",
        nargs="+",
        default=list(DEFAULT_ARMS),
        metavar="ARM",
        help=f"arms to train: {', '.join(ARMS)} (default: {' '.join(DEFAULT_ARMS)})",
    )
    one.add_argument(
        "--seeds",
        nargs="+",
        type=whole_number(0, 2**63 - 1),
        default=[0],
        metavar="N",
        help="each arm is trained with each seed (default: 0)",
    )
    one.add_argument(
        "--steps",
        type=whole_number(1, 2**63 - 1),
        metavar="N",
        help="optimiser steps of each training (default: the recipe's)",
    )
    one.add_argument(
        "--documents",
        type=whole_number(2, 2**31 - 1),
        default=150,
        metavar="N",
        help="held-out documents of each split that are measured (default: %(default)s)",
    )
    one.add_argument(
        "--pictures",
        type=whole_number(0, 2**20),
        default=48,
        metavar="N",
        help="pictures generated for each split and arm; 0: none (default: %(default)s)",
    )
    one.add_argument(
        "--recipe", default="retrieval-gain", help="the recipe to train by (default: %(default)s)"
    )
    one.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-retrieval"),
        metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )
    add_device(one, "where the decoders are trained and run")
    add_training_precision(one)
    add_overrides(one)
    one.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    for arm in args.arms:
        if arm not in ARMS:
            raise CM3Error(
                PLACE,
                f"there is no arm {arm!r}; {close_match(arm, ARMS)}",
                f"use some of {', '.join(ARMS)}",
            )
    if 0 < args.pictures < 2:
        raise CM3Error(
            PLACE,
            "--pictures is 1, and the distance of one picture means nothing",
            "give 2 or more, or 0 for none",
        )
    from cm3apps.experiments.retrieval.experiment import RetrievalExperiment
    from cm3core.training import TrainingInterrupted

    args.overrides += training_precision(args)
    experiment = RetrievalExperiment(
        registry_of(args),
        args.out,
        recipe=args.recipe,
        overrides=args.overrides,
        arms=list(dict.fromkeys(args.arms)),
        seeds=list(dict.fromkeys(args.seeds)),
        steps=args.steps,
        num_documents=args.documents,
        num_pictures=args.pictures,
        command=_typed(args),
    )
    try:
        report = experiment.run()
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _typed(args: Namespace) -> str:
    """The whole command, so that readers of the report can repeat it."""
    steps = [] if args.steps is None else ["--steps", str(args.steps)]
    words = [
        "cm3",
        *(word for path in args.plugin for word in ("--plugin", str(path))),
        "experiment",
        "retrieval",
        "--arms",
        *args.arms,
        "--seeds",
        *map(str, args.seeds),
        *steps,
        "--documents",
        str(args.documents),
        "--pictures",
        str(args.pictures),
        "--recipe",
        args.recipe,
        "-o",
        str(args.out),
        *([] if args.device is None else ["--device", args.device]),
        *args.overrides,
    ]
    return shlex.join(words)
