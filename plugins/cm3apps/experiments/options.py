"""Options that the experiments on a model share. Light."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.cli import add_device, add_precision, registry_of, whole_number

if TYPE_CHECKING:
    from cm3core.model import Model


def add_model_options(
    parser: ArgumentParser,
    choices: Mapping[str, tuple[Sequence[str], Sequence[str], str]],
    *,
    num: str,
    out: str,
) -> None:
    """Add the model, how much is measured of it, and where the results go.

    Args:
        parser: of a command whose run is repeated by `typed`.
        choices: option -> what it chooses among, its default, and what that is.
        num: what `--num` counts.
        out: the default folder.
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, or PLUGIN:NAME of a model shipped by a plugin",
    )
    parser.add_argument(
        "--num",
        type=whole_number(1, 2**20),
        default=48,
        metavar="N",
        help=f"{num} (default: %(default)s)",
    )
    for option, (values, default, text) in choices.items():
        parser.add_argument(
            option,
            nargs="+",
            choices=values,
            default=list(default),
            metavar=option.strip("-").upper().removesuffix("S"),
            help=f"{text}: {', '.join(values)}"
            + (f" (default: {' '.join(default)})" if default else ""),
        )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**62),
        default=0,
        metavar="N",
        help="of the drawing (default: %(default)s)",
    )
    add_device(parser, "where the model runs")
    add_precision(parser)
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="CPU threads of the decoder (default: 1 for a small one, else the number of cores)",
    )
    parser.add_argument(
        "--trust-plugin",
        action="append",
        default=[],
        dest="trust_plugins",
        metavar="SHA256",
        help="run the plugin file in the checkpoint that has this hash; read it first",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path(out),
        metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )


def loaded(args: Namespace) -> Model:
    """The model of a command that has `add_model_options`."""
    from cm3core.model import load

    return load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        trust_plugins=args.trust_plugins,
    )


def typed(
    args: Namespace, name: str, choices: Mapping[str, Sequence[str]], more: Sequence[str] = ()
) -> list[str]:
    """The words of the whole command, so that readers of a report can repeat it.

    Args:
        args: parsed.
        name: the experiment's.
        choices: option -> what was chosen.
        more: words of the experiment's own options.
    """
    words = [
        "cm3",
        *(word for path in args.plugin for word in ("--plugin", str(path))),
        *("experiment", name, args.model, "--num", str(args.num)),
    ]
    for option, chosen in choices.items():
        words += [option, *chosen] if chosen else []
    words += ["--seed", str(args.seed), *more]
    if args.threads is not None:
        words += ["--threads", str(args.threads)]
    if args.device is not None:
        words += ["--device", args.device]
    if args.precision != "auto":
        words += ["--precision", args.precision]
    for trusted in args.trust_plugins:
        words += ["--trust-plugin", trusted]
    return [*words, "-o", str(args.out)]


def each_once(values: Sequence[str]) -> tuple[str, ...]:
    """The values without repeats, in their order."""
    return tuple(dict.fromkeys(values))
