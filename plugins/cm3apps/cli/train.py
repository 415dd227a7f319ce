"""`cm3 train`: train a decoder from a recipe, or resume a run."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    add_device,
    add_length,
    add_overrides,
    add_training_precision,
    add_trust,
    registry_of,
    training_length,
    training_precision,
    whole_number,
)
from cm3core._version import __version__

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.processes import Processes
    from cm3run.training.state import TrainResult

HELP = "train a decoder from a recipe, or resume a run"
EXAMPLE = """  cm3 train tiny -o runs/tiny
  cm3 train quickstart dataset=folder dataset.path=my/pictures
  cm3 train quickstart -o runs/long --minutes 120 train.optimizer=muon
  torchrun --nproc-per-node 8 --no-python cm3 train cm3leon-7b dataset=tokens dataset.path=DATA -o runs/7b
The same command resumes from the newest checkpoint in the folder. To continue a finished run, set a
larger length (--minutes, --steps)."""


def configure(parser: ArgumentParser) -> None:
    """Recipe, folder, overrides."""
    add_run_arguments(parser)


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add recipe, folder and overrides, for every command that trains a decoder."""
    parser.add_argument("recipe", help="a shipped recipe's name, or a path to a YAML file")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=None,
        help="the run's folder (default: runs/<recipe name>)",
    )
    parser.add_argument(
        "--new", action="store_true", help="refuse to resume from a checkpoint in the folder"
    )
    add_length(parser)
    add_device(parser, "where it is trained")
    add_training_precision(parser)
    parser.add_argument(
        "--shard",
        type=whole_number(1, 2**20),
        metavar="N",
        help="with several processes: the number that share one decoder; 1: each has its own "
        "(default: the smallest number with which training fits)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_trust(parser, plugins=False)
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Train and print the checkpoint's path."""
    from cm3core.recipe import compose

    def recipe_of(registry: Registry) -> Recipe:
        return compose(
            args.recipe,
            args.overrides,
            registry=registry,
            trust_endpoints=args.trust_endpoints,
        )

    return train_and_report(args, recipe_of, ["train"])


def train_and_report(
    args: Namespace, recipe_of: Callable[[Registry], Recipe], words: Sequence[str]
) -> int:
    """Train in all processes, and print the checkpoint's path.

    Args:
        args: the arguments of `add_run_arguments`.
        recipe_of: composes the recipe.
        words: the words between `cm3` and the recipe.
    """
    from cm3run.processes import started_processes

    args.overrides += [*training_length(args), *training_precision(args)]
    with started_processes(args.device, same={"package version": __version__}) as (
        processes,
        device,
    ):
        with processes.only_first_talks():
            code, text = _train(args, recipe_of, words, processes, device)
        if processes.is_first and text:
            print(text, file=sys.stderr if code else sys.stdout)
    return code


def _train(
    args: Namespace,
    recipe_of: Callable[[Registry], Recipe],
    words: Sequence[str],
    processes: Processes,
    device: str | None,
) -> tuple[int, str]:
    """Return the exit code and the text to print at the end."""
    registry = registry_of(args)
    recipe = recipe_of(registry)
    out = args.out if args.out is not None else Path("runs") / recipe.name
    plugins = "".join(f"--plugin {shlex.quote(str(path))} " for path in args.plugin)
    command = shlex.join([args.recipe, "-o", str(out), *args.overrides])
    begin = f"cm3 {plugins}{' '.join(words)}"

    from cm3run.checkpoint import latest_checkpoint
    from cm3run.life import TOKENIZERS, life_of
    from cm3run.training.loop import train
    from cm3run.training.state import TrainingInterrupted

    carried = () if latest_checkpoint(out) is None else TOKENIZERS
    life_of(recipe, registry, carried=carried)
    try:
        result = train(
            recipe,
            out,
            registry,
            # a run restarted by torchrun continues
            resume=not args.new or processes.num_restarts > 0,
            progress=not args.quiet,
            device=device,
            processes=processes,
            shard=args.shard,
            trust_endpoints=args.trust_endpoints,
            command=f"{begin} {command}"
            if processes.world_size == 1
            else "the same command, with any number of processes",
        )
    except TrainingInterrupted as stopped:
        return 130, str(stopped)
    text = ""
    if result.was_finished:
        more = _longer(recipe, result.step, args.overrides)
        longer = shlex.join([args.recipe, "-o", str(out), *more])
        text = (
            f"the run in {out} was already finished, so nothing was trained; to train more:\n"
            f"  {begin} {longer}\n"
        )
    began = "it is at" if result.was_finished else "trained to"
    return 0, f"{text}{began} step {result.step} {_summary(result)}"


def _summary(result: TrainResult) -> str:
    losses = ", ".join(
        f"{name.replace('_loss', '')} {value:.4f}"
        for name, value in result.metrics.items()
        if "_loss" in name
    )
    parts = "".join(
        f"\n  {name:<20} {result.metrics.get(f'train/part/{name}/loss', float('nan')):8.4f}   "
        f"{int(count):>9,} documents"
        for key, count in result.metrics.items()
        if key.endswith("/documents") and (name := key.split("/")[2])
    )
    return (
        f"({result.tokens:,} tokens, {result.elapsed_s / 60:.1f} min)"
        f"\nnats a token: {losses or 'not logged'}{parts}\npeak memory "
        f"{result.peak_memory_bytes / 2**30:.2f} GiB\n{result.checkpoint}"
    )


def _longer(recipe: Recipe, step: int, overrides: Sequence[str]) -> list[str]:
    """The overrides with twice the run's length."""
    section = recipe.train
    lengths = ("train.steps=", "train.minutes=")
    kept = [one for one in overrides if not one.startswith(lengths) or one.endswith("=null")]
    if section.steps is not None:
        return [*kept, f"train.steps={2 * max(section.steps, step)}"]
    assert section.minutes is not None
    return [*kept, f"train.minutes={2 * section.minutes:g}"]
