"""Embed many items, some hundred at a time, under a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cm3core.interfaces.embedder import VectorArray
from cm3core.progress import make_bar

_BLOCK = 512
T = TypeVar("T")


def in_blocks(
    items: Sequence[T], embed: Callable[[Sequence[T]], VectorArray], title: str, quiet: bool
) -> VectorArray:
    """Vectors [N, E] of N items, at least one."""
    return np.concatenate(
        [
            embed(items[start : start + _BLOCK])
            for start in make_bar(
                range(0, len(items), _BLOCK), desc=title, unit="block", disable=quiet, leave=False
            )
        ]
    )
