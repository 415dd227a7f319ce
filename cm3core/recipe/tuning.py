"""The recipe of a run that tunes a model: the model's stored one underneath, then the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cm3core.errors import RecipeError
from cm3core.plugins.providers import read_writer
from cm3core.plugins.registry import Registry
from cm3core.recipe.layers import STORED, Layer, parse, read
from cm3core.recipe.merge import compose
from cm3core.recipe.recipe import Recipe

#: Sections that are not taken from the model: what it was trained on and how, and what was retrieved
#: for it (tasks are asked without).
OWN = ("name", "dataset", "task", "train", "tune", "retriever")


def compose_on_model(
    folder: Path, name_or_path: str, overrides: Sequence[str], registry: Registry
) -> Recipe:
    """Compose a recipe over that of a model, which gives all that makes it (tokenizers, vocabulary,
    decoder, attention, objective) and how it is used (sampler, data, generate), unless the recipe does.

    Args:
        folder: the model's, with its `recipe.yaml`.
        name_or_path, overrides, registry: see `compose`.

    Raises:
        RecipeError: what `compose` raises, or the model's recipe can't be read.
    """
    path = folder / STORED
    values = {key: value for key, value in parse(read(path), str(path)).items() if key not in OWN}
    writer = read_writer(
        folder,
        lambda file, cause: RecipeError(
            str(file), cause, "copy the model again from where it came"
        ),
    )
    return compose(
        name_or_path, overrides, registry=registry, beneath=Layer(str(path), values, writer)
    )
