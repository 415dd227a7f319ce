"""How a request's pictures are returned: format, size, and what the answer says about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cm3apps.server.errors import invalid_value
from cm3apps.server.fields import shown
from cm3apps.server.pictures import Output
from cm3apps.server.settings import Limits

if TYPE_CHECKING:
    from cm3run.model.model import Model

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How the pictures of a request are to be returned, and what their answer says about it."""

    output: Output
    upscale: bool
    size: str
    quality: str
    background: str
    as_url: bool
    with_svg: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], model: Model, limits: Limits) -> Wish:
        """Read the fields; raises `APIError` for a size that the model's pictures can't have."""
        format = values.get("output_format", "png")
        background = values.get("background", "auto")
        if background == "transparent" and format == "jpeg":
            raise invalid_value("background", "JPEG can't be transparent; use png or webp")
        height, width = model.image_size
        size = _size(values.get("size", "auto"), (width, height), limits)
        larger = size is not None and size[0] > width
        return cls(
            output=Output(
                format=format,
                quality=values.get("output_compression", 100),
                size=size,
                transparent=background == "transparent",
            ),
            upscale=larger and "upscaler" in model.recipe.component_names,
            size="{}x{}".format(*(size or (width, height))),
            quality=values.get("quality", "auto"),
            background=background,
            as_url=values.get("response_format") == "url",
            with_svg=_with_svg(values),
        )


def _with_svg(values: Mapping[str, Any]) -> bool:
    asked = bool(values.get("return_svg", False))
    if asked and not can_trace():
        raise invalid_value(
            "return_svg",
            "needs the package vtracer on the server. Next: pip install 'cm3leon[svg]' there, or "
            "leave it out",
        )
    return asked


def can_trace() -> bool:
    """Whether pictures can be made curves here."""
    return find_spec("vtracer") is not None


def _size(text: str, own: tuple[int, int], limits: Limits) -> tuple[int, int] | None:
    """The size asked for; None: the model's own."""
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    fits = match is not None and max(width, height) <= limits.side
    if not fits or abs(width * own[1] - height * own[0]) >= max(own):
        raise invalid_value(
            "size",
            f"is {shown(text)}, must be auto, {own[0]}x{own[1]} (the model's own), or another "
            f"size in this aspect ratio with sides of at most {limits.side}",
        )
    return width, height
