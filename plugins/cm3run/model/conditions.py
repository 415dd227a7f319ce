"""Conditions of `Model.generate`: drawing after a structure, expressed as a task's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cm3core.arguments import Called, check_value
from cm3core.config.overrides import with_options
from cm3core.config.schema import all_parts
from cm3core.errors import CM3Error, GenerationError
from cm3core.interfaces.condition import Condition, ConditionConfig
from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.interfaces.task import fields_of_type
from cm3core.plugins.registry import built
from cm3run.model.loaded import pixels_of, seen
from cm3run.nearness import nearness

if TYPE_CHECKING:
    from cm3core.document import Codes, PixelArray
    from cm3core.interfaces.task import Record, Task
    from cm3run.model.loaded import Loaded

#: (name, input), or with settings as a third item: ("canny", "photo.png", {"low": 50}).
_CALLED = Called(
    "a name and an input",
    'give ("canny", "photo.png"), or ("canny", "photo.png", {"low": 50})',
)
GivenCondition: TypeAlias = Annotated[Sequence[Any], _CALLED]
_FORM = Annotated[tuple[str, Any], _CALLED]
_FORM_WITH_KEYS = Annotated[tuple[str, Any, Mapping[str, Any] | None], _CALLED]


def condition_config(
    loaded: Loaded, name: str, settings: Mapping[str, Any] | None = None
) -> ConditionConfig:
    """The config of a condition: as in training if the model was trained with it, otherwise the default. A condition
    that doesn't name its structure, such as `as_is`, uses the name used in training.

    Args:
        loaded: the model.
        name: of the condition.
        settings: keys to change.

    Raises:
        PluginError: no plugin provides it.
        GenerationError, RecipeError: a key is unknown, a value is invalid, or training used several structures
            and it is unclear which one is meant.
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
    """The names of structures in the model's training documents, if its data set states them."""
    data = loaded.recipe.dataset
    return data.structures() if isinstance(data, DocumentSourceConfig) else []


def _trained_words(loaded: Loaded, name: str) -> dict[str, str]:
    """The training words for a condition without its own, such as a picture used as it is."""
    words = trained_structures(loaded)
    if len(words) > 1:
        raise GenerationError(
            f"condition {name!r}",
            "may be any structure, but the model was tuned on several: " + ", ".join(words),
            f"choose one: --set condition.feature={words[0]!r} "
            f'(in Python a third value, {{"feature": {words[0]!r}}})',
        )
    return {"feature": words[0]} if words else {}


def _default(config_class: type[Any], name: str) -> Any:
    assert is_dataclass(config_class)
    try:
        return config_class()
    except TypeError as error:  # a plugin's config with keys that have no default
        keys = ", ".join(item.name for item in fields(config_class))
        raise GenerationError(
            f"condition {name!r}",
            f"has keys without a default ({error})",
            f"use a model that was trained with it; its keys are {keys}",
        ) from error


def open_condition(
    loaded: Loaded, name: str, settings: Mapping[str, Any] | None = None
) -> tuple[Condition, str]:
    """Build a condition; see `condition_config`. Returns it and the name of the structure in documents."""
    config = condition_config(loaded, name, settings)
    return built(config.build(), config, loaded.components.registry), config.feature


#: A structure's nearness (`cm3run.nearness`) to its reconstruction from the codes, below which it is refused. With the
#: icon tokenizer, `edges` of icons, stamps and photographs have 0.36 to 0.69; `canny` of the same pictures has 0 to 0.44,
#: 0.24 in the mean, and its reconstructions are smears (docs/tuning.md).
LEAST_STRUCTURE = 0.35


def _kept(loaded: Loaded, pixels: PixelArray, codes: Codes) -> float:
    """The nearness of a structure's picture, at the model's size, to what its codes show, 0..1."""
    return nearness(pixels, loaded.decode([codes])[0])


def _what_works(loaded: Loaded, name: str, source: Any) -> str:
    """The next step for a structure that the codes don't keep: other conditions whose structures of the same input they
    do, those that the model was tuned on, if its data set states them."""
    words, found = trained_structures(loaded), []
    for other in loaded.components.registry.names("condition"):
        try:
            condition, feature = open_condition(loaded, other)
            if other == name or condition.draws_from == "text" or (words and feature not in words):
                continue
            pixels = seen(loaded, condition.draw(pixels_of(source)))
            kept = _kept(loaded, pixels, loaded.encode([pixels])[0])
        except CM3Error:  # a package or a file is missing, or it has no defaults
            continue
        if kept >= LEAST_STRUCTURE and not (pixels == pixels[0, 0]).all():
            found.append((kept, other))
    works = " or ".join(f"{other} ({100 * kept:.0f}%)" for kept, other in sorted(found)[::-1])
    use = f"use the condition {works}" if works else "use a picture with fewer and broader lines"
    return f"{use}, or a model with finer codes; force=True (--force) draws anyway"


def with_condition(
    loaded: Loaded, task: Task, given: GivenCondition, *, force: bool = False
) -> Record:
    """The fields of a task that describe the structure: its name and its picture.

    Args:
        loaded: the model.
        task: has two given texts, the structure's name and the prompt, and a given picture.
        given: the condition.
        force: allow a structure that the model was not tuned on, or that its codes don't keep.

    Raises:
        GenerationError: `given` has another form, the model was tuned on other structures, or its image codes don't
            keep the structure.
        DataError: the input can't be read, or contains nothing to draw.
    """
    form = _FORM if len(given) == 2 else _FORM_WITH_KEYS
    check_value("condition", given, form, GenerationError)
    name, source = given[0], given[1]
    condition, feature = open_condition(loaded, name, given[2] if len(given) == 3 else None)
    if (words := trained_structures(loaded)) and feature not in words:
        if not force:
            raise GenerationError(
                f"condition {name!r}",
                f"the model was tuned to draw after {', '.join(map(repr, words))}, not after {feature!r}",
                "use one of these, or give force=True (--force) to draw anyway; the result seldom follows the structure",
            )
        loaded.told(
            f"the model was tuned to draw after {', '.join(map(repr, words))}, not after {feature!r}"
        )
    drawn = condition.draw(source if condition.draws_from == "text" else pixels_of(source))
    pixels = seen(loaded, drawn)
    picture = loaded.encode([pixels])[0]
    if (pixels == pixels[0, 0]).all():
        loaded.told(f"{name!r} finds no structure in its input, so the result may be blank too")
    elif condition.draws_from != "text" and (  # what is drawn from a text is always as in training
        (kept := _kept(loaded, pixels, picture)) < LEAST_STRUCTURE
    ):
        cause = (
            f"the model's image codes keep little of this structure ({100 * kept:.0f}% of its lines stay where they are), so "
            "no result could follow it"
        )
        if not force:
            raise GenerationError(f"condition {name!r}", cause, _what_works(loaded, name, source))
        loaded.told(f"condition {name!r}: {cause}")
    return {
        fields_of_type(task, task.given, "text")[0]: feature,
        fields_of_type(task, task.given, "image")[0]: picture,
    }
