"""`cm3 tune`: train a model on, whole or in part, on what a recipe says."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli.train import add_run_arguments, train_and_report
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
        recipe = tuning_recipe(
            args.model,
            args.recipe,
            args.overrides,
            registry,
            trust_endpoints=args.trust_endpoints,
        )
        if not args.quiet and (note := lost_retrieval(args.model, recipe, registry)) is not None:
            print(f"note: {note}", file=sys.stderr)
        return recipe

    return train_and_report(args, recipe_of, ["tune", shlex.quote(args.model)])


def lost_retrieval(model: str, recipe: Recipe, registry: Registry) -> str | None:
    """What a user should know of a model that retrieves, and does not once it is tuned; None: nothing is lost."""
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.recipe.layers import STORED, parse, read
    from cm3run.checkpoint import find_checkpoint, find_model

    if recipe.retriever is not None:
        return None  # what the recipe says, "none" too, is meant
    path = find_checkpoint(find_model(model, registry)) / STORED
    section = parse(read(path), str(path)).get("retriever")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or name not in registry.names("retriever"):
        return None
    config = registry.config_class("retriever", name)
    if not (issubclass(config, RetrieverConfig) and config.retrieves):
        return None
    return (
        f"{model} retrieves (retriever {name}), and the tuned model will not: the recipe has no retriever. To train and "
        f"draw with documents of what it is tuned on in front, add retriever={name}; to retrieve from a memory bank "
        "only when it draws, give the bank then (cm3 memory build, --bank)"
    )


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
    from cm3apps.cli._tuned_recipe import compose_on_model
    from cm3core.recipe.layers import COMMAND_LINE
    from cm3run.checkpoint import find_checkpoint, find_model

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
