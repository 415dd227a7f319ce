"""Measure the nearness of pairs of icons, and write docs/figures/nearness.json: `python docs/_nearness.py` (some
minutes). `python docs/_generate.py` then writes the table of decoding.md."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

import numpy as np

from cm3icons.data.corpus import IconCorpus, IconEntry
from cm3icons.ink import without_colour
from cm3run.model import load
from cm3run.nearness import NEARLY_A_COPY, nearness

FILE = Path(__file__).parent / "figures" / "nearness.json"
NUMBER, SIDE = 400, 64
Pair = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Write the median of each sort of pairs, and the share that counts as nearly a copy."""
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
            yield tuple(drawn(int(rng.choice(several[place][name]))) for name in (one, other))  # type: ignore[misc]  # two of them

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
        "an icon, and the same icon moved and resized (36 to 55 pixels)": (
            (drawn(index), moved(index)) for index in some[:NUMBER]
        ),
        "an icon, and its reconstruction by the image tokenizer": (
            (
                drawn(index),
                without_colour(tokenizer.decode(tokenizer.encode(drawn(index)[None]))[0]),
            )
            for index in some[:NUMBER]
        ),
        "one object and style in two sets": pairs(
            lambda e: (e.words, e.style), lambda e: e.set_name
        ),
        "one object in two sets": pairs(lambda e: e.words, lambda e: e.set_name),
        "two objects of one set, both on a filled circle or square": pairs(
            framed, lambda e: e.words
        ),
        "two objects of one set and style": pairs(
            lambda e: (e.set_name, e.style), lambda e: e.words
        ),
        "two random icons": (
            (drawn(one), drawn(other))
            for one, other in zip(some[:NUMBER], some[NUMBER:], strict=True)
        ),
    }
    figures = {}
    for name, own in rows.items():
        near = np.array([nearness(*pair) for pair in own])
        figures[name] = {
            "num": len(near),
            "median": round(float(np.median(near)), 4),
            "copies": int((near >= NEARLY_A_COPY).sum()),
        }
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
