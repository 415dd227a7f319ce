"""What is right in a picture of a scene: its reading compared with the truth.

Every fact is named as in GenEval (arXiv:2310.11513): single object, two objects, counting, position, colours (here: the
background's).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from cm3core.boxes import boxes_in, text_of_boxes
from cm3plugins.scenes.composing import Item, Raster, Scene
from cm3plugins.scenes.keys import RELATIONS, STEPS
from cm3plugins.scenes.reader import Found, Reading
from cm3plugins.scenes.wording import Words

#: (x0, y0, x1, y1), half open.
Box: TypeAlias = tuple[int, int, int, int]
#: Least overlap of a box that is found, as in PASCAL VOC.
LEAST_OVERLAP = 0.5
#: Names of the facts, in the order in which they are reported.
FACTS = ("single_object", "two_objects", "counting", "position", "colours", "styles")


def facts(reading: Reading, scene: Scene, raster: Raster) -> dict[str, bool]:
    """What a caption says, fact by fact, and whether the picture shows it; only those that the caption says.

    Objects are judged without their number and place: "single_object" of one kind of object, "two_objects" of two or more.
    "counting": of several equal objects, their number. "position": the named places, or the relation.
    """
    own = {
        item: [one for one in reading.found if one.concept == item.concept] for item in scene.items
    }
    there = [bool(found) for found in own.values()]
    name = "single_object" if len(scene.items) == 1 else "two_objects"
    result = {name: all(there), "colours": reading.background == scene.background}
    result["styles"] = all(
        found and all(one.style == item.style for one in found) for item, found in own.items()
    )
    if any(len(item.corners) > 1 for item in scene.items):
        result["counting"] = all(len(found) == len(item.corners) for item, found in own.items())
    if scene.relation or any(item.place for item in scene.items):
        result["position"] = _in_place(own, scene, raster)
    return result


def is_right(reading: Reading, scene: Scene, raster: Raster) -> bool:
    """Whether a picture shows what the caption says, in every fact, in the named sizes, and nothing else."""
    wanted = Counter(
        (item.concept, item.style, item.size, len(item.corners)) for item in scene.items
    )
    counted = Counter((one.concept, one.style, one.size) for one in reading.found)
    found = Counter((*kind, number) for kind, number in counted.items())
    return reading.is_whole and wanted == found and all(facts(reading, scene, raster).values())


def _in_place(own: Mapping[Item, Sequence[Found]], scene: Scene, raster: Raster) -> bool:
    for item, found in own.items():
        if item.place and [one.corner for one in found] != [raster.corner(item.size, item.place)]:
            return False
    if not scene.relation:
        return True
    first, second = (own[item] for item in scene.items[:2])
    columns, rows = STEPS[scene.relation]
    # "left of": all of the first end before any of the second begins, and so on for the others
    return bool(first and second) and all(
        _before(a, b, raster, 0 if columns else 1)
        if columns + rows > 0
        else _before(b, a, raster, 0 if columns else 1)
        for a in first
        for b in second
    )


def _before(a: Found, b: Found, raster: Raster, axis: int) -> bool:
    """Whether one object ends along an axis before another begins."""
    return a.corner[axis] + raster.sizes[a.size] <= b.corner[axis]


def kept(before: Scene, after: Scene, reading: Reading) -> bool:
    """Whether an edit left the rest as it was: every object that both scenes have is still there, at its place and in its
    size, and so is the background if both have the same."""
    found = Counter((one.concept, one.style, one.size, one.corner) for one in reading.found)
    both = objects(before) & objects(after)
    same_background = (
        before.background != after.background or reading.background == after.background
    )
    return same_background and not both - found


def edited(before: Scene, after: Scene, reading: Reading) -> bool:
    """Whether what an edit changes is as it should be: new objects are there, old ones aren't, the background is new."""
    found = Counter((one.concept, one.style, one.size, one.corner) for one in reading.found)
    new, gone = objects(after) - objects(before), objects(before) - objects(after)
    background = before.background == after.background or reading.background == after.background
    return reading.is_whole and background and not new - found and not gone & found


def objects(scene: Scene) -> Counter[Any]:
    """(concept, style, size, corner) of each object."""
    return Counter(
        (item.concept, item.style, item.size, corner)
        for item in scene.items
        for corner in item.corners
    )


def pasted(reading: Reading, scene: Scene, raster: Raster) -> bool:
    """Whether every named object that was found is where and as large as its document shows it: a copy, not a composition."""
    own = [one for one in reading.found if one.concept in {item.concept for item in scene.items}]
    return bool(own) and all(one.corner == raster.middle[one.size] for one in own)


def descriptions(scene: Scene, raster: Raster) -> Iterator[Scene]:
    """The scene with everything that a caption may say of its places: named places, or a relation of two items."""
    yield scene
    placed = [
        replace(
            item,
            place=raster.place_of(item.size, item.corners[0]) if len(item.corners) == 1 else "",
        )
        for item in scene.items
    ]
    yield replace(scene, items=tuple(placed), relation=None)
    bare = [replace(item, place="") for item in scene.items]
    if len(bare) != 2:
        return
    for items in itertools.permutations(bare):
        for relation in RELATIONS:
            one = replace(scene, items=items, relation=relation)
            own = {
                item: [Found(item.concept, item.style, item.size, c, 0.0) for c in item.corners]
                for item in items
            }
            if _in_place(own, one, raster):
                yield one


def is_caption(text: str, scene: Scene, raster: Raster, words: Words) -> bool:
    """Whether a text is one of the captions that are true of a scene, in any of their wordings."""
    told = " ".join(text.casefold().rstrip(". ").split())
    return any(
        told == one.casefold()
        for described in descriptions(scene, raster)
        for one in words.captions(described)
    )


def located(text: str, wanted: Sequence[tuple[str, Box]]) -> tuple[float, bool]:
    """How well an answer's boxes are the true ones.

    Args:
        text: as `cm3core.boxes.text_of_boxes` writes them, possibly malformed.
        wanted: (label, box) of each true one, at least one.

    Returns:
        the mean overlap, 0..1, of boxes of the same label, matched one to one for the greatest sum; a missing box, one too
        many and what is no box count 0. And whether all are found, each with `LEAST_OVERLAP`, and there is nothing else.

    >>> fox = ("fox", (0, 0, 10, 10))
    >>> located("fox at (0, 0) -> (10, 5)", [fox])
    (0.5, True)
    >>> located("fox at (0, 0) -> (10, 10), fox at (90", [fox])
    (0.5, False)
    """
    told = " ".join(text.casefold().rstrip(". ").split())
    try:
        found = boxes_in(told)
    except ValueError:  # a number of thousands of digits
        found = []
    number = len(found) + (text_of_boxes(found) != told)
    overlaps = [
        [_overlap(box, own) if name == label.casefold() else 0.0 for label, own in wanted]
        for name, box in found
    ]
    total = _most(overlaps) / max(len(wanted), number)
    near = _most([[float(one >= LEAST_OVERLAP) for one in row] for row in overlaps])
    return total, near == len(wanted) == number


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes.

    >>> _overlap((0, 0, 4, 4), (2, 0, 6, 4)), _overlap((0, 0, 4, 4), (3, 3, 1, 1))
    (0.3333333333333333, 0.0)
    """
    width, height = (min(a[end], b[end]) - max(a[end - 2], b[end - 2]) for end in (2, 3))
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return both / (sum(areas) - both)


def _most(gains: Sequence[Sequence[float]]) -> float:
    """The greatest sum of gains with at most one of each row and of each of the few columns.

    >>> _most([[0.75, 0.5], [0.5, 0.0]])
    1.0
    """
    best = {0: 0.0}  # bits of the columns in use -> sum
    for row in gains:
        for used, total in list(best.items()):
            for column, gain in enumerate(row):
                if not used & 1 << column:
                    after = used | 1 << column
                    best[after] = max(best.get(after, 0.0), total + gain)
    return max(best.values())
