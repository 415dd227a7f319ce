"""Axes of image codes' positions (`cm3core.picture_form.CodePositions`) in a decoder's settings."""

from __future__ import annotations

from collections.abc import Mapping

from cm3core.errors import RecipeError

#: Far above any real number of positions on an axis.
MOST_POSITIONS = 2**20


def check_axes(axes: Mapping[str, int]) -> None:
    """Raise a `RecipeError` for an axis whose name or size is impossible."""
    for name, size in axes.items():
        if not name.isidentifier() or not 1 <= size <= MOST_POSITIONS:
            raise RecipeError(
                f"decoder.code_axes.{name}",
                f"has the size {size}; names are letters and digits, sizes 1 to {MOST_POSITIONS:,}",
                "give an axis of the image tokenizer's positions (cm3 describe image_tokenizer)",
            )
