"""The command line of `cm3 experiment`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from cm3lab.experiments import icons
from cm3lab.experiments.patch_knn import command as patch_knn
from cm3lab.experiments.retrieval import command as retrieval
from cm3lab.experiments.tasks import command as tasks
from cm3lab.experiments.tuning import command as tuning


def configure(parser: ArgumentParser) -> None:
    """The experiments."""
    parser.description = "Questions about the method, answered by training and measuring."
    parser.epilog, parser.formatter_class = retrieval.EXAMPLE, RawDescriptionHelpFormatter
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
    retrieval.configure(actions.add_parser("retrieval", help="what retrieved documents gain"))
