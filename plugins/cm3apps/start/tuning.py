"""A recipe for tuning a trained model on a folder of pictures: `cm3 start FOLDER --tune MODEL`.

The model brings its own tokenizers, decoder and retriever, so the recipe has the pictures and the training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli.tune import tuning_recipe
from cm3apps.start.choices import (
    TEMPERATURE,
    WHY_TEMPERATURE,
    recipe_lines,
    vars_of,
)
from cm3core.errors import RecipeError
from cm3core.recipe.layers import STORED, parse, read
from cm3run.checkpoint import find_checkpoint, find_model

if TYPE_CHECKING:
    from cm3apps.start.survey import Survey
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: A sixth of the rate at which a model of this size is trained from nothing.
LEARNING_RATE = 5.0e-4


def tuning_text(survey: Survey, model: str, name: str, minutes: float, registry: Registry) -> str:
    """The recipe, with a reason behind each choice."""
    stored = find_checkpoint(find_model(model, registry)) / STORED
    sampler = parse(read(stored), str(stored)).get("sampler", {}).get("name")
    across, held = survey.num_across
    lines = [
        f"# {name}: written by 'cm3 start' to tune {model} on {len(survey):,} pictures; change what you like",
        "dataset:",
        *recipe_lines({"name": survey.reader.name, **vars_of(survey), "split": "train"}),
        *recipe_lines({"split_by": "look"}, f"by file name, {across:,} of {held:,} held-out pictures look like one in train"),
        *recipe_lines({"valid": survey.valid}, f"{survey.num_valid:,} pictures are held out"),
        "",
        "sampler:",
        *recipe_lines({"name": sampler}, "the model's"),
        *recipe_lines({"temperature": TEMPERATURE}, WHY_TEMPERATURE),
        "",
        "tune:",
        *recipe_lines({"method": "full"}, "lora saves memory with models of a billion parameters"),
        "",
        "train:",
        *recipe_lines({"minutes": minutes}, "ends earlier if the held-out loss no longer falls"),
        *recipe_lines({"batch_rows": 4, "learning_rate": LEARNING_RATE, "warmup_steps": 10}),
        *recipe_lines({"validation_splits": ["valid"]}),
    ]  # fmt: skip  # one key of the recipe a line, as in what is written
    return "\n".join(lines) + "\n"


def composed(model: str, out: Path, registry: Registry, trust_endpoints: Sequence[str]) -> Recipe:
    """The model's recipe, changed by the written one.

    Raises:
        RecipeError: the model has no image codes.
    """
    recipe = tuning_recipe(model, str(out), [], registry, trust_endpoints=trust_endpoints)
    if recipe.image_tokenizer is None:
        raise RecipeError(model, "has no image tokenizer", "name a model that draws")
    return recipe
