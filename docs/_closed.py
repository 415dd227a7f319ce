"""Measure what a copy of a training icon scores on held-out things, and write docs/figures/closed.json:
`python docs/_closed.py` (a few minutes of one core).

For the caption of each held-out icon, the icon of `train` with the most similar caption is found, and taken for the
drawing. R@5: the true drawing is among the five that are nearest to it, of 100 of its set and style. If things are
held out, that happens rarely. `python docs/_generate.py` makes the table of docs/icons.md of the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cm3icons.data.captions import caption
from cm3icons.data.closed import JUDGED
from cm3icons.data.copies_build import looks_of
from cm3icons.data.corpus import IconCorpus
from cm3icons.evaluation.ranking import RealPictures, blurred, order
from cm3plugins.embedders.light_encoder import LightEncoderConfig
from cm3plugins.metrics.ranking import chance_among_first, distances
from cm3run.nearness import NEARLY_A_COPY, nearness

FILE = Path(__file__).parent / "figures" / "closed.json"
SIZE, NUM = 64, 200


def copied(corpus: IconCorpus, split: str) -> dict[str, Any]:
    """What copies of the most similar icon of `train` score on `NUM` icons of a split, one of a name."""
    entries, embedder = corpus.entries, LightEncoderConfig().build()
    trained = [index for index, own in enumerate(entries.splits) if own == "train"]
    held_out: dict[str, int] = {}
    for index in sorted(range(len(entries)), key=lambda one: order(entries.ids[one])):
        if entries.splits[index] == split:
            held_out.setdefault(entries.words[index], index)
    asked = list(held_out.values())[:NUM]
    train_ND, asked_MD = (
        embedder.embed_texts([caption(entries[index]) for index in indices])
        for indices in (trained, asked)
    )
    found = [trained[int(row)] for row in (asked_MD @ train_ND.T).argmax(1)]
    real = RealPictures(corpus, SIZE, (SIZE, SIZE), None)
    pictures = [real[index] for index in found]
    near = [nearness(picture, real[index]) for picture, index in zip(pictures, asked, strict=True)]
    away = [
        distances(
            blurred(picture[None])[0],
            blurred(np.stack([real[other] for other in real.candidates(entries[index])])),
            centred=False,
        )
        for picture, index in zip(pictures, asked, strict=True)
    ]
    chances = {
        k: float(np.mean([chance_among_first(distances_N, k) for distances_N in away]))
        for k in (1, 5)
    }
    return {
        "num": len(asked),
        "r1": chances[1],
        "r5": chances[5],
        "near_copies": float(np.mean(np.array(near) >= NEARLY_A_COPY)),
    }


def largest_group(corpus: IconCorpus) -> int:
    """Number of icons that a chain of look-alikes connects, at most."""
    alike = looks_of(corpus).graph()
    left, largest = set(range(len(corpus))), 0
    while left:
        group = [left.pop()]
        for index in group:
            others = left.intersection(alike.to(index))
            left -= others
            group += others
        largest = max(largest, len(group))
    return largest


def measured() -> dict[str, Any]:
    """Way of holding out -> split -> what copies score; and the largest group of look-alikes."""
    splits = {"by_name": ("comp", "compose", "unseen"), "closed": JUDGED}
    scores = {
        way: {split: copied(IconCorpus(held_out=way), split) for split in own}
        for way, own in splits.items()
    }
    corpus = IconCorpus()
    return {"copied": scores, "icons": len(corpus), "largest_group": largest_group(corpus)}


if __name__ == "__main__":
    FILE.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    print(FILE)
