"""Captions of the emoji corpus: a canonical one, and random ones from weighted templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cm3plugins.datasets.vector.captions import CaptionTemplate, choose, fill

if TYPE_CHECKING:
    import numpy as np

    from cm3plugins.datasets.emoji.corpus import EmojiEntry

FIELDS = ("label", "style", "tags", "category", "concept")

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
        entry: the picture; its `{tags}` are joined by commas.
        rng: draws a template by weight; None uses the first, canonical one.
        templates: at least one.

    Example:
        >>> from cm3plugins.datasets.emoji.corpus import EmojiCorpus
        >>> corpus = EmojiCorpus()
        >>> caption(corpus.entries[corpus.index("noto/red-apple")])
        'red apple, noto style'
    """
    fields = {
        name: ", ".join(entry.tags) if name == "tags" else str(getattr(entry, name))
        for name in FIELDS
    }
    template = templates[0] if rng is None else choose(templates, rng)
    return fill(template.text, fields)
