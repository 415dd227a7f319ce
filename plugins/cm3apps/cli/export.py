"""`cm3 export`: write a run's model as a folder to share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3apps.cli import add_trust, registry_of

HELP = "write a run's model as a folder to share: its weights, without the optimiser"
EXAMPLE = """  cm3 export runs/apples -o models/apples
  cm3 generate "a red apple" --model models/apples"""


def configure(parser: ArgumentParser) -> None:
    """Add the model and its folder."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, another model's folder, PLUGIN:NAME of a model shipped by a plugin, or hf://USER/NAME",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the model's folder; an older model there is replaced",
    )
    parser.add_argument(
        "--dtype",
        choices=["fp16", "bf16", "fp32"],
        default="fp16",
        help="precision of the stored weights (default: %(default)s)",
    )
    add_trust(parser, plugins=False)


def run(args: Namespace) -> int:
    """Write the model, and print its folder."""
    from cm3run.checkpoint import export_model, find_model

    registry = registry_of(args)
    folder = export_model(
        find_model(args.model, registry),
        args.out,
        args.dtype,
        shipped=registry.models().values(),
        trust_endpoints=args.trust_endpoints,
    )
    print(folder)
    return 0
