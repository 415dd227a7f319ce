"""Drawing after a structure: the condition of `Model.generate`, as a task's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cm3core.arguments import Called, check_value
from cm3core.config.overrides import with_options
from cm3core.config.schema import all_parts
from cm3core.errors import GenerationError
from cm3core.interfaces.condition import Condition, ConditionConfig
from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.interfaces.task import fields_of_type
from cm3core.plugins.registry import built
from cm3run.model.loaded import pixels_of, seen

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record, Task
    from cm3run.model.loaded import Loaded

#: (name, what it is drawn from), or with keys to change as a third: ("canny", "photo.png", {"low": 50}).
_CALLED = Called(
    "a name and what it is drawn from",
    'give ("canny", "photo.png"), or ("canny", "photo.png", {"low": 50})',
)
GivenCondition: TypeAlias = Annotated[Sequence[Any], _CALLED]
_FORM = Annotated[tuple[str, Any], _CALLED]
_FORM_WITH_KEYS = Annotated[tuple[str, Any, Mapping[str, Any] | None], _CALLED]


def condition_config(
    loaded: Loaded, name: str, settings: Mapping[str, Any] | None = None
) -> ConditionConfig:
    """The config of a condition: the one that the model was trained with, else the default one. One that
    doesn't say what the structure is called, such as `as_is`, calls it as training did.

    Args:
        loaded: the model.
        name: of the condition.
        settings: keys to change.

    Raises:
        PluginError: no plugin provides it.
        GenerationError, RecipeError: it has no such key, a value can't be used, or training had several
            structures, and nothing says which this is.
    """
    config_class = loaded.components.registry.config_class(
        "condition", name, place=f"condition {name!r}"
    )
    trained = [
        part
        for section in (loaded.recipe.dataset, loaded.recipe.condition)
        if section is not None
        for _, part in [("", section), *all_parts(section)]
        if type(part) is config_class
    ]
    config = trained[0] if trained else _default(config_class, name)
    assert isinstance(config, ConditionConfig)
    given = dict(settings or {})
    if config.feature == ConditionConfig.feature and "feature" not in given:
        given |= _trained_words(loaded, name)
    return with_options(config, given)


def trained_structures(loaded: Loaded) -> list[str]:
    """What the documents of the model's training called structures, as far as its data set says it."""
    data = loaded.recipe.dataset
    return data.structures() if isinstance(data, DocumentSourceConfig) else []


def _trained_words(loaded: Loaded, name: str) -> dict[str, str]:
    """The words of training for a condition that has none of its own, such as a picture as it is."""
    words = trained_structures(loaded)
    if len(words) > 1:
        raise GenerationError(
            f"condition {name!r}",
            "may be any structure, and the model was tuned to draw after several: "
            + ", ".join(words),
            f"say which it is: --set condition.feature={words[0]!r} "
            f'(from Python a third value, {{"feature": {words[0]!r}}})',
        )
    return {"feature": words[0]} if words else {}


def _default(config_class: type[Any], name: str) -> Any:
    assert is_dataclass(config_class)
    try:
        return config_class()
    except TypeError as error:  # a plugin's, with keys that have no default
        keys = ", ".join(item.name for item in fields(config_class))
        raise GenerationError(
            f"condition {name!r}",
            f"has keys without a default ({error})",
            f"use a model that was trained with it; its keys are {keys}",
        ) from error


def open_condition(
    loaded: Loaded, name: str, settings: Mapping[str, Any] | None = None
) -> tuple[Condition, str]:
    """Build a condition; see `condition_config`. Returns it, and what a document calls the structure."""
    config = condition_config(loaded, name, settings)
    return built(config.build(), config, loaded.components.registry), config.feature


def with_condition(
    loaded: Loaded, task: Task, given: GivenCondition, *, force: bool = False
) -> Record:
    """The fields of a task that say the structure: its name and its picture.

    Args:
        loaded: the model.
        task: two texts are given, what the structure is and the prompt, and a picture.
        given: the condition.
        force: draw after a structure that the model was not tuned on.

    Raises:
        GenerationError: `given` is of another form, or the model was tuned on other structures.
        DataError: its picture can't be read, or nothing can be drawn from it.
    """
    form = _FORM if len(given) == 2 else _FORM_WITH_KEYS
    check_value("condition", given, form, GenerationError)
    name, source = given[0], given[1]
    condition, feature = open_condition(loaded, name, given[2] if len(given) == 3 else None)
    if (words := trained_structures(loaded)) and feature not in words:
        if not force:
            raise GenerationError(
                f"condition {name!r}",
                f"the model was tuned to draw after {', '.join(map(repr, words))}, and not after {feature!r}",
                "use one of these, or give force=True (--force), which draws all the same: what comes of it is "
                "seldom what the structure shows",
            )
        loaded.told(
            f"the model was tuned to draw after {', '.join(map(repr, words))}, and not after {feature!r}"
        )
    drawn = condition.draw(source if condition.draws_from == "text" else pixels_of(source))
    pixels = seen(loaded, drawn)
    if (pixels == pixels[0, 0]).all():
        loaded.told(
            f"the structure that {name!r} draws of what is given is blank, and so may be what is drawn after it"
        )
    picture = loaded.encode([pixels])[0]
    return {
        fields_of_type(task, task.given, "text")[0]: feature,
        fields_of_type(task, task.given, "image")[0]: picture,
    }
