"""Trained parts in recipes: `image_tokenizer: runs/codes` takes the component, its keys and its weights from there.

A section's value that is not the name of a component and looks like a place (a folder or a file; an address, such as
`hf://USER/NAME`; a model that a plugin ships, `PLUGIN:NAME`) stands for what is found there. It is replaced by layers
before anything is merged, so a composed recipe names components only. The engine reads the places: it knows the files
of runs, models and memory banks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from cm3core._engine import engine
from cm3core.config.schema import is_interpolation
from cm3core.errors import CM3Error
from cm3core.files import user_path
from cm3core.plugins.registry import Registry, Writer, moved_to
from cm3core.recipe.layers import Layer

if TYPE_CHECKING:
    from cm3core.recipe.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """A trained part of a recipe.

    Args:
        label: the file that describes it, for messages and `--origin`.
        values: of its section, with "name".
        writer: resolves bare names of components in that file.
        guard: makes a composed recipe refuse what that file's values name and the user has not allowed.
        needed: section -> values of what it can't do without; the recipe's own choices at the same level replace them.
        named: section -> values that the place itself stands for, which are the user's own.
    """

    label: str
    values: dict[str, Any]
    writer: Writer
    guard: Callable[[Recipe], None]
    needed: Mapping[str, Any] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)


class PartFinder(Protocol):
    """Finds a part of a kind at a place; a `CM3Error` says why there is none. `origin`: where the place is written."""

    def __call__(
        self,
        place: str,
        kind: str,
        registry: Registry,
        *,
        origin: str,
        trust_endpoints: Sequence[str] = (),
    ) -> Part: ...


def is_place(text: object, kind: str, registry: Registry) -> bool:
    """Whether the value of a component's section is a place rather than a component's name."""
    if not isinstance(text, str) or not text or is_interpolation(text):
        return False
    plugin, _, name = text.rpartition("/")
    if registry.owners(kind, name) and (not plugin or plugin in _plugins(registry)):
        return False
    if ":" in text or _exists(text):
        return True
    return bool(plugin) and plugin not in _plugins(registry) and not _was(registry, kind, name)


def _exists(text: str) -> bool:
    """Whether it is a path of something; also false for an impossible one (too long, of an unknown user)."""
    try:
        return user_path(text).exists()
    except (OSError, ValueError, CM3Error):
        return False


def _plugins(registry: Registry) -> set[str]:
    return {info.name for info in registry.plugins}


def _was(registry: Registry, kind: str, name: str) -> bool:
    """Whether a component of this name is in another distribution now, or was removed."""
    gone = any(f"{kind}/{name}" in info.gone for info in registry.plugins)
    return gone or bool(moved_to(registry.plugins, kind, name))


def with_parts(
    layers: Sequence[Layer], registry: Registry, trust_endpoints: Sequence[str] = ()
) -> tuple[list[Layer], list[Part]]:
    """Return the layers with the places of parts replaced by what is found there, and the parts.

    The other keys of such a section change the part's. A part replaces the section of earlier layers, even one with the
    same component. A place that a later layer replaces is not looked at: it need not be there.

    Args:
        layers: a recipe's. Recipes stored by runs hold no places: their text may be anybody's.
        registry: the available components.
        trust_endpoints: outside resources that parts made by somebody else may use.
    """
    result: list[Layer] = []
    parts: list[Part] = []
    for number, layer in enumerate(layers):
        values, own = dict(layer.values), list[Layer]()
        for kind in [one for one in values if one in registry.kinds and not layer.writer.stored]:
            keys = values[kind] if isinstance(values[kind], dict) else {"name": values[kind]}
            if not is_place(keys.get("name"), kind, registry):
                continue
            if any(_names_another(later, kind) for later in layers[number + 1 :]):
                values[kind] = None
                continue
            origin = f"{layer.label}: {kind}"
            find: PartFinder = engine("part_at")
            part = find(
                keys["name"], kind, registry, origin=origin, trust_endpoints=trust_endpoints
            )
            parts.append(part)
            result += _afresh(part, part.needed, registry)
            own += [*_afresh(part, {kind: part.values}, registry), Layer(layer.label, part.named)]
            values[kind] = {key: value for key, value in keys.items() if key != "name"}
            if not values[kind]:
                del values[kind]
        result += [*own, replace(layer, values=values)]
    return result, parts


def _names_another(layer: Layer, kind: str) -> bool:
    """Whether a layer replaces the component that earlier layers chose, or removes it."""
    given = layer.values.get(kind, {})
    return not isinstance(given, dict) or given.get("name") is not None


def _afresh(part: Part, values: Mapping[str, Any], registry: Registry) -> list[Layer]:
    """Layers that replace whole sections: a stored recipe omits keys that it needs not have."""
    nothing = {section: None for section in values if section in registry.kinds}
    given = {section: own for section, own in values.items() if own is not None}
    return [Layer(part.label, nothing, part.writer), Layer(part.label, given, part.writer)]
