"""Bundled image tokenizers, and a check that their configs share."""

from __future__ import annotations

from cm3core.errors import RecipeError

#: What to do where there are no weights yet.
NEEDED = "train them with cm3 tokenizer train-image, which ends with the line to write here"


def check_multiple(resolution: int, key: str, divisor: int) -> None:
    """Raise `RecipeError` unless a config's key divides its `resolution`."""
    if resolution % divisor:
        raise RecipeError(
            "image_tokenizer.resolution",
            f"is {resolution}, not a multiple of {key} {divisor}",
            "change one of the two",
        )
