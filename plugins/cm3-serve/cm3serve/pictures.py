"""Pictures between the network and arrays: uploads are decoded within limits, results are encoded."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from cm3core import images
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3run.attribution import encoded
from cm3run.transparency import without_background
from cm3serve.errors import APIError, in_one_line, invalid_value

if TYPE_CHECKING:
    from cm3run.attribution import PictureFacts

_PREFIX = "data:"


@dataclass(eq=False)
class Upload:
    """An uploaded picture: its `data`, empty after decoding, and its `place` for messages."""

    data: bytes
    place: str

    def size(self, most: int) -> tuple[int, int]:
        """(width, height) from the picture's head; more than `most` pixels are refused."""
        try:
            return images.size_of(self.data, self.place, most)
        except DataError as error:
            raise self._refused(error) from error

    def pixels(self, most: int) -> PixelArray:
        """RGB uint8 [height, width, 3]; more than `most` pixels are refused before decoding."""
        try:
            images.check_pixels(self.data, self.place, most)
            return images.open_image(self.data, self.place)
        except DataError as error:
            raise self._refused(error) from error

    def has_alpha(self, most: int) -> bool:
        """Whether its head allows transparency."""
        try:
            return images.has_alpha(self.data, self.place, most)
        except DataError as error:
            raise self._refused(error) from error

    def seen(self, size: tuple[int, int], most: int) -> PixelArray:
        """The picture as a model with this picture size (height, width) sees it."""
        return images.fit(self.pixels(most), size)

    def alpha(self, most: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """The opacity of each pixel, uint8 [height, width]; None without transparency."""
        try:
            return images.open_alpha(self.data, self.place, max_pixels=most)
        except DataError as error:
            raise self._refused(error) from error

    def _refused(self, error: DataError) -> APIError:
        text = in_one_line(error)
        return APIError(400, text, param=self.place, code="invalid_image")


def from_url(url: Any, place: str) -> Upload:
    """The picture of a `data:` URL.

    Raises:
        APIError: the URL is of another type. It is never fetched, because a server that fetches
            clients' URLs would open its own network to them.
    """
    if not isinstance(url, str) or not url.startswith(_PREFIX):
        raise APIError(
            400,
            f"{place}: is not a data: URL; this server never fetches addresses. Next: send the "
            "picture itself, as data:image/png;base64,...",
            param=place,
            code="invalid_image_url",
        )
    head, comma, data = url[len(_PREFIX) :].partition(",")
    if not comma or not head.endswith(";base64"):
        raise APIError(
            400,
            f"{place}: is not base64 (data:image/png;base64,...)",
            param=place,
            code="invalid_image_url",
        )
    return from_base64(data, place)


def from_base64(data: str, place: str) -> Upload:
    """The picture in a base64 text."""
    try:
        return Upload(base64.b64decode(data, validate=True), place)
    except (binascii.Error, ValueError) as error:
        raise APIError(
            400, f"{place}: is not base64 ({error})", param=place, code="invalid_base64"
        ) from None


def pictures_of(values: Mapping[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> list[Upload]:
    """The pictures of an edit: files in a form, or `images` in JSON."""
    found = [*uploads.get("image", ())]
    if "image" in values:
        found.append(_referred(values["image"], "image"))
    for place, one in enumerate(values.get("images", [])):
        found.append(_referred(one, f"images[{place}]"))
    return found


def mask_of(values: Mapping[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> Upload | None:
    """The mask of an edit."""
    if "mask" in values:
        return _referred(values["mask"], "mask")
    return next(iter(uploads.get("mask", ())), None)


def _referred(value: Any, place: str) -> Upload:
    if isinstance(value, dict) and "file_id" in value:
        raise invalid_value(
            place,
            "file_id names a stored file, but this server stores none; send the picture itself",
        )
    return from_url(value.get("image_url") if isinstance(value, dict) else value, place)


@dataclass(frozen=True, kw_only=True)
class Output:
    """The encoding of results.

    Args:
        format: "png", "jpeg" or "webp".
        quality: the quality of JPEG and WebP, 0..100.
        size: (width, height) of the picture; None: the model's size.
        transparent: make the white around the drawing transparent.
    """

    format: str = "png"
    quality: int = 100
    size: tuple[int, int] | None = None
    transparent: bool = False

    def encode(self, pixels: PixelArray, facts: PictureFacts) -> bytes:
        """The picture's bytes, with its metadata and credits."""
        return encoded(self._shown(pixels), self.format, facts, quality=self.quality)

    def preview(self, pixels: PixelArray) -> bytes:
        """The bytes of a partial picture, or of a picture that no model made."""
        shown = self._shown(pixels)
        if self.format == "png":
            return images.png_bytes(shown)
        file = io.BytesIO()
        Pillow.fromarray(shown).save(file, format=self.format.upper(), quality=self.quality)
        return file.getvalue()

    def _shown(self, pixels: PixelArray) -> PixelArray:
        shown = without_background(pixels) if self.transparent else pixels
        if self.size is not None and self.size != (pixels.shape[1], pixels.shape[0]):
            smaller = min(self.size) < min(pixels.shape[:2])
            resampling = Pillow.Resampling.LANCZOS if smaller else Pillow.Resampling.BICUBIC
            shown = np.asarray(Pillow.fromarray(shown).resize(self.size, resampling))
        return shown

    @property
    def media_type(self) -> str:
        """The media type for data: URLs."""
        return f"image/{self.format}"


def text_of_base64(data: bytes) -> str:
    """Bytes as base64 text, for JSON."""
    return base64.b64encode(data).decode("ascii")
