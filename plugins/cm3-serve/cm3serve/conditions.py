"""Conditions beside the prompt: objects at boxes, or a picture of a structure; and the extraction of structures from
uploaded pictures.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cm3core.boxes import Boxes
from cm3core.config.schema import to_plain
from cm3core.errors import CM3Error
from cm3core.images import fit
from cm3run.model.conditions import condition_config, open_condition
from cm3serve.errors import APIError, invalid_value
from cm3serve.fields import Field, shown
from cm3serve.pictures import Output, from_url, text_of_base64

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.condition import Condition
    from cm3run.model.model import Model
    from cm3serve.settings import Limits


#: Maximum number of boxes in a request.
MOST_BOXES = 32
#: The default name of a structure.
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
            help=f"objects and their places: [{BOX_FORM}] as fractions of the picture from 0 to 1, "
            "for a model tuned for object_to_image",
        ),
        Field(
            name="condition",
            sort="object",
            ours=True,
            help=f"a picture of a structure to follow: {FORM}, for a model tuned for structure",
        ),
    )


def condition_of(values: Mapping[str, Any], limits: Limits) -> tuple[str, dict[str, Any]]:
    """The ability that a request with boxes or a condition needs, and the record of its task without the caption. A
    picture in the record is an `Upload`.

    Raises:
        APIError: boxes or picture are wrong, or both are given.
    """
    boxes, condition = values.get("boxes"), values.get("condition")
    if boxes and condition:
        raise _wrong("condition", "boxes are also given; leave out one of the two")
    if boxes:
        return "boxes", {"objects": objects_of(boxes, limits)}
    return "structure", _structure(values["condition"], limits)


def objects_of(boxes: list[Any], limits: Limits) -> str:
    """Convert boxes from fractions of the picture to a model's text."""
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
        raise _wrong("boxes", "are too small for the model; draw them larger", "boxes")
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
        raise _wrong("condition.feature", "is empty; name the kind of structure, such as edges")
    return {
        "feature": feature,
        "condition": from_url(condition["image_url"], "condition.image_url"),
    }


def _wrong(place: str, cause: str, param: str = "condition") -> APIError:
    return invalid_value(place, cause, param)


#: The condition that returns its picture unchanged.
_NOT_DRAWN = "as_is"
#: Maximum number of conditions kept in memory: some have a network.
MOST_KEPT = 8
#: Longest side of an input picture, in pixels. Some conditions take half a minute for the largest pictures
#: that may be sent, and don't stop if the client disconnects.
LONGEST = 1024


class Structures:
    """The conditions that extract structures from pictures, each built on first use."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Condition, str]] = OrderedDict()
        self._lock = threading.Lock()

    def offered(self, model: Model) -> list[dict[str, str]]:
        """The available conditions for pictures, as (name, name of the structure for a model trained
        with it)."""
        found = []
        for name in model.components.registry.names("condition"):
            try:
                condition, feature = self.of(model, name)
            except CM3Error:  # a package or weights are missing
                continue
            if condition.draws_from == "image" and name != _NOT_DRAWN:
                found.append({"name": name, "feature": feature})
        return found

    def of(self, model: Model, name: str) -> tuple[Condition, str]:
        """A condition with the model's training settings, else with its defaults, and the name of its structure.

        Raises:
            CM3Error: the condition is unknown, or can't be built here.
        """
        key = json.dumps([name, to_plain(condition_config(model, name))])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = open_condition(model, name)
                if len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def check(self, model: Model, name: str) -> None:
        """Raise `APIError` for a condition that is not available."""
        offered = [one["name"] for one in self.offered(model)]
        if name not in offered:
            known = ", ".join(offered) or "none: the packages that draw them are not installed"
            raise invalid_value("condition", f"is {shown(name)}, must be one of {known}")

    def drawn(self, model: Model, name: str, pixels: PixelArray) -> Structure:
        """The structure of a picture.

        Args:
            model: the model that will follow the structure.
            name: the condition's name.
                pixels: uint8 [height, width, 3], see `smaller`.
        """
        condition, feature = self.of(model, name)
        seen = fit(condition.draw(pixels), model.image_size)
        return Structure(name, feature, seen)


@dataclass(frozen=True, eq=False)
class Structure:
    """An extracted structure.

    Args:
        condition: the condition's name.
        feature: the structure's name for the model.
        pixels: uint8 [height, width, 3], in the model's size.
    """

    condition: str
    feature: str
    pixels: PixelArray

    def answer(self) -> dict[str, Any]:
        """The response to a request, with its picture encoded."""
        return {
            "created": int(time.time()),
            "condition": self.condition,
            "feature": self.feature,
            "size": f"{self.pixels.shape[1]}x{self.pixels.shape[0]}",
            "b64_json": text_of_base64(Output().preview(self.pixels)),
        }


def smaller(pixels: PixelArray) -> PixelArray:
    """The picture, reduced so that its longer side is at most `LONGEST`."""
    height, width = pixels.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return pixels
    return fit(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
