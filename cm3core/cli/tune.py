"""`cm3 tune`: train a model on, whole or in part, on what a recipe says."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.cli.train import add_run_arguments, train_and_report
from cm3core.errors import RecipeError

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

HELP = "tune a model on pairs of your own: whole, in part, or by adapters"
EXAMPLE = """  cm3 tune runs/base pairs.yaml -o runs/pairs
  cm3 tune runs/base pairs.yaml -o runs/pairs-lora tune.method=lora tune.rank=8
  cm3 tune bundled:emoji64 pairs.yaml -o runs/pairs-head tune.method=head train.learning_rate=1e-3
The recipe says what to train on and how (dataset, task, train, tune); what it leaves out of the rest
is the model's. The same command again resumes."""


def configure(parser: ArgumentParser) -> None:
    """Model, recipe, folder, overrides."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, an exported model, or PLUGIN:NAME",
    )
    add_run_arguments(parser)


def run(args: Namespace) -> int:
    """Train and print the checkpoint's path."""

    def recipe_of(registry: Registry) -> Recipe:
        return tuning_recipe(
            args.model,
            args.recipe,
            args.overrides,
            registry,
            trust_endpoints=args.trust_endpoints,
        )

    return train_and_report(args, recipe_of, ["tune", shlex.quote(args.model)])


def _refuse_unread(overrides: list[str], method: str) -> None:
    """Refuse keys of adapters on the command line of a run without: all weights would be trained, in silence."""
    from cm3core.recipe.layers import COMMAND_LINE
    from cm3core.recipe.sections import ADAPTERS

    for one in overrides:
        key = one.partition("=")[0]
        if key in ("tune.rank", "tune.alpha", "tune.dropout", "tune.rank_stabilised"):
            raise RecipeError(
                f"{COMMAND_LINE}: {key}",
                f"is given, and the method {method!r} doesn't read it",
                f"add tune.method={' or '.join(ADAPTERS)}, or leave it out",
            )


def tuning_recipe(
    model: str,
    name: str,
    overrides: list[str],
    registry: Registry,
    *,
    trust_endpoints: Sequence[str] = (),
) -> Recipe:
    """The recipe of a run that tunes a model: the model's own, but for what the recipe says.

    Raises:
        CheckpointError: there is no such model.
        TrustError: what is the model's own names what is outside of it and may not be used.
        RecipeError: the overrides start from another model, or what `compose` raises.
    """
    from cm3core.checkpoint import find_checkpoint, find_model
    from cm3core.recipe.layers import COMMAND_LINE
    from cm3core.recipe.tuning import compose_on_model

    if any(one.startswith("train.start_from=") for one in overrides):
        raise RecipeError(
            f"{COMMAND_LINE}: train.start_from",
            f"is given, and so is the model {model!r}",
            "leave train.start_from out: the model takes its place",
        )
    folder = find_checkpoint(find_model(model, registry))
    recipe = compose_on_model(folder, name, overrides, registry, trust_endpoints=trust_endpoints)
    if not recipe.tune.adapts:
        _refuse_unread(overrides, recipe.tune.method)
    # absolute, so that the run finds its base from wherever it is used
    start_from = model if model in registry.models() else str(Path(model).absolute())
    return replace(recipe, train=replace(recipe.train, start_from=start_from))
