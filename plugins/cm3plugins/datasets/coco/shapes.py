"""Segments and skeletons of COCO's annotations: read, checked, and drawn as pictures.

Coordinates are pixels of the whole picture, so a drawn picture is cropped and resized like the picture
it belongs to. Run lengths go down the columns, and the first run is background; in compressed form
each is stored as the difference to the run before the previous one, in groups of five bits
(cocodataset/cocoapi, `common/maskApi.c`).
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError
from cm3plugins.datasets.annotations import list_in, number_of, object_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.document import PixelArray

#: Part of the drawn pictures' keys; change it when they are drawn differently.
DRAWING = "coco-drawing-1"
#: Rounded annotations may exceed the picture's edge by up to this many pixels.
ROUNDING = 1.0
_GOLDEN = 0.6180339887498949

#: A segment: polygons (x0, y0, x1, y1, ...), or the lengths of its runs.
Segment = tuple[tuple[float, ...] | int, ...]


@dataclass(frozen=True)
class DrawnPicture:
    """A picture drawn when it is loaded."""

    key: str
    draw: Callable[[], PixelArray] = field(compare=False, repr=False)

    def load(self) -> PixelArray:
        """Return RGB pixels uint8 [height, width, 3]."""
        return self.draw()


def drawn(content: Any, draw: Callable[[], PixelArray]) -> DrawnPicture:
    """Return a picture drawn by `draw`; `content`: everything that determines it, as JSON values."""
    text = json.dumps([DRAWING, content])
    return DrawnPicture(f"drawn-{hashlib.sha256(text.encode()).hexdigest()}", draw)


def colour(number: int, offset: float = 0.0) -> tuple[int, int, int]:
    """Return a bright colour for a category or a limb; adjacent numbers have different colours.

    >>> colour(0), colour(1)
    ((242, 85, 85), (85, 131, 242))
    """
    hue = (number * _GOLDEN + offset) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def box_of(
    place: str, values: Mapping[str, Any], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) of an annotation's `bbox` (x, y, width, height), in a picture of (height, width).

    Overhang from rounding is cut off.

    Raises:
        DataError: the box is missing, empty or outside the picture.
    """
    numbers = [number_of(place, "bbox", value) for value in list_in(place, values, "bbox")]
    if len(numbers) != 4:
        raise DataError(
            place, f"its 'bbox' has {len(numbers)} numbers", "write [x, y, width, height]"
        )
    x, y, width, height = numbers
    whole = (x, y, x + width, y + height)
    x0, y0 = max(x, 0.0), max(y, 0.0)
    x1, y1 = min(whole[2], float(size[1])), min(whole[3], float(size[0]))
    cut = max(x0 - x, y0 - y, whole[2] - x1, whole[3] - y1)
    if cut > ROUNDING or not (x0 < x1 and y0 < y1):
        raise DataError(
            place,
            f"its box [{x:g}, {y:g}, {width:g}, {height:g}] is empty or outside the picture, which "
            f"has {size[1]} x {size[0]} pixels",
            "correct it: [x, y, width, height] in pixels",
        )
    return x0, y0, x1, y1


def segment_of(place: str, values: Mapping[str, Any], size: tuple[int, int]) -> Segment:
    """Return an annotation's `segmentation` in a picture of (height, width).

    Raises:
        DataError: it is missing, or does not fit the picture.
    """
    value = values.get("segmentation")
    if isinstance(value, list):
        if not value:
            raise DataError(place, "its 'segmentation' is empty", "remove the annotation")
        return tuple(_polygon(place, one, size) for one in value)
    runs = object_of(f"{place}, segmentation", value)
    given = runs.get("size")
    if given != list(size):
        raise DataError(
            place,
            f"its mask has the size {given!r}, but the picture has {list(size)} (height, width)",
            "use the mask of this picture",
        )
    counts = runs.get("counts")
    lengths = decompressed(place, counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in lengths
    ):
        raise DataError(place, "its 'counts' are not run lengths", "correct them")
    if sum(lengths) != size[0] * size[1]:
        raise DataError(
            place,
            f"the runs of its mask have {sum(lengths)} pixels, but the picture has {size[0] * size[1]}",
            "use the mask of this picture",
        )
    return tuple(lengths)


def _polygon(place: str, value: Any, size: tuple[int, int]) -> tuple[float, ...]:
    numbers = (
        tuple(number_of(place, "segmentation", one) for one in value)
        if isinstance(value, list)
        else ()
    )
    if len(numbers) < 6 or len(numbers) % 2:
        raise DataError(
            place,
            "its 'segmentation' has a polygon with fewer than three points",
            "write [x0, y0, x1, y1, x2, y2, ...]",
        )
    for number, most in zip(numbers, [size[1], size[0]] * (len(numbers) // 2), strict=True):
        if not -ROUNDING <= number <= most + ROUNDING:
            raise DataError(
                place,
                f"its 'segmentation' contains {number:g}, outside the picture, which has "
                f"{size[1]} x {size[0]} pixels",
                "correct it",
            )
    return numbers


def decompressed(place: str, text: str) -> list[int]:
    """Decode compressed run lengths.

    >>> decompressed("", "52203")
    [5, 2, 2, 2, 5]

    Raises:
        DataError: the text is invalid or truncated.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(place, "its 'counts' are not compressed run lengths", "correct them")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last group; its highest bit is the sign
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError(place, "its 'counts' are truncated", "correct them")
    return lengths


def mask_of(segment: Segment, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a segment's pixels, bool [height, width]."""
    import numpy as np
    from PIL import Image as Pillow
    from PIL import ImageDraw

    polygons = [part for part in segment if isinstance(part, tuple)]
    if polygons:
        layer = Pillow.new("1", (size[1], size[0]))
        for polygon in polygons:
            ImageDraw.Draw(layer).polygon(polygon, fill=1)
        return np.asarray(layer, np.bool_)
    values = np.arange(len(segment)) % 2 == 1
    flat = np.repeat(values, np.asarray(segment, np.int64))
    return flat.reshape((size[1], size[0])).T


def draw_segments(segments: Sequence[tuple[int, Segment]], size: tuple[int, int]) -> PixelArray:
    """Draw segments in the colours of their categories on black, later ones in front."""
    import numpy as np

    picture = np.zeros((*size, 3), np.uint8)
    for category, segment in segments:
        picture[mask_of(segment, size)] = colour(category)
    return picture


def draw_panoptic(ids: PixelArray, categories: Mapping[int, int], place: str) -> PixelArray:
    """Draw a panoptic PNG in the colours of its categories, unlabelled pixels in black.

    Args:
        ids: uint8 [height, width, 3]; a segment's id is R + 256 G + 65536 B, 0 is none.
        categories: id -> category.
        place: its name in messages.

    Raises:
        DataError: a pixel has an id without a category.
    """
    import numpy as np

    numbers = ids.astype(np.int64) @ np.array([1, 256, 65536])
    found, places = np.unique(numbers, return_inverse=True)
    if unknown := [one for one in found.tolist() if one and one not in categories]:
        raise DataError(
            place,
            f"has pixels of a segment {unknown[0]}, which is not in 'segments_info'",
            "use the PNG of this annotation",
        )
    colours = [colour(categories[one]) if one else (0, 0, 0) for one in found.tolist()]
    return np.asarray(colours, np.uint8)[places.reshape(numbers.shape)]


#: A joint: x, y, and whether it is labelled.
Joint = tuple[float, float, bool]


def joints_of(
    place: str, values: Mapping[str, Any], size: tuple[int, int], num: int
) -> tuple[Joint, ...]:
    """Return an annotation's `keypoints`, each [x, y, v]; v = 0 means not labelled.

    Raises:
        DataError: there are not `num` keypoints, or a labelled one is outside the picture.
    """
    numbers = [
        number_of(place, "keypoints", value) for value in list_in(place, values, "keypoints")
    ]
    if len(numbers) != 3 * num:
        raise DataError(
            place,
            f"its 'keypoints' has {len(numbers)} numbers, but its category has {num} keypoints",
            "write x, y and visibility of each keypoint",
        )
    joints = []
    for x, y, visible in zip(*[iter(numbers)] * 3, strict=True):
        inside = -ROUNDING <= x <= size[1] + ROUNDING and -ROUNDING <= y <= size[0] + ROUNDING
        if visible and not inside:
            raise DataError(
                place,
                f"its keypoint ({x:g}, {y:g}) is outside the picture, which has "
                f"{size[1]} x {size[0]} pixels",
                "correct it",
            )
        joints.append((x, y, bool(visible)))
    return tuple(joints)


def draw_poses(
    people: Sequence[tuple[Joint, ...]],
    skeleton: Sequence[tuple[int, int]],
    size: tuple[int, int],
) -> PixelArray:
    """Draw skeletons on black: limbs as lines, joints as dots, each in a colour of its own.

    Args:
        people: joints of each person.
        skeleton: the limbs, as pairs of joint indices from 0.
        size: (height, width).
    """
    import numpy as np
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.new("RGB", (size[1], size[0]))
    pen, width = ImageDraw.Draw(picture), max(2, min(size) // 64)
    for joints in people:
        for number, (first, second) in enumerate(skeleton):
            (x0, y0, seen), (x1, y1, also_seen) = joints[first], joints[second]
            if seen and also_seen:
                pen.line((x0, y0, x1, y1), fill=colour(number), width=width)
        for number, (x, y, seen) in enumerate(joints):
            if seen:
                box = (x - width, y - width, x + width, y + width)
                pen.ellipse(box, fill=colour(number, 0.5))
    return np.asarray(picture).copy()
