"""The base of every kind's config, and its range check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from cm3core.errors import RecipeError


@dataclass(kw_only=True)
class ComponentConfig:
    """Base of every component's config: a dataclass whose fields are a recipe section's keys.

    Fields may be `bool`, `int`, `float`, `str`, optional forms of these, lists and dicts of them,
    nested dataclasses, and other components (annotated with the base of a kind's configs, such as
    `dict[str, RetrieverConfig]`), which the recipe names; OmegaConf checks the types. The recipe must give every field that has
    no default. Check what types can't express (ranges, combinations) in `check`, so that
    `cm3 recipe check` finds it without building.
    """

    # the name by which a recipe chose a component inside another one; not in `vars` of a config
    __slots__ = ("__dict__", "__weakref__", "_chosen_name")

    #: Recipe name of the kind, e.g. "image_tokenizer"; set by each kind's base.
    kind: ClassVar[str] = ""
    #: Other sections that a recipe with this component must have, e.g. ("embedder",);
    #: `cm3 recipe check` requires them.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Whether this component is used when its kind is needed but none is named, such as the
    #: retriever over a bank that is given to a model without one. A subclass does not inherit it.
    is_default: ClassVar[bool] = False
    #: Keys of earlier versions: old name -> the field that replaced it. Recipes and checkpoints
    #: with an old name are still read; a warning gives the new one.
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def check(self) -> None:
        """Raise `RecipeError` if the values can't work together.

        Must stay light: no torch, no reading of files. Components in its fields are checked
        afterwards."""


def chosen_name(config: ComponentConfig) -> str:
    """The name by which a recipe chose a component inside another one; "" for any other config."""
    name: str = getattr(config, "_chosen_name", "")
    return name


def choose(config: ComponentConfig, name: str) -> None:
    """Record the name by which a recipe chose the component."""
    object.__setattr__(config, "_chosen_name", name)


def check_value(
    place: str,
    value: object,
    holds: bool,
    next_step: str = "correct the value",
    *,
    must_be: str = "",
) -> None:
    """Raise `RecipeError` unless `holds`: for the ranges in a config's `check`.

    Args:
        place: the key, "section.key".
        value: the key's value.
        holds: whether it is allowed; write comparisons so that nan fails.
        next_step: what the user should do.
        must_be: what is allowed, if `next_step` does not state it: completes "must be ...".
    """
    if not holds:
        rule = f", must be {must_be}" if must_be else ""
        raise RecipeError(place, f"is {value!r}{rule}", next_step)
