"""Configs that refuse to build with resources that the user did not allow, and all external resources in a recipe,
including sections without components.

A config from a stored recipe whose values name external resources gets a subclass of its own class, whose `build`
checks them first. The guard follows the config everywhere: `dataclasses.replace` and copies keep the class. In all
other respects it behaves as before: it is shown, compared, hashed and changed in the same way. A value that the user
replaces is the user's own, and is allowed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cm3core.config.schema import all_parts, default, hints, init_fields
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name
from cm3core.interfaces.reach import CONNECTS, READS, WRITES, Reach
from cm3core.recipe.recipe import MissingComponent, Recipe
from cm3run.trust.reach import Trust, address_of, reaches_of, refusal, target_of

C = TypeVar("C", bound=ComponentConfig)
#: Methods of configs that use their values.
_MAKERS = ("build", "build_for", "open_memory")
#: Attribute of the subclasses.
_GUARD = "_cm3_guard"


@dataclass(frozen=True)
class Guard:
    """The resources that a guarded config refuses.

    Args:
        trust: what is allowed.
        place: the file that the values are from.
        section: the recipe's, with the path to a component in it.
        stored: (key, value) of each refused value: any other value is the user's.
        hint: an alternative, see `refusal`.
    """

    trust: Trust
    place: str
    section: str
    stored: frozenset[tuple[str, str]]
    hint: str = ""

    def refused(self, config: ComponentConfig) -> list[Reach]:
        """The resources of a config that are not allowed."""
        now = self.trust.refused(reaches_of(config))
        return [one for one in now if (one.key, one.value) in self.stored]

    def check(self, config: ComponentConfig) -> None:
        """Raise `TrustError` if any resource is not allowed."""
        if refused := self.refused(config):
            raise refusal(self.place, self.section, refused, self.hint)


def guard(
    config: ComponentConfig,
    trust: Trust,
    place: str,
    *,
    only: Callable[[Reach], bool] = lambda _: True,
    hint: str = "",
) -> None:
    """Make a config, and the components in it, refuse to build with resources that are not allowed; in place.

    Args:
        config: of a stored recipe.
        trust: what is allowed.
        place: the file that the values are from.
        only: selects the resources that come from that file; by default all.
        hint: an alternative, worded as the end of a sentence.
    """
    for path, part in [("", config), *all_parts(config)]:
        prefix = f"{path}." if path else ""
        refused = [
            one
            for one in trust.refused(reaches_of(part))
            if only(replace(one, key=f"{prefix}{one.key}"))
        ]
        if refused:
            section = f"{config.kind}.{path}" if path else config.kind
            stored = frozenset((one.key, one.value) for one in refused)
            _put(part, Guard(trust, place, section, stored, hint))


def guard_layer(recipe: Recipe, trust: Trust, label: str) -> None:
    """Make the components of a recipe refuse the resources named by one of its layers, the file with this label; in
    place. Values that other layers set are theirs.

    Raises:
        TrustError: a key of a fixed section names a resource that is not allowed.
    """

    def is_of_layer(key: str) -> bool:
        parts = key.split(".")
        known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((recipe.origins[one] for one in known if one in recipe.origins), "") == label

    for kind, (_, config) in recipe.components.items():
        if not isinstance(config, MissingComponent):
            guard(config, trust, label, only=partial(_named, is_of_layer, kind))
    named = [one for one in section_reaches(recipe) if is_of_layer(one.key)]
    if refused := trust.refused(named):
        raise refusal(label, "", refused, "or give these keys in your recipe")


def _named(is_of_layer: Callable[[str], bool], kind: str, reach: Reach) -> bool:
    return is_of_layer(f"{kind}.{reach.key}")


def refuse_outside(config: object) -> None:
    """Raise `TrustError` if a config is guarded and names resources that are not allowed: for code that uses its
    values without building it."""
    if isinstance(config, ComponentConfig) and (own := _guard_of(config)) is not None:
        own.check(config)


def refused_by(config: object) -> list[Reach]:
    """The resources that a guarded config refuses; empty for any other."""
    own = _guard_of(config)
    return own.refused(config) if own is not None and isinstance(config, ComponentConfig) else []


def same_guard(old: ComponentConfig | None, new: C) -> C:
    """Return the config `new`, which has values of `old`, with the same guard as `old`."""
    own = None if old is None else _guard_of(old)
    if own is not None and _guard_of(new) is None:
        _put(new, own)
    return new


def named_by_user(config: C, keys: Iterable[str]) -> C:
    """Return the config with the values of these keys marked as the user's own."""
    own = _guard_of(config)
    given = set(keys)
    if own is not None and given:
        stored = frozenset(one for one in own.stored if one[0] not in given)
        _put(config, replace(own, stored=stored))
    return config


def unguarded_class(config: ComponentConfig) -> type[ComponentConfig]:
    """The original class of a config, as its plugin registered it."""
    config_class = type(config)
    return config_class.__mro__[1] if _GUARD in vars(config_class) else config_class


def without_outside(config: C, folder: Path) -> C:
    """A copy of the config without the values that are not allowed, for reading a folder of the model:
    they get their defaults, or name that folder."""
    own = _guard_of(config)
    names = set() if own is None else {one.key.partition(".")[0] for one in own.refused(config)}
    annotations = hints(type(config))
    values = {item.name: getattr(config, item.name) for item in init_fields(type(config))}
    for item in init_fields(type(config)):
        if item.name in names:
            usual = default(item)
            optional = type(None) in getattr(annotations[item.name], "__args__", ())
            values[item.name] = usual if usual is not MISSING else None if optional else str(folder)
    copy: C = unguarded_class(config)(**values)  # type: ignore[assignment]  # its own class
    if name := chosen_name(config):
        choose(copy, name)
    return copy


def _guard_of(config: object) -> Guard | None:
    found: Guard | None = getattr(type(config), _GUARD, None)
    return found


def _put(config: ComponentConfig, own: Guard) -> None:
    config.__class__ = _guarded(unguarded_class(config), own)


def _guarded(config_class: type[Any], own: Guard) -> type[Any]:
    """A guarded subclass of a config's class."""
    names = {item.name for item in fields(config_class)}
    # flags such as `reads` are looked up in the class itself and not inherited
    marks = {
        name: value
        for name, value in vars(config_class).items()
        if not name.startswith("__")
        and name not in names
        and not inspect.isroutine(value)
        and not inspect.isdatadescriptor(value)
    }
    space: dict[str, Any] = {
        **marks,
        "__slots__": (),
        "__module__": config_class.__module__,
        "__qualname__": config_class.__qualname__,
        "__doc__": config_class.__doc__,
        "__reduce__": _reduced,
        _GUARD: own,
    }
    for name in _MAKERS:
        if hasattr(config_class, name):
            space[name] = _asking(name)
    if hasattr(config_class, "load"):
        space["load"] = _loading
    made: type[Any] = types.new_class(
        config_class.__name__, (config_class,), exec_body=lambda body: body.update(space)
    )
    return made


def _asking(name: str) -> Callable[..., Any]:
    def method(self: ComponentConfig, *args: Any, **options: Any) -> Any:
        refuse_outside(self)
        return getattr(unguarded_class(self), name)(self, *args, **options)

    method.__name__ = name
    return method


def _loading(self: ComponentConfig, folder: Path, *args: Any, **options: Any) -> Any:
    """`load` from a stored folder, which does not need the resources."""
    config: Any = without_outside(self, folder)
    return config.load(folder, *args, **options)


def _reduced(self: ComponentConfig) -> tuple[Any, ...]:
    own = _guard_of(self)
    return _restored, (unguarded_class(self), dict(vars(self)), chosen_name(self), own)


def _restored(
    config_class: type[ComponentConfig], values: dict[str, Any], name: str, own: Guard
) -> ComponentConfig:
    config = config_class.__new__(config_class)
    vars(config).update(values)
    if name:
        choose(config, name)
    _put(config, own)
    return config


#: Keys of the fixed sections that are paths: how they are used, and for what.
_PATHS = {
    "data.cache_dir": (WRITES, "image codes and neighbours"),
    "train.start_from": (READS, "the model that training starts from"),
}


def recipe_reaches(recipe: Recipe, *, refused: bool = False) -> list[Reach]:
    """The external resources that a recipe names, each with its full key ("retriever.bank").

    Args:
        recipe: composed, or read from a checkpoint.
        refused: include those that its components refuse (`cm3run.trust.guard`).
    """
    found: list[Reach] = []
    for kind, (_, config) in recipe.components.items():
        if isinstance(config, MissingComponent):
            continue
        left_out = set() if refused else set(refused_by(config))
        found += [_of(kind, one) for one in reaches_of(config) if one not in left_out]
    return found + section_reaches(recipe)


def section_reaches(recipe: Recipe) -> list[Reach]:
    """The external resources in the sections without a component."""
    found = []
    for key, (how, why) in _PATHS.items():
        section, _, name = key.partition(".")
        value: Any = getattr(getattr(recipe, section), name)
        if value is not None and not _is_shipped(key, value):
            how = how if address_of(value) is None else CONNECTS
            found.append(Reach(how, target_of(value), key, why, value))
    return found


def _of(kind: str, reach: Reach) -> Reach:
    return Reach(reach.how, reach.target, f"{kind}.{reach.key}", reach.why, reach.value)


def _is_shipped(key: str, value: str) -> bool:
    """Whether it is "PLUGIN:NAME" of a model that a plugin ships."""
    return key == "train.start_from" and ":" in value and "/" not in value
