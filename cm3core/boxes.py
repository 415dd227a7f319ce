"""Objects with boxes, as text and back: "bell at (10, 12) -> (40, 44)".

Coordinates refer to the part of the picture that a model sees, the largest centred square: 0 to 255 from left
to right and from top to bottom, whatever the picture's size (CM3leon paper, figure 15).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cm3core.errors import DataError

#: Largest coordinate, at the right and lower edges of what the model sees.
MAX_COORDINATE = 255
_OBJECT = re.compile(r"(.+?) at \((\d+), (\d+)\) -> \((\d+), (\d+)\)(?:, |\.?$)")


def quarter_of(box: tuple[float, float, float, float], side: float = MAX_COORDINATE) -> str:
    """Name the quarter of a square picture that contains the centre of a box.

    Args:
        box: (x0, y0, x1, y1).
        side: of the picture, in the box's units.

    >>> quarter_of((10, 12, 40, 44)), quarter_of((130, 140, 200, 250))
    ('upper left', 'lower right')
    """
    x0, y0, x1, y1 = box
    return f"{'upper' if y0 + y1 < side else 'lower'} {'left' if x0 + x1 < side else 'right'}"


@dataclass(frozen=True)
class Boxes:
    """Objects in a picture, in pixels of the picture as it is stored.

    Args:
        objects: (label, (x0, y0, x1, y1)) of each; x to the right, y down, half open.
        size: (height, width) of the picture in pixels.

    Raises:
        DataError: a box is empty or reaches outside of the picture, or a label is empty.
    """

    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        height, width = self.size
        for label, (x0, y0, x1, y1) in self.objects:
            if not label.strip():
                raise DataError("boxes", "an object has no label", "name it")
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise DataError(
                    f"box of {label!r}",
                    f"({x0:g}, {y0:g}) -> ({x1:g}, {y1:g}) is empty or outside the picture, "
                    f"which is {width} x {height}",
                    "correct it: pixels of the picture as stored, x0 < x1 and y0 < y1",
                )

    def seen(self) -> list[tuple[str, tuple[int, int, int, int]]]:
        """Return the objects in the coordinates of the model's view, cropped to it; objects outside it are dropped.

        >>> Boxes((("bell", (0, 0, 100, 50)),), (100, 200)).seen()
        [('bell', (0, 0, 128, 128))]
        """
        height, width = self.size
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        found = []
        for label, (x0, y0, x1, y1) in self.objects:
            box = tuple(
                round(MAX_COORDINATE * min(max((value - start) / side, 0.0), 1.0))
                for value, start in ((x0, left), (y0, top), (x1, left), (y1, top))
            )
            if box[0] < box[2] and box[1] < box[3]:
                found.append((label, (box[0], box[1], box[2], box[3])))
        return found

    @property
    def text(self) -> str:
        """Return the objects as a text of a document; "" if none is in the model's view."""
        return text_of_boxes(self.seen())


def text_of_boxes(objects: Iterable[tuple[str, tuple[int, int, int, int]]]) -> str:
    """Objects in a model's coordinates as text.

    >>> text_of_boxes([("bell", (10, 12, 40, 44))])
    'bell at (10, 12) -> (40, 44)'
    """
    return ", ".join(
        f"{label} at ({x0}, {y0}) -> ({x1}, {y1})" for label, (x0, y0, x1, y1) in objects
    )


def boxes_in(text: str) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Read the objects from such a text, possibly written by a model; malformed parts are skipped.

    >>> boxes_in("bell at (10, 12) -> (40, 44), key at (0, 0) -> (9")
    [('bell', (10, 12, 40, 44))]
    """
    return [
        (label, (int(x0), int(y0), int(x1), int(y1)))
        for label, x0, y0, x1, y1 in _OBJECT.findall(text)
    ]
