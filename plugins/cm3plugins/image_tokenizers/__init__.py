"""Bundled image tokenizers, and a check that their configs share."""

from __future__ import annotations

from cm3core.errors import RecipeError


def check_multiple(resolution: int, key: str, divisor: int) -> None:
    """Raise `RecipeError` unless a config's key divides its `resolution`."""
    if resolution % divisor:
        raise RecipeError(
            "image_tokenizer.resolution",
            f"is {resolution}, not a multiple of {key} {divisor}",
            "change one of the two",
        )
