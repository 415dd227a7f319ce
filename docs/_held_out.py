"""Measure what "held out by name" means for the icon corpus, and write docs/figures/held-out.json:
`python docs/_held_out.py` (a few minutes of one core).

Splits go by names, so that a drawing of a held-out thing may be in `train` under another name. `python
docs/_generate.py` makes the table of docs/icons.md of the file; tests compare both with the shipped data.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3icons.data.comparison import NEAR, shrink
from cm3icons.data.corpus import IconCorpus, IconEntry
from cm3icons.data.splits import parts, thing_of
from cm3run.nearness import _placed, ink_of

FILE = Path(__file__).parent / "figures" / "held-out.json"
SIZE = 64
#: From this correlation on, two inks of the same place and size are one drawing to the eye.
SAME_DRAWING = 0.98
_ROWS = 256


def of_names(entries: Sequence[IconEntry]) -> dict[str, Any]:
    """What names and tags tell of `unseen`: how many of its things are also a tag of an icon of `train`, or lie
    whole inside a name of one, and how many icons these are. Words are compared as splits compare them; synonyms
    (`folder-arrow-down` for a folder download) are not counted, so there is more."""
    unseen: dict[str, int] = defaultdict(int)
    tags: set[str] = set()
    names: dict[str, set[frozenset[str]]] = defaultdict(set)
    for entry in entries:
        words = tuple(entry.words.split())
        if entry.split == "unseen":
            unseen[thing_of(words)] += 1
        elif entry.split == "train":
            tags.update(thing_of(tuple(tag.split())) for tag in entry.tags)
            for part in parts(words):
                names[part].add(parts(words))
    tagged = {thing for thing in unseen if thing in tags}
    inside = {
        thing
        for thing in unseen
        if set.intersection(*(names.get(part, set()) for part in thing.split()))
    }
    return {
        "things": len(unseen),
        "icons": sum(unseen.values()),
        "things_tagged": len(tagged),
        "things_inside": len(inside),
        "things_either": len(tagged | inside),
        "icons_either": sum(unseen[thing] for thing in tagged | inside),
    }


def of_pictures(corpus: IconCorpus, cache_dir: str | None = None) -> dict[str, Any]:
    """What pictures tell: held-out icons with a near-duplicate in `train` of another thing, or of any for `comp`
    (the distance of `duplicates`), and how many icons of `comp` are a drawing of `train` in another place or size.
    """
    entries, pictures = corpus.entries, corpus.pictures(SIZE, cache_dir)
    small_ND = np.concatenate(
        [
            shrink(np.stack([pictures[index].min(2) for index in block]))
            for block in _blocks(range(len(entries)))
        ]
    )
    train = [index for index, entry in enumerate(entries) if entry.split == "train"]
    held_out = [index for index, entry in enumerate(entries) if entry.split != "train"]
    things = [thing_of(tuple(entry.words.split())) for entry in entries]
    near = []
    for block in _blocks(held_out):
        distances = _distances(small_ND[block], small_ND[train])
        for row, column in np.argwhere(distances <= NEAR + 1e-3):
            one, other = block[row], train[column]
            distance = float(np.square(small_ND[one] - small_ND[other]).sum())
            # comp is held out drawing by drawing, and has no near-duplicate at all
            if distance <= NEAR and (entries[one].split == "comp" or things[one] != things[other]):
                near.append(
                    {
                        "held_out": entries[one].id,
                        "split": entries[one].split,
                        "train": entries[other].id,
                        "distance": round(distance, 3),
                    }
                )
    comp = [index for index in held_out if entries[index].split == "comp"]
    unit_train = _unit(pictures[index] for index in train)
    best = np.concatenate(
        [
            (_unit(pictures[index] for index in block) @ unit_train.T).max(1)
            for block in _blocks(comp)
        ]
    )
    return {
        "held_out_icons": len(held_out),
        "near_duplicates": near,
        "comp_icons": len(comp),
        "comp_same_drawing": int((best >= SAME_DRAWING).sum()),
    }


def _blocks(indices: Sequence[int]) -> Iterable[Sequence[int]]:
    return (indices[start : start + _ROWS] for start in range(0, len(indices), _ROWS))


def _distances(one_ND: NDArray[np.float32], other_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances [N, M]."""
    squares = np.square(one_ND).sum(1)[:, None] + np.square(other_MD).sum(1)
    distances: NDArray[np.float32] = squares - 2 * one_ND @ other_MD.T
    return distances


def _unit(pictures: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Inks in the same place and size, of mean 0 and length 1: products are correlations."""
    rows = []
    for pixels in pictures:
        ink = _placed(ink_of(pixels))
        row = np.zeros(36 * 36) if ink is None else ink.ravel() - ink.mean()
        rows.append((row / max(float(np.linalg.norm(row)), 1e-9)).astype(np.float32))
    return np.stack(rows)


if __name__ == "__main__":
    bundled = IconCorpus()
    figures = {"names": of_names(bundled.entries), "pictures": of_pictures(bundled)}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)
