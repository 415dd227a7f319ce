"""The command line `cm3`. Each command is a module in this folder with four names:

    HELP: str                                one line for the table of `cm3 --help`
    EXAMPLE: str                             lines to copy; shown at the end of the command's help
    configure(parser: ArgumentParser)        adds the command's arguments
    run(args: Namespace) -> int              does the work, returns the exit code

`main` imports a command's module only when that command is called, so `cm3 --help` stays fast.
Modules here import no torch at module level. A command whose parser has a positional argument
`overrides` (see `add_overrides`) takes `key=value` anywhere among its options.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from cm3apps.cli._numbers import real_number, whole_number

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry


__all__ = [
    "OVERRIDE",
    "add_device",
    "add_overrides",
    "add_precision",
    "add_training_precision",
    "add_trust",
    "real_number",
    "registry_of",
    "training_precision",
    "whole_number",
]

#: An argument of this form is a recipe override; `cm3core.recipe` checks whether its key is well
#: formed.
OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=.*", re.DOTALL)


def add_device(parser: ArgumentParser, what: str) -> None:
    """`--device`, of a command that computes on one."""
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help=f"{what}: cpu, cuda, cuda:1, ... (default: the GPU when there is one)",
    )


def add_precision(parser: ArgumentParser) -> None:
    """`--precision`, of a command that generates: what `cm3core.load` takes."""
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "int8", "int4"],
        help="precision of the decoder's weights for generation; int8 and int4 are refused where they "
        "change predictions (default, auto: the fastest that the machine multiplies and that hardly changes "
        "predictions: bf16 on a GPU, int8 or bf16 on a CPU; else as stored)",
    )


def add_training_precision(parser: ArgumentParser) -> None:
    """`--precision`, of a command that trains a decoder."""
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help="precision of training, the same as train.precision=... (default: the recipe's)",
    )


def training_precision(args: Namespace) -> list[str]:
    """The override that `add_training_precision` stands for."""
    return [] if args.precision is None else [f"train.precision={args.precision}"]


def add_trust(parser: ArgumentParser, *, plugins: bool = True) -> None:
    """`--trust-endpoints`, and `--trust-plugin` of a command that builds what a model names."""
    if plugins:
        parser.add_argument(
            "--trust-plugin",
            action="append",
            default=[],
            dest="trust_plugins",
            metavar="SHA256",
            help="run the plugin file in the checkpoint that has this hash: code that can do anything "
            "that you can, so read it first; may be given several times",
        )
    parser.add_argument(
        "--trust-endpoints",
        action="append",
        default=[],
        dest="trust_endpoints",
        metavar="WHERE",
        help="let what you did not make yourself (model, adapter, bank) use this host (HOST or HOST:PORT), "
        "address (s3://BUCKET) or path outside of it, and what lies below; may be given several times",
    )


def add_overrides(parser: ArgumentParser) -> None:
    """Let a command take recipe overrides: `args.overrides`, a list of `section.key=value`."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        default=[],
        help="values that override the recipe's, in any order; kind=name changes a component",
    )


def registry_of(args: Namespace, *, quiet: bool = False) -> Registry:
    """The registry for a command: installed plugins and the files given by `--plugin`.

    `quiet` suppresses warnings, for commands that show broken plugins anyway. What plugins print
    goes to stderr.
    """
    from cm3apps.cli._stdout import stdout_to_stderr
    from cm3core.plugins import discovery

    before = discovery.logger.level
    if quiet:
        discovery.logger.setLevel("ERROR")
    try:
        with stdout_to_stderr():
            return discovery.load_registry(args.plugin)
    finally:
        discovery.logger.setLevel(before)
