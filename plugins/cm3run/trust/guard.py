"""Configs that refuse to build what the user did not allow, and what a recipe names outside, sections without
components included.

A stored recipe's config whose values name something outside gets a subclass of its own class, whose `build`
asks first. It is found wherever the config goes: `dataclasses.replace` keeps the class, and so do copies.
Everything else of it works: it is shown, compared, hashed and changed as before. What the user puts in the
place of a value that was refused is the user's, and is used.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cm3core.config.schema import all_parts, default, hints, init_fields
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name
from cm3core.interfaces.reach import READS, WRITES, Reach
from cm3core.recipe.recipe import MissingComponent, Recipe
from cm3run.trust.reach import Trust, path_of, reaches_of, refusal

C = TypeVar("C", bound=ComponentConfig)
#: Methods of configs that use what the values name.
_MAKERS = ("build", "build_for", "open_memory")
#: Attribute of the subclasses.
_GUARD = "_cm3_guard"


@dataclass(frozen=True)
class Guard:
    """What a guarded config refuses.

    Args:
        trust: what is allowed.
        place: the file that the values are from.
        section: the recipe's, with the path to a component in it.
        stored: (key, value) of what was refused: another value is the user's.
        hint: another way out, see `refusal`.
    """

    trust: Trust
    place: str
    section: str
    stored: frozenset[tuple[str, str]]
    hint: str = ""

    def refused(self, config: ComponentConfig) -> list[Reach]:
        """What of a config may not be used."""
        now = self.trust.refused(reaches_of(config))
        return [one for one in now if (one.key, one.value) in self.stored]

    def check(self, config: ComponentConfig) -> None:
        """Raise `TrustError` if something may not be used."""
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
    """Let a config, and the components in it, refuse to build what is not allowed; in place.

    Args:
        config: of a stored recipe.
        trust: what is allowed.
        place: the file that the values are from.
        only: which of what the config reaches is from that file; by default all.
        hint: another way out, the end of a sentence.
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


def refuse_outside(config: object) -> None:
    """Raise `TrustError` if a config is guarded, and names what may not be used: for whoever uses its
    values without building it."""
    if isinstance(config, ComponentConfig) and (own := _guard_of(config)) is not None:
        own.check(config)


def refused_by(config: object) -> list[Reach]:
    """What a guarded config refuses; nothing for any other."""
    own = _guard_of(config)
    return own.refused(config) if own is not None and isinstance(config, ComponentConfig) else []


def same_guard(old: ComponentConfig | None, new: C) -> C:
    """Return the config `new`, which has values of `old`, guarded as that one is."""
    own = None if old is None else _guard_of(old)
    if own is not None and _guard_of(new) is None:
        _put(new, own)
    return new


def named_by_user(config: C, keys: Iterable[str]) -> C:
    """Return the config, whose values of these keys the user gave."""
    own = _guard_of(config)
    given = set(keys)
    if own is not None and given:
        stored = frozenset(one for one in own.stored if one[0] not in given)
        _put(config, replace(own, stored=stored))
    return config


def unguarded_class(config: ComponentConfig) -> type[ComponentConfig]:
    """The class of a config as its plugin registered it."""
    config_class = type(config)
    return config_class.__mro__[1] if _GUARD in vars(config_class) else config_class


def without_outside(config: C, folder: Path) -> C:
    """A copy of the config without the values that may not be used, for what reads a folder of the model:
    they have their defaults, or name that folder."""
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
    """A subclass of a config's class with a guard."""
    names = {item.name for item in fields(config_class)}
    # marks such as `reads` are looked up in the class itself, and are not inherited
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
    """`load` of what is stored in a folder, which has no need of what the values name."""
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


#: Keys of the fixed sections that are paths: how they are used, and what for.
_PATHS = {
    "data.cache_dir": (WRITES, "image codes and neighbours"),
    "train.start_from": (READS, "the model that training starts from"),
}


def recipe_reaches(recipe: Recipe, *, refused: bool = False) -> list[Reach]:
    """What a recipe names outside, each with its whole key ("retriever.bank").

    Args:
        recipe: composed, or read from a checkpoint.
        refused: with what its components refuse to use (`cm3run.trust.guard`); else without.
    """
    found: list[Reach] = []
    for kind, (_, config) in recipe.components.items():
        if isinstance(config, MissingComponent):
            continue
        left_out = set() if refused else set(refused_by(config))
        found += [_of(kind, one) for one in reaches_of(config) if one not in left_out]
    return found + section_reaches(recipe)


def section_reaches(recipe: Recipe) -> list[Reach]:
    """The same of the sections that hold no component."""
    found = []
    for key, (how, why) in _PATHS.items():
        section, _, name = key.partition(".")
        value: Any = getattr(getattr(recipe, section), name)
        if value is not None and not _is_shipped(key, value):
            found.append(Reach(how, path_of(value), key, why, value))
    return found


def _of(kind: str, reach: Reach) -> Reach:
    return Reach(reach.how, reach.target, f"{kind}.{reach.key}", reach.why, reach.value)


def _is_shipped(key: str, value: str) -> bool:
    """Whether it is "PLUGIN:NAME" of a model that a plugin ships."""
    return key == "train.start_from" and ":" in value and "/" not in value
