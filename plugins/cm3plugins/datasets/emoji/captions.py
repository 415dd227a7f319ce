"""Captions of the corpus: a canonical one, and random ones from weighted templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.errors import RecipeError, close_match

if TYPE_CHECKING:
    import numpy as np

    from cm3plugins.datasets.emoji.corpus import EmojiEntry

FIELDS = ("label", "style", "tags", "category", "concept")
_FIELD = re.compile(r"(\b[Aa] )?\{(\w*)\}")
_VOWEL_SOUND = re.compile(r"(?!uni|uk|eu|one\b|ufo)[aeiou]|hour|x-ray", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionTemplate:
    """One way to say what a picture shows.

    Args:
        text: text with fields in braces out of ``FIELDS``; `a` before a field becomes `an` where
            the field's value asks for it.
        weight: how often it is chosen, relative to the others; above 0.
    """

    text: str
    weight: float = 1.0


DEFAULT_TEMPLATES = (
    CaptionTemplate("{label}, {style} style", 0.7),
    CaptionTemplate("{label}", 0.1),
    CaptionTemplate("a {label}", 0.1),
    CaptionTemplate("a {label} in {style} style", 0.1),
)
"""The first is the canonical one."""


def caption(
    entry: EmojiEntry,
    rng: np.random.Generator | None = None,
    templates: Sequence[CaptionTemplate] = DEFAULT_TEMPLATES,
) -> str:
    """Return a caption.

    Args:
        entry: the picture.
        rng: draws one template by weight; None takes the first, the canonical one.
        templates: at least one.

    Example:
        >>> from cm3plugins.datasets.emoji.corpus import EmojiCorpus
        >>> corpus = EmojiCorpus()
        >>> caption(corpus.entries[corpus.index("noto/red-apple")])
        'red apple, noto style'
    """
    if rng is None:
        return fill(templates[0].text, entry)
    total = sum(template.weight for template in templates)
    drawn = rng.random() * total
    for template in templates:
        drawn -= template.weight
        if drawn < 0:
            return fill(template.text, entry)
    return fill(templates[-1].text, entry)


def fill(text: str, entry: EmojiEntry) -> str:
    """Put an entry's fields into a template's text; `{tags}` are joined by commas."""

    def value(match: re.Match[str]) -> str:
        article, name = match.groups()
        content = ", ".join(entry.tags) if name == "tags" else str(getattr(entry, name))
        if article is None:
            return content
        return f"{article.strip()}{'n' if _VOWEL_SOUND.match(content) else ''} {content}"

    return _FIELD.sub(value, text)


def check_templates(place: str, templates: Sequence[CaptionTemplate]) -> None:
    """Raise `RecipeError` when there is no template, or one has an unknown field or a weight that
    is not above 0."""
    if not templates:
        raise RecipeError(
            place,
            "there is no caption template",
            'give at least one, such as "{label}, {style} style"',
        )
    for template in templates:
        for name in (match.group(2) for match in _FIELD.finditer(template.text)):
            if name not in FIELDS:
                cause = f"the template {template.text!r} has an unknown field {{{name}}}; {close_match(name, FIELDS)}"
                raise RecipeError(place, cause, f"use fields out of {', '.join(FIELDS)}")
        if not template.weight > 0:
            cause = f"the template {template.text!r} has weight {template.weight}"
            raise RecipeError(place, cause, "give a weight above 0, or leave the template out")
