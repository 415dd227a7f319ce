"""Pairs of versions of an icon, by name: another style, or a badge more or less."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cm3plugins.datasets.icons.entries import IconEntry

#: Last word of a name -> what adds it, and what removes it.
BADGES = {
    "off": ("cross it out", "remove the slash"),
    "slash": ("cross it out", "remove the slash"),
    "plus": ("add a plus", "remove the plus"),
    "add": ("add a plus", "remove the plus"),
    "minus": ("add a minus", "remove the minus"),
    "check": ("add a check mark", "remove the check mark"),
    "lock": ("add a lock", "remove the lock"),
    "x": ("add a cross", "remove the cross"),
    "heart": ("add a heart", "remove the heart"),
    "star": ("add a star", "remove the star"),
    "alert": ("add an exclamation mark", "remove the exclamation mark"),
    "search": ("add a magnifying glass", "remove the magnifying glass"),
}


class Pair(NamedTuple):
    """Positions of the two icons in the corpus, and what changes the first into the second."""

    source: int
    target: int
    instruction: str


def kind_of(pair: Pair) -> str:
    """What a pair differs in.

    >>> kind_of(Pair(0, 1, "make it filled")), kind_of(Pair(0, 1, "remove the slash"))
    ('style', 'badge')
    """
    return "style" if pair.instruction.startswith("make it ") else "badge"


def pairs_of(entries: Sequence[IconEntry]) -> list[Pair]:
    """All pairs of a corpus, in its order. Names with the same words and style in a set are told apart
    by nothing, so only the first of them is taken."""
    versions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for index, entry in enumerate(entries):
        versions[entry.set_name, entry.words].setdefault(entry.style, index)
    return [*_styles(versions), *_badges(versions)]


def _styles(versions: dict[tuple[str, str], dict[str, int]]) -> Iterator[Pair]:
    """Every version to every other of the same drawing."""
    for styles in versions.values():
        for before, source in styles.items():
            for after, target in styles.items():
                if before != after:
                    yield Pair(source, target, style_change(before, after))


def style_change(before: str, after: str) -> str:
    """What changes one style into another: the words that are new, else those that go.

    >>> style_change("outline rounded", "filled rounded"), style_change("filled sharp", "filled")
    ('make it filled', 'make it not sharp')
    """
    new = [word for word in after.split() if word not in before.split()]
    gone = [word for word in before.split() if word not in after.split()]
    return f"make it {' '.join(new)}" if new else f"make it not {' '.join(gone)}"


def _badges(versions: dict[tuple[str, str], dict[str, int]]) -> Iterator[Pair]:
    """A drawing and the same with a badge, in the same style, both ways."""
    for (set_name, words), styles in versions.items():
        plain, _, badge = words.rpartition(" ")
        if badge not in BADGES or (set_name, plain) not in versions:
            continue
        add, remove = BADGES[badge]
        for style, target in styles.items():
            source = versions[set_name, plain].get(style)
            if source is not None:
                yield Pair(source, target, add)
                yield Pair(target, source, remove)
