"""`cm3 tune`: fine-tune a model, in full or in part, with a recipe."""

from __future__ import annotations

import math
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cm3apps.cli.train import add_run_arguments, train_and_report
from cm3core.errors import RecipeError

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

HELP = "fine-tune a model on your own data: in full, in part, or with adapters"
EXAMPLE = """  cm3 tune runs/base pairs.yaml -o runs/pairs --minutes 20
  cm3 tune runs/base pairs.yaml -o runs/pairs-lora tune.method=lora tune.rank=8
  cm3 tune bundled:emoji64 pairs.yaml -o runs/pairs-head tune.method=head train.learning_rate=1e-3
The recipe sets the data and the training (dataset, task, train, tune); other sections that it lacks
come from the model. Every few minutes the held-out loss is measured and sample pictures go to OUT/samples;
training stops if the loss no longer falls (train.patience=0 turns this off). The same command resumes."""


def configure(parser: ArgumentParser) -> None:
    """Model, recipe, folder, overrides."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, an exported model, PLUGIN:NAME, or hf://USER/NAME",
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
        recipe = watched(recipe)
        if not args.quiet and (note := note_on_retrieval(args.model, recipe, registry)) is not None:
            print(f"note: {note}", file=sys.stderr)
        return recipe

    return train_and_report(args, recipe_of, ["tune", shlex.quote(args.model)])


#: What the command sets in the section `train` where neither recipe nor command line does.
WATCHING: Mapping[str, float | int] = {
    "validate_every_minutes": 2.0,
    "sample_every_minutes": 4.0,
    "patience": 5,
}


def watched(recipe: Recipe) -> Recipe:
    """The recipe with `WATCHING`: the user sees the model learn, and a run that no longer does stops. Without held-out
    data nothing is validated; tasks that draw nothing have no sample pictures."""
    from cm3apps.cli._tuned_recipe import draws

    able = {"sample_every_minutes": draws(recipe)}
    length = recipe.train.minutes or math.inf  # a short run is looked at several times, too
    keys: dict[str, Any] = {
        key: min(value, length * value / 16) if isinstance(value, float) else value
        for key, value in WATCHING.items()
        if recipe.origins.get(f"train.{key}", "default") == "default"
        and able.get(key, bool(recipe.validation_splits))
    }
    return replace(recipe, train=replace(recipe.train, **keys))


def note_on_retrieval(model: str, recipe: Recipe, registry: Registry) -> str | None:
    """What becomes of the retrieval of a model that retrieves; None: nothing to say, because the model doesn't, or the
    recipe has its own retriever."""
    from cm3apps.cli._tuned_recipe import retriever_of
    from cm3core.recipe.layers import STORED, parse, read
    from cm3run.checkpoint import find_checkpoint, find_model

    path = find_checkpoint(find_model(model, registry)) / STORED
    name = retriever_of(parse(read(path), str(path)).get("retriever"), registry)
    if name is None:
        return None
    if recipe.retriever is None:
        return (
            f"{model} retrieves (retriever {name}), but the tuned model will not: the recipe has no retriever. To train and "
            f"draw with documents from the tuning data prepended, add retriever={name}; to retrieve from a memory bank "
            "only when it draws, give the bank then (cm3 memory build, --bank)"
        )
    if recipe.origins.get("retriever.name") != str(path):
        return None  # the recipe's own choice is intended, even "none"
    return (
        f"like {model}, the tuned model retrieves (retriever {name}): its memory is the tuning data. retriever=none turns "
        "this off"
    )


def _refuse_unread(overrides: list[str], method: str) -> None:
    """Refuse adapter keys for a run without adapters, which would silently train all weights."""
    from cm3core.recipe.layers import COMMAND_LINE
    from cm3core.recipe.sections import ADAPTERS

    for one in overrides:
        key = one.partition("=")[0]
        if key in ("tune.rank", "tune.alpha", "tune.dropout", "tune.rank_stabilised"):
            raise RecipeError(
                f"{COMMAND_LINE}: {key}",
                f"is given, but the method {method!r} ignores it",
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
    """The recipe of a tuning run: the model's own, changed by the given recipe.

    Raises:
        CheckpointError: there is no such model.
        TrustError: a section of the model names an outside target that is not trusted.
        RecipeError: the overrides start from another model, or as in `compose`.
    """
    from cm3apps.cli._tuned_recipe import compose_on_model
    from cm3core.recipe.layers import COMMAND_LINE
    from cm3run.checkpoint import find_checkpoint, find_model, lasting_name

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
    # so that the run finds its base from any folder
    start_from = lasting_name(model, registry)
    return replace(recipe, train=replace(recipe.train, start_from=start_from))
