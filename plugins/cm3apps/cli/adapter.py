"""`cm3 adapter merge`: merge an adapter and its base into a whole model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3apps.cli import add_trust, registry_of
from cm3apps.cli._training import action_adder

HELP = "merge a run's adapter into its base model"
EXAMPLE = "  cm3 adapter merge runs/pairs-lora -o models/pairs"


def configure(parser: ArgumentParser) -> None:
    """Add the action."""
    add = action_adder(parser)
    merge = add("merge", HELP, "cm3 adapter merge runs/pairs-lora -o models/pairs")
    merge.add_argument(
        "run", metavar="RUN", help="a run that trained an adapter, or one of its checkpoints"
    )
    merge.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the model's folder"
    )
    merge.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that the adapter was trained on (default: its path at that time)",
    )
    merge.add_argument(
        "--dtype",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="precision of the stored weights (default: %(default)s)",
    )
    add_trust(merge)


def run(args: Namespace) -> int:
    """Merge, and print the folder."""
    from cm3run.checkpoint import merge_adapter

    registry = registry_of(args)
    folder = merge_adapter(
        args.run,
        args.out,
        registry,
        base=args.base,
        dtype=args.dtype,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    print(folder)
    return 0
