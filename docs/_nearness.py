"""Measure what `cm3core.nearness` says of pairs of icons, for the table of decoding.md: `python docs/_nearness.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

import numpy as np

from cm3core.grey import without_colour
from cm3core.model import load
from cm3core.nearness import NEARLY_A_COPY, nearness
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.entries import IconEntry

NUMBER, SIDE = 400, 64
Pair = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Print a row for each sort of pairs."""
    corpus, rng = IconCorpus(), np.random.default_rng(0)
    grey = [index for index, entry in enumerate(corpus.entries) if not entry.has_colour]
    some = [int(index) for index in rng.choice(grey, 2 * NUMBER, replace=False)]

    def drawn(index: int) -> np.ndarray:
        return corpus.render(index, SIDE)

    def pairs(
        group: Callable[[IconEntry], Hashable], differ: Callable[[IconEntry], str]
    ) -> Iterable[Pair]:
        """Two of one group, of all groups with two that differ."""
        groups: dict[Hashable, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, entry in enumerate(corpus.entries):
            if (key := group(entry)) is not None:
                groups[key][differ(entry)].append(index)
        several = [own for own in groups.values() if len(own) > 1]
        for place in rng.integers(len(several), size=NUMBER):
            one, other = rng.choice(sorted(several[place]), 2, replace=False)
            yield tuple(drawn(int(rng.choice(several[place][name]))) for name in (one, other))  # type: ignore[misc]

    def moved(index: int) -> np.ndarray:
        side = int(rng.integers(36, 56))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
        pixels[top : top + side, left : left + side] = corpus.render(index, side)
        return pixels

    def framed(entry: IconEntry) -> Hashable:
        words = set(entry.words.split())
        frame = words & {"circle", "square"}
        return (entry.set_name, entry.style, *frame) if frame and "filled" in entry.style else None

    tokenizer = load("bundled:icons64-tuned").components.image_tokenizer
    rows: dict[str, Iterable[Pair]] = {
        "an icon, and itself elsewhere and 36 to 55 pixels large": (
            (drawn(index), moved(index)) for index in some[:NUMBER]
        ),
        "an icon, and what the bundled image tokenizer keeps of it": (
            (
                drawn(index),
                without_colour(tokenizer.decode(tokenizer.encode(drawn(index)[None]))[0]),
            )
            for index in some[:NUMBER]
        ),
        "one thing and style in two sets": pairs(
            lambda e: (e.words, e.style), lambda e: e.set_name
        ),
        "one thing in two sets": pairs(lambda e: e.words, lambda e: e.set_name),
        "two things in one set, filled, both with a circle or a square": pairs(
            framed, lambda e: e.words
        ),
        "two things of one set and style": pairs(
            lambda e: (e.set_name, e.style), lambda e: e.words
        ),
        "two icons": (
            (drawn(one), drawn(other))
            for one, other in zip(some[:NUMBER], some[NUMBER:], strict=True)
        ),
    }
    for name, own in rows.items():
        near = np.array([nearness(*pair) for pair in own])
        print(
            f"| {name} | {len(near)} | {np.median(near):.2f} | {(near >= NEARLY_A_COPY).mean():.1%} |"
        )


if __name__ == "__main__":
    main()
