"""Captions of icons: the object, the style and the set, as people write them; a canonical one, and random ones
from weighted templates."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cm3icons.data.sets import title_of
from cm3plugins.datasets.vector.captions import CaptionTemplate, choose, fill

if TYPE_CHECKING:
    from cm3icons.data.corpus import IconEntry

FIELDS = ("words", "style", "set", "other")

DEFAULT_TEMPLATES = (
    CaptionTemplate("{words}, {style}, {set}", 0.5),
    CaptionTemplate("{words}, {style}", 0.15),
    CaptionTemplate("{words}", 0.1),
    CaptionTemplate("{words}, {set}", 0.05),
    CaptionTemplate("{style} {words}", 0.05),
    CaptionTemplate("{style} {words}, {set}", 0.05),
    CaptionTemplate("{other}, {style}, {set}", 0.1),
)
"""The first is the canonical one. `{other}` is another name of the object, if the set has one."""


def caption(
    entry: IconEntry,
    rng: np.random.Generator | None = None,
    templates: Sequence[CaptionTemplate] = DEFAULT_TEMPLATES,
    title: str | None = None,
) -> str:
    """Return a caption: `bell off, outline rounded, lucide`.

    Args:
        entry: the picture.
        rng: draws a template by weight, and other names; None uses the first, canonical one.
        templates: at least one.
        title: name of the set; None: as in the bundled corpus.
    """
    other = entry.words
    if rng is not None and entry.tags:
        other = entry.tags[int(rng.integers(len(entry.tags)))]
    fields = {
        "words": entry.words,
        "style": entry.style,
        "set": title_of(entry.set_name) if title is None else title,
        "other": other,
    }
    text = (templates[0] if rng is None else choose(templates, rng)).text
    if not entry.style:  # only in a user's corpus: drop the style and the comma before it
        text = re.sub(r",?\s*\{style\}", "", text).strip(" ,") or "{words}"
    return fill(text, fields)


_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"


def made_up_title(title: str, captions: np.random.Generator, share: float) -> str:
    """Return another title for a set, in a share of generators; all captions by one generator, which are of one sequence,
    rename a set alike. Draws nothing.

    Args:
        title: of the set.
        captions: as of `caption`.
        share: of generators, by their seeds.
    """
    decides, names = captions.bit_generator.seed_seq.generate_state(2, np.uint64)
    if decides >= share * 2.0**64:
        return title
    drawn = hashlib.sha256(f"{names} {title}".encode()).digest()
    return "".join(
        _CONSONANTS[drawn[place] % len(_CONSONANTS)] + _VOWELS[drawn[place + 1] % len(_VOWELS)]
        for place in range(0, 4 + 2 * (drawn[-1] % 3), 2)
    )
