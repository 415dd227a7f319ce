"""The command line of `cm3 bench`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from cm3lab.benchmarks import first_picture, metrics, precision, shards
from cm3lab.benchmarks.decode import command as decode
from cm3lab.benchmarks.kernels import command as kernels
from cm3lab.benchmarks.kernels import comparison
from cm3lab.benchmarks.retrieval import command as retrieval

EXAMPLES = """examples:
  cm3 bench kernels --quick
  cm3 bench compare old.json new.json
  cm3 bench decode --quick
  cm3 bench first-picture
  cm3 bench metrics --quick
  cm3 bench retrieval --quick
  cm3 bench shards --quick"""
#: Action -> its module, and its description.
ACTIONS = {
    "kernels": (kernels, kernels.DESCRIPTION),
    "compare": (comparison, comparison.DESCRIPTION),
    "decode": (decode, decode.DESCRIPTION),
    "first-picture": (first_picture, first_picture.HELP),
    "precision": (precision, precision.HELP),
    "metrics": (metrics, metrics.HELP),
    "retrieval": (retrieval, retrieval.DESCRIPTION),
    "shards": (shards, shards.HELP),
}


def configure(parser: ArgumentParser) -> None:
    """The actions."""
    parser.description = (
        "Measure kernels, decoding, a process's first picture, precision, metrics, retrieval and reading of token "
        "shards; compare two measurements of kernels."
    )
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, description) in ACTIONS.items():
        module.configure(
            actions.add_parser(
                name,
                help=module.HELP,
                epilog=module.EXAMPLE,
                description=description,
                formatter_class=RawDescriptionHelpFormatter,
            )
        )
