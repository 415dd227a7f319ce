"""Options shared by experiments on a model. Light."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    add_device,
    add_overrides,
    add_precision,
    add_training_precision,
    add_trust,
    registry_of,
    whole_number,
)
from cm3core.errors import CM3Error, close_match

if TYPE_CHECKING:
    from cm3run.model import Model


@dataclass(frozen=True)
class Compared:
    """The trainings to compare: every arm with every seed, with one recipe.

    Args:
        recipe: name or path of the recipe shared by all arms.
        arms: the ways of training.
        seeds: seeds of each arm; more arms and seeds can be added later.
        command: command to resume.
    """

    recipe: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    command: str


def add_model_options(
    parser: ArgumentParser,
    choices: Mapping[str, tuple[Sequence[str], Sequence[str], str]],
    *,
    num: str,
    out: str,
    several: bool = False,
) -> None:
    """Add options for the model, the extent of the measurement, and the output folder.

    Args:
        parser: parser of a command whose run is repeated by `typed`.
        choices: option -> its choices, default, and help.
        num: what `--num` counts.
        out: the default folder.
        several: whether several models are given.
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="+" if several else None,
        help="a run's folder, a checkpoint, PLUGIN:NAME of a model shipped by a plugin, or hf://USER/NAME",
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
        help="seed of sampling (default: %(default)s)",
    )
    add_device(parser, "device for the model")
    add_precision(parser)
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="CPU threads of the decoder (default: 1 for a small decoder, otherwise the number of cores)",
    )
    add_trust(parser)
    _add_out(parser, out)


def loaded(args: Namespace, name: str | None = None) -> Model:
    """Load the model of a command with `add_model_options`; `name` is one of several."""
    from cm3run.model import load

    return load(
        name or args.model,
        registry=registry_of(args),
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )


def typed(
    args: Namespace, name: str, choices: Mapping[str, Sequence[str]], more: Sequence[str] = ()
) -> list[str]:
    """Return the words of the complete command, so that readers of a report can repeat it.

    Args:
        args: parsed arguments.
        name: name of the experiment.
        choices: option -> chosen values.
        more: words of the experiment's own options.
    """
    models = args.model if isinstance(args.model, list) else [args.model]
    words = [*begun(args, name), *models, "--num", str(args.num)]
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
    for trusted in args.trust_endpoints:
        words += ["--trust-endpoints", trusted]
    return [*words, "-o", str(args.out)]


def add_training_options(
    parser: ArgumentParser,
    arms: Collection[str],
    default: Sequence[str] | None,
    *,
    recipe: str,
    out: str,
) -> None:
    """Add options for the arms, the recipe, the seeds, and the output folder.

    Args:
        parser: parser of a command.
        arms: the ways of training to compare.
        default: default arms; None: all.
        recipe: the default recipe.
        out: the default folder.
    """
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(arms if default is None else default),
        metavar="ARM",
        help=f"arms to train: {', '.join(arms)} "
        f"(default: {'all' if default is None else ' '.join(default)})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=whole_number(0, 2**63 - 1),
        default=[0],
        metavar="N",
        help="seeds to train each arm with (default: 0)",
    )
    parser.add_argument(
        "--recipe", default=recipe, help="recipe to train with (default: %(default)s)"
    )
    _add_out(parser, out)
    add_device(parser, "device for training and running the decoders")
    add_training_precision(parser)
    add_overrides(parser)


def check_arms(place: str, given: Iterable[str], arms: Collection[str]) -> None:
    """Raise `CM3Error` for an unknown arm."""
    for arm in given:
        if arm not in arms:
            raise CM3Error(
                place,
                f"there is no arm {arm!r}; {close_match(arm, arms)}",
                f"use some of {', '.join(arms)}",
            )


def typed_training(args: Namespace, name: str, own: Sequence[str]) -> str:
    """Return the complete command with `add_training_options`, so that readers of a report can repeat it.

    Args:
        args: parsed arguments.
        name: name of the experiment.
        own: words of the experiment's own options.
    """
    words = [
        *begun(args, name),
        *("--recipe", args.recipe, "--arms", *args.arms, "--seeds", *map(str, args.seeds)),
        *own,
        *("-o", str(args.out)),
        *([] if args.device is None else ["--device", args.device]),
        *args.overrides,
    ]
    return shlex.join(words)


def compared(args: Namespace, command: str) -> Compared:
    """Return the trainings to compare, for a command with `add_training_options`."""
    return Compared(args.recipe, each_once(args.arms), tuple(dict.fromkeys(args.seeds)), command)


def begun(args: Namespace, name: str) -> list[str]:
    """Return the first words of an experiment's command."""
    plugins = (word for path in args.plugin for word in ("--plugin", str(path)))
    return ["cm3", *plugins, "experiment", name]


def _add_out(parser: ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path(default),
        metavar="FOLDER",
        help="folder for the results (default: %(default)s)",
    )


def each_once(values: Sequence[str]) -> tuple[str, ...]:
    """Return the values without repeats, in order."""
    return tuple(dict.fromkeys(values))
