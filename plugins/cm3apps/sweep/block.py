"""The block `sweep` of a recipe's file: what `cm3 sweep` varies unless the command says otherwise. Light.

sweep:
  grid: [retriever.num_retrieved=0,1,2]      # as on the command line
  cells:                                     # or cells that differ in several keys, by name
    small: [decoder.num_layers=4, decoder.d_model=128]
    large: [decoder.num_layers=8, decoder.d_model=320]
  seeds: 3
  protocol: icons-restyle-closed-v2
  num: 100
  metrics: [usable]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cm3core.config.schema import WrongTypeError, fit, hints, make
from cm3core.errors import RecipeError, close_match
from cm3core.recipe import library
from cm3core.recipe.layers import SWEEP, parse, read
from cm3core.recipe.values import wrong_type

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SweepBlock:
    """What a recipe's file says about its sweep.

    Args:
        grid: overrides, with several values separated by commas.
        cells: label -> overrides; with `grid`, every combination is a cell.
        seeds: trainings of each cell, with the seeds from `train.seed` on.
        protocol: a name of `cm3 eval protocols`, or a file relative to the recipe's; null: the held-out loss, see
            `cm3apps.sweep.protocols`.
        num: the protocol's first samples; null: all.
        metrics: scores to compare; empty: all that have a value for each case.
    """

    grid: list[str] = field(default_factory=list)
    cells: dict[str, list[str]] = field(default_factory=dict)
    seeds: int = 1
    protocol: str | None = None
    num: int | None = None
    metrics: list[str] = field(default_factory=list)


def block_of(path: Path) -> SweepBlock:
    """The block of a recipe's file; the defaults if it has none.

    Raises:
        RecipeError: an unknown key, or a value of a wrong type or out of range.
    """
    label = library.label(path)
    given = parse(read(path), label).get(SWEEP)
    place = f"{label}: {SWEEP}"
    if given is None:
        return SweepBlock()
    if not isinstance(given, dict):
        raise RecipeError(
            place,
            f"is {given!r}, must be a mapping of keys to values",
            "write e.g. sweep: {seeds: 3}",
        )
    known, values = hints(SweepBlock), {}
    for key, value in given.items():
        if key not in known:
            raise RecipeError(f"{place}.{key}", "is no key of a sweep", close_match(key, known))
        try:
            values[key] = fit(value, known[key])
        except WrongTypeError as error:
            raise wrong_type(f"{place}.{key}", value, known[key], error) from error
    block: SweepBlock = make(SweepBlock, values)
    for key in ("seeds", "num"):
        number = getattr(block, key)
        if number is not None and number < 1:
            raise RecipeError(f"{place}.{key}", f"is {number}", "use 1 or more")
    return block
