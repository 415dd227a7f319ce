"""What the configs of all kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from cm3core.errors import RecipeError


@dataclass(kw_only=True)
class ComponentConfig:
    """Base of every component's config: a dataclass whose fields are the keys of a recipe's
    section.

    Fields may be `bool`, `int`, `float`, `str`, `None`-able forms of these, lists and dicts of
    them, and nested dataclasses; OmegaConf checks the types. A field without a default must be
    given by the recipe. Check what types can't say (ranges, combinations) in `check`, so that
    `cm3 recipe check` finds it without building.
    """

    #: Recipe name of the kind, e.g. "image_tokenizer"; set by each kind's base.
    kind: ClassVar[str] = ""
    #: Sections that a recipe with this component must have besides, e.g. ("embedder",);
    #: `cm3 recipe check` asks for them.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Whether the component is the one taken where its kind is needed and none is named, such as the
    #: retriever over a bank that is given to a model without one. A subclass does not inherit it.
    is_default: ClassVar[bool] = False
    #: Keys of earlier versions: old name -> the field that took its place. Recipes and checkpoints
    #: that still write an old name are read, and a warning says what to write.
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def check(self) -> None:
        """Raise `RecipeError` when the values can't work together. Must stay light: no torch, no
        files read."""


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
        value: what the key is.
        holds: whether that may be; comparisons should be written such that nan fails.
        next_step: what the user should do.
        must_be: what is allowed, where `next_step` does not say it: completes "must be ...".
    """
    if not holds:
        rule = f", must be {must_be}" if must_be else ""
        raise RecipeError(place, f"is {value!r}{rule}", next_step)
