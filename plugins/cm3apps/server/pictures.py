"""Pictures between the network and arrays: what is sent is decoded within limits, results are encoded."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from cm3apps.server.errors import APIError, in_one_line, invalid_value
from cm3core import images
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3run.attribution import encoded
from cm3run.transparency import without_background

if TYPE_CHECKING:
    from cm3run.attribution import PictureFacts

_PREFIX = "data:"


@dataclass(eq=False)
class Upload:
    """A picture that was sent: `data` as it came, empty once it is decoded; `place` for messages."""

    data: bytes
    place: str

    def size(self, most: int) -> tuple[int, int]:
        """(width, height) as the picture's head says; more than `most` pixels are refused."""
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
        """Whether it can be transparent somewhere, as its head says."""
        try:
            return images.has_alpha(self.data, self.place, most)
        except DataError as error:
            raise self._refused(error) from error

    def seen(self, size: tuple[int, int], most: int) -> PixelArray:
        """The picture as a model of pictures of `size` (height, width) sees it."""
        return images.fit(self.pixels(most), size)

    def alpha(self, most: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """How opaque each pixel is, uint8 [height, width]; None without transparency."""
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
        APIError: it is another URL, which is never fetched: a server that fetched what it is told to
            would open its own network to strangers.
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
    """The picture of a base64 text."""
    try:
        return Upload(base64.b64decode(data, validate=True), place)
    except (binascii.Error, ValueError) as error:
        raise APIError(
            400, f"{place}: is not base64 ({error})", param=place, code="invalid_base64"
        ) from None


def pictures_of(values: Mapping[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> list[Upload]:
    """The pictures of an edit: files of the form, or `images` of JSON."""
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
    """How results are encoded.

    Args:
        format: "png", "jpeg" or "webp".
        quality: of JPEG and WebP, 0..100.
        size: (width, height) of the picture; None: as the model drew it.
        transparent: make the white around the drawing transparent.
    """

    format: str = "png"
    quality: int = 100
    size: tuple[int, int] | None = None
    transparent: bool = False

    def encode(self, pixels: PixelArray, facts: PictureFacts) -> bytes:
        """The picture's bytes, with what made it and the documents that were in front."""
        return encoded(self._shown(pixels), self.format, facts, quality=self.quality)

    def preview(self, pixels: PixelArray) -> bytes:
        """The bytes of a picture that is still growing, or of none that a model made."""
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
        """For data: URLs."""
        return f"image/{self.format}"


def text_of_base64(data: bytes) -> str:
    """base64, as JSON holds it."""
    return base64.b64encode(data).decode("ascii")
