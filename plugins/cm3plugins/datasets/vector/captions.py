"""Captions from templates (texts with fields in braces, chosen by weight); author and
address of a set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cm3core.errors import RecipeError, close_match

if TYPE_CHECKING:
    import numpy as np

_FIELD = re.compile(r"(\b[Aa] )?\{(\w*)\}")
_VOWEL_SOUND = re.compile(r"(?!uni|uk|eu|one\b|ufo)[aeiou]|hour|x-ray", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionTemplate:
    """A template for captions.

    Args:
        text: text with fields in braces; `a` before a field becomes `an` if the field's value requires
            it.
        weight: relative frequency, above 0.
    """

    text: str
    weight: float = 1.0


def choose(templates: Sequence[CaptionTemplate], rng: np.random.Generator) -> CaptionTemplate:
    """Draw a template by weight."""
    drawn = rng.random() * sum(template.weight for template in templates)
    for template in templates:
        drawn -= template.weight
        if drawn < 0:
            return template
    return templates[-1]


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Fill fields into a template's text."""

    parts = _parts(text)
    filled = [parts[0] or ""]
    for article, name, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        content = fields[name or ""]
        if article is not None:
            filled.append(f"{article.strip()}{'n' if _VOWEL_SOUND.match(content) else ''} ")
        filled += content, literal or ""
    return "".join(filled)


@lru_cache(maxsize=1024)
def _parts(text: str) -> tuple[str | None, ...]:
    """Split a template, once for many captions: a literal, then an article or None, a field's name and a literal for
    each field."""
    return tuple(_FIELD.split(text))


def check_templates(
    place: str, templates: Sequence[CaptionTemplate], fields: Sequence[str], example: str
) -> None:
    """Raise `RecipeError` if there is no template, or if one has an unknown field or a weight that
    is not above 0."""
    if not templates:
        raise RecipeError(
            place,
            "there is no caption template",
            f'add at least one, such as "{example}"',
        )
    for template in templates:
        for name in (match.group(2) for match in _FIELD.finditer(template.text)):
            if name not in fields:
                cause = (
                    f"the template {template.text!r} has an unknown field {{{name}}}; "
                    f"{close_match(name, fields)}"
                )
                raise RecipeError(place, cause, f"use fields from {', '.join(fields)}")
        if not template.weight > 0:
            cause = f"the template {template.text!r} has weight {template.weight}"
            raise RecipeError(place, cause, "use a weight above 0, or leave the template out")


def author_and_address(text: str) -> tuple[str, str]:
    """Split a set's record into author and address, "" if missing.

    >>> author_and_address("Ann, Bob, https://example.org/set"), author_and_address("Ann, Bob")
    (('Ann, Bob', 'https://example.org/set'), ('Ann, Bob', ''))
    """
    author, _, address = text.rpartition(", ")
    if "://" in address:
        return author, address
    return ("", text) if "://" in text.partition(" ")[0] else (text, "")
