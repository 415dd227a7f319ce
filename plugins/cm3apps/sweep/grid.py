"""Overrides with several values -> the cells of a grid. Light."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cm3core.errors import RecipeError
from cm3core.recipe import forms


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        label: what distinguishes it from the others, e.g. "retriever=bm25 train.steps=20"; "all" if nothing is varied.
        varied: its own overrides.
    """

    label: str
    varied: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The product of axes.

    Args:
        fixed: overrides of all cells.
        axes: alternatives of each axis, as (label, overrides).
    """

    fixed: tuple[str, ...]
    axes: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...]

    @classmethod
    def of(cls, overrides: Sequence[str], named: Mapping[str, Sequence[str]] | None = None) -> Grid:
        """The grid of some overrides, in which commas separate values.

        Args:
            overrides: `key=value` or `key=value,value`.
            named: label -> overrides of cells that differ in several keys; one more axis, the first.

        Raises:
            RecipeError: a list of values is malformed, or a key is given twice.
        """
        fixed: list[str] = []
        axes = []
        if named:
            axes.append(tuple((label, tuple(own)) for label, own in named.items()))
        _check_once(overrides)
        for override in overrides:
            key, equals, listed = override.partition("=")
            values = split_values(override, listed)
            if not equals or len(values) == 1:
                fixed.append(override)
            else:
                axes.append(tuple((f"{key}={value}", (f"{key}={value}",)) for value in values))
        return cls(tuple(fixed), tuple(axes))

    def cells(self) -> Iterator[Cell]:
        """The cells; the last axis varies fastest."""
        for chosen in itertools.product(*self.axes):
            label = " ".join(name for name, _ in chosen)
            yield Cell(label or "all", tuple(one for _, own in chosen for one in own))


def _check_once(overrides: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if key in seen:
            raise RecipeError(
                key,
                f"is given twice: {seen[key]} and {override}",
                "give all values of a key in one argument, separated by commas",
            )
        seen[key] = override


def split_values(place: str, text: str) -> list[str]:
    """The values between commas at top level; brackets, braces and quotation marks protect commas.

    >>> split_values("", "none,bm25"), split_values("", "[0.9, 0.95],[0.8,0.9]"), split_values("", "'a,b'")
    (['none', 'bm25'], ['[0.9, 0.95]', '[0.8,0.9]'], ["'a,b'"])

    Args:
        place: the argument, for errors.
        text: what follows its `=`.

    Raises:
        RecipeError: one of several values is empty or given twice, or a bracket or quotation mark is not closed.
    """
    values, unclosed = forms.split_values(text)
    if unclosed:
        raise RecipeError(
            place,
            f"has no closing {unclosed}",
            "close it, or put the whole value in quotation marks",
        )
    if len(values) > 1:
        _check_values(place, values)
    return values


def _check_values(place: str, values: Sequence[str]) -> None:
    if not all(values):
        raise RecipeError(place, "lists an empty value", "remove the comma too many, or write null")
    twice = next((one for one in values if values.count(one) > 1), None)
    if twice is not None:
        raise RecipeError(place, f"lists {twice} twice", "list each value once")
