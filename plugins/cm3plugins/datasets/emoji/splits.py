"""The fixed splits: `train`, `comp` (this concept in this style held out) and `unseen` (the whole
concept held out).

Membership is a hash of names, never of order, so adding a picture moves no other picture.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from cm3plugins.datasets.emoji.join import Concept

SPLITS = ("train", "comp", "unseen")
NUM_UNSEEN_CONCEPTS = 60
COMP_SHARE = 0.06
MIN_STYLES = 4
"""A concept must exist in this many styles to be held out, in whole or in one style."""

_SEED = "cm3leon emoji splits 1"
_CONCRETE = frozenset(
    {"animals and nature", "food and drink", "travel and places", "activities", "objects"}
)
_ABSTRACT_WORDS = frozenset(
    (
        "o'clock",
        "thirty",
        "moon",
        "globe",
        "face",
        "clock",
        "button",
        "sign",
        "symbol",
        "suit",
        "flag",
        "map",
        "link",
        "level",
        "chart",
        "man",
        "woman",
        "person",
        "men",
        "women",
        "people",
        "boy",
        "girl",
    )
)


def unit_hash(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the parts and the splits' seed only."""
    digest = hashlib.sha256("\0".join((_SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def words(label: str) -> frozenset[str]:
    """Return the words of a label, plural endings cut and hyphens opened: `musical notes` ->
    musical, note."""
    return frozenset(word.removesuffix("s") for word in label.replace("-", " ").split())


def family(label: str) -> str:
    """Return the thing a label names: its last word, plural ending cut. `red apple` belongs to
    `apple`."""
    return label.replace("-", " ").split()[-1].removesuffix("s")


def unseen_concepts(
    styles: Mapping[str, Iterable[str]], concepts: Iterable[Concept]
) -> frozenset[str]:
    """Choose the concepts that are held out whole.

    They are things (no people, faces, gestures, signs, clocks), exist in enough styles, and the
    last word of their label is in no other label: neither man/woman/person variants nor near-twins
    (`tiger`, `tiger face`) stand on both sides.

    Args:
        styles: concept -> the styles it has pictures in.
        concepts: all concepts.
    """
    concepts = list(concepts)
    families = Counter(word for concept in concepts for word in words(concept.label))
    eligible = [
        concept.concept
        for concept in concepts
        if concept.category in _CONCRETE
        and len(set(styles.get(concept.concept, ()))) >= MIN_STYLES
        and families[family(concept.label)] == 1
        and not _ABSTRACT_WORDS & words(concept.label)
    ]
    return frozenset(
        sorted(eligible, key=lambda name: unit_hash("unseen", name))[:NUM_UNSEEN_CONCEPTS]
    )


def assign_splits(
    cells: Iterable[tuple[str, str]], concepts: Iterable[Concept]
) -> dict[tuple[str, str], str]:
    """Return the split of every (concept, style) cell.

    Args:
        cells: the cells that have a picture, after exact duplicates are gone.
        concepts: all concepts.
    """
    cells = list(cells)
    styles: dict[str, set[str]] = defaultdict(set)
    for concept, style in cells:
        styles[concept].add(style)
    unseen = unseen_concepts(styles, concepts)

    def split(concept: str, style: str) -> str:
        if concept in unseen:
            return "unseen"
        held_out = (
            len(styles[concept]) >= MIN_STYLES and unit_hash("comp", concept, style) < COMP_SHARE
        )
        return "comp" if held_out else "train"

    return {(concept, style): split(concept, style) for concept, style in cells}
