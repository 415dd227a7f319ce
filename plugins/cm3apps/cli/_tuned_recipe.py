"""The recipe of a tuning run: the user's recipe on top of the model's stored one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import RecipeError
from cm3core.interfaces.retriever import RetrieverConfig
from cm3core.interfaces.task import TaskConfig
from cm3core.plugins.registry import Registry, read_writer
from cm3core.recipe.layers import STORED, Layer, parse, read
from cm3core.recipe.merge import compose
from cm3core.recipe.recipe import MissingComponent, Recipe
from cm3run.trust import check_links, guard_layer, trust_of

#: Sections that are not taken from the model: its data, its training, and its retriever, unless `_carried`.
OWN = ("name", "dataset", "task", "train", "tune", "retriever")


def compose_on_model(
    folder: Path,
    name_or_path: str,
    overrides: Sequence[str],
    registry: Registry,
    *,
    trust_endpoints: Sequence[str] = (),
) -> Recipe:
    """Compose a recipe on top of a model's recipe, which provides the model's components (tokenizers, vocabulary,
    decoder, attention, objective) and its use (sampler, data, generate) unless the recipe has these sections.

    Args:
        folder: the model's, with its `recipe.yaml`.
        name_or_path, overrides, registry: see `compose`.
        trust_endpoints: outside targets that the model may use if this user's commands did not make
            it.

    Raises:
        RecipeError: as in `compose`, or the model's recipe can't be read.
        TrustError: a section taken from the model names an outside target that is not trusted.
    """
    path = folder / STORED
    trust = trust_of(folder, registry.models().values(), trust_endpoints)
    check_links(folder, trust)
    stored = parse(read(path), str(path))
    values = {key: value for key, value in stored.items() if key not in OWN}
    if isinstance(data := values.get("data"), dict):
        values["data"] = {**data, "num_streams": None}  # belongs to the processes, not to the model
    writer = read_writer(
        folder,
        lambda file, cause: RecipeError(
            str(file), cause, "copy the model again from where it came"
        ),
    )
    label = str(path)
    recipe = compose(
        name_or_path,
        overrides,
        registry=registry,
        beneath=Layer(label, values, writer),
        trust_endpoints=trust_endpoints,
    )
    if (retriever := _carried(stored.get("retriever"), recipe, registry)) is not None:
        values = {**values, "retriever": retriever}
        recipe = compose(
            name_or_path,
            overrides,
            registry=registry,
            beneath=Layer(label, values, writer),
            trust_endpoints=trust_endpoints,
        )
    # tokenizers are read from the model's folder: what their keys name is refused only if it is used
    guard_layer(recipe, trust, label)
    return recipe


def retriever_of(section: object, registry: Registry) -> str | None:
    """The name of a stored section's retriever, if it retrieves anything."""
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or name not in registry.names("retriever"):
        return None
    config = registry.config_class("retriever", name)
    return name if issubclass(config, RetrieverConfig) and config.retrieves else None


def _carried(section: Any, recipe: Recipe, registry: Registry) -> dict[str, Any] | None:
    """The model's retriever for a recipe that names none and tunes on captioned pictures: without the model's bank, so
    that the documents come from the tuning data. None: the recipe has its own, or the model's can't be used.

    Records of other tasks are trained and used without documents; a memory of its own is not in the tuning data.
    """
    if recipe.retriever is not None or "retriever" in recipe.origins:
        return None
    if (name := retriever_of(section, registry)) is None or not draws(recipe):
        return None
    config = registry.config_class("retriever", name)
    if not issubclass(config, RetrieverConfig) or config.own_memory:
        return None
    return {key: value for key, value in section.items() if key != "bank"}


def draws(recipe: Recipe) -> bool:
    """Whether all that is tuned on are texts followed by a picture."""
    if isinstance(recipe.dataset, MissingComponent) or recipe.dataset is None:
        return False
    own = recipe.dataset.retrieving_tasks()
    tasks = [recipe.task if one is None else one for one in own]
    return bool(tasks) and all(one is None or _is_drawing(one) for one in tasks)


def _is_drawing(config: TaskConfig | MissingComponent) -> bool:
    if isinstance(config, MissingComponent):
        return False
    task = config.build()
    of = task.fields
    return all(of[name] == "text" for name in task.given) and all(
        of[name] == "image" for name in task.responses
    )
