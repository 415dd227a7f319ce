"""Which component a section has: the last layer's that names one, and the keys given for it.

Only that name must be known. One that a later layer replaces may be of a plugin that is not
installed, or of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cm3core.config.schema import is_interpolation
from cm3core.errors import PluginError, RecipeError
from cm3core.plugins.lookup import find
from cm3core.plugins.registry import Registry
from cm3core.recipe.layers import Layer
from cm3core.recipe.values import Place, merge_values, wrong_type


@dataclass
class Section:
    """A section while layers are merged into it.

    Args:
        config_class: its dataclass; None if the component can't be had.
        component: its name, None in fixed sections.
        error: why the component can't be had.
        values, origins: the keys given for it, and the layers that gave them.
    """

    config_class: type[Any] | None
    component: str | None = None
    error: PluginError | None = None
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, layer: Layer, section: str, given: dict[str, Any], registry: Registry) -> None:
        """Merge a layer's keys; those of a component that can't be had are kept unchecked."""
        if self.config_class is None:
            self.values |= given
            return
        owner = (
            f"the {section} {self.component!r}" if self.component else f"the section {section!r}"
        )
        place = Place(layer.label, (section,), owner, self.origins, registry, layer.writer)
        merge_values(place, given, self.config_class, self.values)


@dataclass(frozen=True)
class Choice:
    """What one layer says of a component's section: a name or None, and `keys`."""

    layer: Layer
    kind: str
    name: str | None
    keys: dict[str, Any]

    @classmethod
    def of(cls, layer: Layer, kind: str, given: dict[str, Any], registry: Registry) -> Choice:
        """Split a layer's section into the component's name and its keys."""
        keys = dict(given)
        name = keys.pop("name", None)
        if name is not None and (not isinstance(name, str) or is_interpolation(name)):
            raise wrong_type(
                f"{layer.label}: {kind}.name",
                name,
                f"the name of a component ({', '.join(registry.names(kind))})",
            )
        return cls(layer, kind, name, keys)

    def find(self, registry: Registry) -> type[Any] | PluginError:
        """Return the config class of its name, or why there is none."""
        assert self.name is not None
        place = f"{self.layer.label}: {self.kind}.name"
        try:
            return find(registry, self.kind, self.name, place=place, writer=self.layer.writer)
        except PluginError as error:
            return error


def chosen(choices: Sequence[Choice], registry: Registry) -> Section:
    """Merge what the layers say of one kind, in their order.

    A changed component replaces the section; otherwise keys are merged. A bare name of several
    plugins is the component of a later layer that names it in full.

    Raises:
        PluginError: the component, or one inside it, can't be had.
        RecipeError: keys are given before any layer chose a component, or one is wrong.
    """
    last = next((choice for choice in reversed(choices) if choice.name is not None), None)
    final = None if last is None else last.find(registry)
    short = "" if last is None else str(last.name).rpartition("/")[2]
    section: Section | None = None
    for choice in choices:
        kind, label = choice.kind, choice.layer.label
        if choice.name is not None:
            found = final if choice is last else choice.find(registry)
            assert found is not None
            if isinstance(found, PluginError) and isinstance(final, type) and choice.name == short:
                found = final
            config_class = None if isinstance(found, PluginError) else found
            if section is None or config_class is None or section.config_class is not config_class:
                section = Section(config_class)
            section.error = found if isinstance(found, PluginError) else None
            section.component, section.origins[f"{kind}.name"] = choice.name, label
        elif section is None:
            raise RecipeError(
                f"{label}: {kind}.name",
                "is missing: no layer before this one chose a component",
                f"name one: {', '.join(registry.names(kind))}",
            )
        section.merge(choice.layer, kind, choice.keys, registry)
    assert section is not None
    if section.error is not None:
        raise section.error
    return section
