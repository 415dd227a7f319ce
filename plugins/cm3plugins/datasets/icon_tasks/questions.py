"""Questions about icons and scenes, with answers that names and places give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cm3core.boxes import quarter_of
from cm3plugins.datasets.icons.sets import STYLE_WORDS

if TYPE_CHECKING:
    from cm3plugins.datasets.icon_tasks.scenes import Placed
    from cm3plugins.datasets.icons.entries import IconEntry

#: Words of a name that mean that the drawing is crossed out.
_CROSSED = ("off", "slash")
_NUMBERS = ("none", "one", "two", "three", "four")


def about_icon(entry: IconEntry, rng: np.random.Generator) -> tuple[str, str]:
    """A question about an icon, and its answer: what it is, its style, a slash. Yes and no are as
    frequent where a style is asked for."""
    kind = int(rng.integers(4))
    if kind == 0 or not entry.style:
        return "What is it?", entry.words
    if kind == 1:
        return "Is it crossed out?", _yes(any(word in _CROSSED for word in entry.words.split()))
    if kind == 2:
        return "In what style is it drawn?", entry.style
    own = entry.style.split()
    others = [word for word in STYLE_WORDS if word not in own]
    word = str(rng.choice(own if rng.integers(2) else others))
    return f"Is it {word}?", _yes(word in own)


def about_scene(
    placed: Sequence[Placed], size: int, absent: Callable[[], str], rng: np.random.Generator
) -> tuple[str, str]:
    """A question about a scene of `size` pixels a side, and its answer: how many, which is where, is it
    there; `absent`: names something that is seldom there."""
    kind = int(rng.integers(3))
    names = [one.name for one in placed]
    if kind == 0 or len(placed) < 2:
        return "How many things are there?", _NUMBERS[len(placed)]
    if kind == 1:
        there = bool(rng.integers(2))
        name = str(rng.choice(names)) if there else absent()
        return f"Is there a {name}?", _yes(name in names)
    return where(placed, size, rng)


def where(placed: Sequence[Placed], size: int, rng: np.random.Generator) -> tuple[str, str]:
    """A question where a thing of a scene is, and the quarter."""
    one = placed[int(rng.integers(len(placed)))]
    return f"Where is the {one.name}?", quarter_of(one.box, size)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
