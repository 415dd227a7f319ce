"""What a picture is to follow beside its prompt: objects at boxes, or a picture of a structure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cm3apps.server.errors import APIError, invalid_value
from cm3apps.server.fields import Field, shown
from cm3apps.server.pictures import from_url
from cm3core.boxes import Boxes

if TYPE_CHECKING:
    from cm3apps.server.settings import Limits

#: Boxes of one request.
MOST_BOXES = 32
#: What a structure is, if it is not said.
FEATURE = "edges"
FORM = '{"image_url": "data:...", "feature": "edges"}'
BOX_FORM = '{"label": "bell", "box": [x0, y0, x1, y1]}'


def condition_fields() -> tuple[Field, ...]:
    """Of a generation."""
    return (
        Field(
            name="boxes",
            sort="list",
            most=MOST_BOXES,
            ours=True,
            help=f"objects and where they are: [{BOX_FORM}] in parts of the picture from 0 to 1, "
            "for a model that was tuned for object_to_image",
        ),
        Field(
            name="condition",
            sort="object",
            ours=True,
            help=f"a picture of a structure to follow: {FORM}, for a model that was tuned for structure",
        ),
    )


def condition_of(values: Mapping[str, Any], limits: Limits) -> tuple[str, dict[str, Any]] | None:
    """The ability that a request needs, and the record of its task without the caption; a picture in it
    is an `Upload`.

    Raises:
        APIError: boxes or picture are wrong, or both are given.
    """
    boxes, condition = values.get("boxes"), values.get("condition")
    if boxes and condition:
        raise _wrong("condition", "boxes are also given; leave out one of the two")
    if boxes:
        return "boxes", {"objects": objects_of(boxes, limits)}
    if condition is not None:
        return "structure", _structure(condition, limits)
    return None


def objects_of(boxes: list[Any], limits: Limits) -> str:
    """Boxes in parts of the picture as a model reads them."""
    read = []
    for place, one in enumerate(boxes):
        name = f"boxes[{place}]"
        corners = one.get("box") if isinstance(one, dict) and set(one) == {"label", "box"} else None
        if not isinstance(corners, list) or len(corners) != 4:
            raise _wrong(name, f"must be {BOX_FORM}", "boxes")
        if not all(_is_part(value) for value in corners):
            raise _wrong(
                name, f"its box is {shown(str(corners))}, must be numbers from 0 to 1", "boxes"
            )
        x0, y0, x1, y1 = corners
        if not (x0 < x1 and y0 < y1):
            raise _wrong(name, "its box is empty: x0 must be less than x1, and y0 than y1", "boxes")
        label = Field(name=f"{name}.label", sort="text", most=limits.prompt_characters, help="")
        words = label.read(one["label"]).strip()
        if not words:
            raise _wrong(f"{name}.label", "is empty; name the object", "boxes")
        read.append((words, (float(x0), float(y0), float(x1), float(y1))))
    text = Boxes(tuple(read), (1, 1)).text
    if not text:
        raise _wrong("boxes", "are too small to be seen; draw them larger", "boxes")
    return text


def _is_part(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 1


def _structure(condition: dict[str, Any], limits: Limits) -> dict[str, Any]:
    if not {"image_url"} <= set(condition) <= {"image_url", "feature"}:
        raise _wrong("condition", f"must be {FORM}")
    reader = Field(name="condition.feature", sort="text", most=limits.prompt_characters, help="")
    feature = reader.read(condition.get("feature", FEATURE)).strip()
    if not feature:
        raise _wrong("condition.feature", "is empty; say what the picture shows of the structure")
    return {
        "feature": feature,
        "condition": from_url(condition["image_url"], "condition.image_url"),
    }


def _wrong(place: str, cause: str, param: str = "condition") -> APIError:
    return invalid_value(place, cause, param)
