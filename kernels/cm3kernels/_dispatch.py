"""Which implementation of an op runs: chosen by name, refused with a reason, never swapped in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def choose(op: str, implementation: str, available: Mapping[str, Function]) -> Function:
    """The implementation of that name; "auto" is the last of `available`, the fastest that is there.

    Raises:
        ValueError: no such implementation, with those that there are.
    """
    if implementation == "auto":
        return available[list(available)[-1]]
    if implementation not in available:
        raise ValueError(f"{op}: implementation {implementation!r} is not available\n  next: use 'auto' or one of: "
                         f"{', '.join(available)}")
    return available[implementation]


def require(condition: bool, op: str, cause: str) -> None:
    """Raise `ValueError` naming the op when an argument does not fit."""
    if not condition:
        raise ValueError(f"{op}: {cause}")
