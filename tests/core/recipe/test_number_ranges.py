"""Every recipe key that is a number has a range, checked with the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, get_args, get_origin

import pytest

from cm3core.config.overrides import with_options
from cm3core.config.schema import default, hints, init_fields, nested_dataclass
from cm3core.errors import RecipeError
from cm3core.interfaces import ComponentConfig, ConditionConfig, DocumentSourceConfig
from cm3core.plugins import KINDS, load_registry
from cm3core.recipe.sections import FIXED_SECTIONS, TRAIN_RANGES, TrainSection
from cm3run.generation.prepare import MAX_THREADS

REGISTRY = load_registry()
SECTIONS = [
    *((kind, REGISTRY.config_class(kind, name)) for kind in KINDS for name in REGISTRY.names(kind)),
    *FIXED_SECTIONS.items(),
]
#: Never due, never clipped.
MAY_BE_INFINITE = ("checkpoint_every_minutes", "clip_norm")
#: What a required key is filled with.
FILL: dict[object, object] = {
    int: 4,
    float: 0.5,
    str: "x",
    bool: False,
    DocumentSourceConfig: REGISTRY.config_class("dataset", "emoji")(),
    ConditionConfig: REGISTRY.config_class("condition", "canny")(),
}


def filler(annotation: object) -> object:
    """A value for a key that must be given."""
    return {} if get_origin(annotation) is dict else FILL[annotation]


def numeric(annotation: Any) -> bool:
    """Whether a value of this type is a number, or has numbers in it."""
    if annotation in (int, float):
        return True
    return get_origin(annotation) is not None and any(map(numeric, get_args(annotation)))


def filled(annotation: Any, number: float) -> Any:
    """A value of this type with this number at each place of one."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list:
        return [filled(arguments[0], number)]
    if origin is tuple:
        inner = arguments[:1] if arguments[1:] == (Ellipsis,) else arguments
        return tuple(filled(one, number) for one in inner)
    if origin is dict:
        return {"a": filled(arguments[1], number)}
    if origin is not None:
        return next(filled(one, number) for one in arguments if numeric(one))
    return annotation(number)


def made(config_class: Any) -> Any:
    required = {
        item.name: filler(hints(config_class)[item.name])
        for item in init_fields(config_class)
        if default(item) is MISSING
    }
    if config_class is TrainSection:
        required["steps"] = 1
    return config_class(**required)


def keys(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, annotation) of each numeric key, also of nested dataclasses."""
    annotations = hints(type(config))
    for item in fields(config):
        annotation = annotations.get(item.name)
        if nested_dataclass(annotation) is not None and is_dataclass(getattr(config, item.name)):
            yield from keys(getattr(config, item.name), (*path, item.name))
        elif numeric(annotation):
            yield (*path, item.name), annotation


def changed(config: Any, path: tuple[str, ...], value: object) -> Any:
    name, *rest = path
    if path == ("minutes",):
        config = replace(config, steps=None)
    inner = value if not rest else changed(getattr(config, name), tuple(rest), value)
    return replace(config, **{name: inner})


NUMBERS = [
    pytest.param(config_class, path, annotation, id=f"{section}-{config_class.__name__}-{path[-1]}")
    for section, config_class in SECTIONS
    for path, annotation in keys(made(config_class))
]


@pytest.mark.parametrize(("config_class", "path", "annotation"), NUMBERS)
def test_every_number_has_a_range(
    config_class: type[Any], path: tuple[str, ...], annotation: Any
) -> None:
    wrong: list[float] = [-(10**30), 10**30]
    if "float" in str(annotation):
        wrong = [-1e31, -math.inf, math.nan]
        wrong += [] if path[-1] in MAY_BE_INFINITE else [1e31, math.inf]
    for number in wrong:
        config = changed(made(config_class), path, filled(annotation, number))
        with pytest.raises(RecipeError) as caught:
            config.check()
        assert path[-1] in str(caught.value)


@pytest.mark.parametrize(("config_class", "path", "annotation"), NUMBERS)
def test_a_number_of_threads_can_be_started(
    config_class: type[Any], path: tuple[str, ...], annotation: Any
) -> None:
    if path[-1] == "num_threads":
        config = changed(made(config_class), path, MAX_THREADS + 1)
        with pytest.raises(RecipeError, match="num_threads"):
            config.check()
    elif path[-1] == "seed":
        with pytest.raises(RecipeError, match="seed"):
            changed(made(config_class), path, -1).check()


def test_defaults_are_in_range() -> None:
    for section, config_class in SECTIONS:
        if section != "train":  # has no length of its own
            made(config_class)
            if all(default(item) is not MISSING for item in init_fields(config_class)):
                config_class().check()
    TrainSection(steps=1).check()
    assert TRAIN_RANGES["num_threads"] == (1, MAX_THREADS)


def test_a_whole_number_where_any_number_is_allowed() -> None:
    TrainSection(steps=1, clip_norm=0).check()
    TrainSection(steps=1, clip_norm=10**30).check()
    for value, said in ((-1, "is -1, must be at least 0"), (10**400, "must be at most 1.79")):
        with pytest.raises(RecipeError) as caught:
            TrainSection(steps=1, clip_norm=value).check()
        assert said in str(caught.value)


def test_a_plugin_that_states_no_range_and_calls_no_base_still_has_the_usual_one() -> None:
    @dataclass(kw_only=True)
    class Careless(ComponentConfig):
        kind: ClassVar[str] = "sampler"
        number: int = 1
        share: float = 0.5

        def check(self) -> None:
            return

    with pytest.raises(RecipeError, match=r"sampler\.number: is 10{30}, must be at most"):
        with_options(Careless(), {"number": 10**30})
    with pytest.raises(RecipeError, match=r"sampler\.share: is nan"):
        with_options(Careless(), {"share": math.nan})
    assert with_options(Careless(), {"number": -5}).number == -5
