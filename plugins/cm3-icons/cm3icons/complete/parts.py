"""What a set has of a thing: for "car off" its "car", and examples such as "bell off", which it has without "off", too, so
that they show how it is added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cm3run.words import words_of

_Words = tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """Drawings of a set that a thing can be composed of, as positions.

    Args:
        base: of the thing without some words of its name.
        examples: of other things with just these words, in the same places of their names; each with the drawing of that
            thing without them.
    """

    base: tuple[int, ...]
    examples: Mapping[int, int]


def parts_of(name: str, names: Sequence[str], left_out: Collection[int] = ()) -> list[Parts]:
    """Find parts of a thing, in every way that the set's names allow.

    Args:
        name: of the thing.
        names: of the set's drawings, in order.
        left_out: drawings that are not to be used.

    >>> parts_of("car off", ["bell", "bell off", "car"])
    [Parts(base=(2,), examples={1: 0})]
    """
    asked = tuple(words_of(name))
    drawn: dict[_Words, list[int]] = defaultdict(list)
    for place, one in enumerate(names):
        if place not in left_out:
            drawn[tuple(words_of(one))].append(place)
    found = []
    for start in range(len(asked)):
        for stop in range(start + 1, len(asked) + 1):
            base = asked[start:stop]
            if base == asked or base not in drawn:
                continue
            examples = dict(_examples(asked, start, stop, drawn))
            if examples:
                found.append(Parts(tuple(drawn[base]), examples))
    return found


def _examples(
    asked: _Words, start: int, stop: int, drawn: Mapping[_Words, Sequence[int]]
) -> Iterator[tuple[int, int]]:
    """Yield drawings of things with the words around a part of a name, and of the same things without these."""
    before, behind = asked[:start], asked[stop:]
    for whole, places in drawn.items():
        stem = whole[start : len(whole) - len(behind)]
        if (
            stem not in ((), asked[start:stop])
            and stem in drawn
            and whole == before + stem + behind
        ):
            for place in places:
                yield place, drawn[stem][0]
