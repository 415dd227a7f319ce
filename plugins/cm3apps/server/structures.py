"""What draws the structure of a picture: the conditions that can be built here, each built once."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cm3apps.server.errors import invalid_value
from cm3apps.server.fields import shown
from cm3apps.server.pictures import Output, text_of_base64
from cm3core.config.schema import to_plain
from cm3core.errors import CM3Error
from cm3core.images import fit
from cm3run.model.conditions import condition_config, open_condition

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.condition import Condition
    from cm3run.model.model import Model

#: A condition that shows a picture as it is draws nothing.
_NOT_DRAWN = "as_is"
#: Conditions that are kept: some hold a network.
MOST_KEPT = 8
#: Longest side of a picture that is drawn from, in pixels: some conditions take half a minute for the
#: largest that may be sent, and a client that goes away doesn't end that.
LONGEST = 1024


class Structures:
    """The conditions that draw structures of pictures, each built when it is first asked for."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Condition, str]] = OrderedDict()
        self._lock = threading.Lock()

    def offered(self, model: Model) -> list[dict[str, str]]:
        """Conditions that are drawn from a picture, and can be here: name, and what a model that was
        trained with it calls it."""
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
        """A condition as the model was trained with it, else with its defaults, and what it is called.

        Raises:
            CM3Error: there is none of this name, or it can't be built here.
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
        """Raise `APIError` for a condition that is not offered."""
        offered = [one["name"] for one in self.offered(model)]
        if name not in offered:
            known = ", ".join(offered) or "none: the packages that draw them are not installed"
            raise invalid_value("condition", f"is {shown(name)}, must be one of {known}")

    def drawn(self, model: Model, name: str, pixels: PixelArray) -> Structure:
        """The structure of a picture.

        Args:
            model: what is to follow the structure.
            name: of the condition.
            pixels: uint8 [height, width, 3], see `smaller`.
        """
        condition, feature = self.of(model, name)
        seen = fit(condition.draw(pixels), model.image_size)
        return Structure(name, feature, seen)


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure that was drawn.

    Args:
        condition: its name.
        feature: what the model calls it.
        pixels: uint8 [height, width, 3], in the model's size.
    """

    condition: str
    feature: str
    pixels: PixelArray

    def answer(self) -> dict[str, Any]:
        """The answer to a request, its picture encoded."""
        return {
            "created": int(time.time()),
            "condition": self.condition,
            "feature": self.feature,
            "size": f"{self.pixels.shape[1]}x{self.pixels.shape[0]}",
            "b64_json": text_of_base64(Output().preview(self.pixels)),
        }


def smaller(pixels: PixelArray) -> PixelArray:
    """The picture, its longer side at most `LONGEST`."""
    height, width = pixels.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return pixels
    return fit(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
