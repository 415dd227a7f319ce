"""The command line of `cm3 experiment`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from cm3lab.experiments import icons
from cm3lab.experiments.judged import command as judged
from cm3lab.experiments.patch_knn import command as patch_knn
from cm3lab.experiments.retrieval import command as retrieval
from cm3lab.experiments.tasks import command as tasks
from cm3lab.experiments.tuning import command as tuning


def configure(parser: ArgumentParser) -> None:
    """Add the experiments."""
    parser.description = "Questions about the method, answered by training and measuring."
    parser.epilog, parser.formatter_class = retrieval.EXAMPLE, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="EXPERIMENT", required=True)
    patch_knn.configure(
        actions.add_parser(
            "patch-knn",
            help="how much the sampler patch_knn improves the loss on held-out pictures",
        )
    )
    icons.configure(actions.add_parser("icons", help="quality of the pictures of an icon model"))
    tasks.configure(actions.add_parser("tasks", help="quality of a tuned icon model on each task"))
    tuning.configure(actions.add_parser("tuning", help="compare ways of tuning a model"))
    retrieval.configure(
        actions.add_parser(
            "retrieval", help="how much retrieved documents improve loss and pictures"
        )
    )
    judged.configure_scaling(
        actions.add_parser("scaling", help="loss and usable icons by size, tokens and documents")
    )
    judged.configure_settings(
        actions.add_parser("settings", help="usable icons by guidance, candidates and documents")
    )
