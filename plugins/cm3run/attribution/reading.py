"""What files of generated pictures say of themselves. They may come from anyone: nothing that they name is opened."""

from __future__ import annotations

import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image as Pillow
from PIL import PngImagePlugin

from cm3core.errors import DataError
from cm3core.files import check_regular
from cm3core.images import FORMATS, MAX_FILE_BYTES, open_image
from cm3run.attribution.credits import DOCUMENTS, RETRIEVED, Credit, PictureFacts, credit_in
from cm3run.attribution.writing import FACTS, XMP_KEY

#: Larger SVGs, and larger files in a zip, are refused unread; and zips of more files.
MAX_BYTES, MAX_FILES = 64 << 20, 10_000
#: One of these keys is in every file that names its documents.
_MADE_BY = ("recipe_hash", "original")
#: What `zipfile` raises of damaged files: its own error is one of many.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OSError,
    struct.error,
)
_NEXT = "name a picture that cm3 generate or cm3 serve wrote"


@dataclass(frozen=True)
class FileFacts:
    """What a file says.

    Args:
        texts: what made it, by key, without the documents.
        credits: the documents that were in front; of files of earlier versions, nothing but ids.
        is_credited: whether it says more of them than their ids.
    """

    texts: Mapping[str, str]
    credits: tuple[Credit, ...]
    is_credited: bool

    def again(self, **texts: str) -> PictureFacts:
        """What is written with another version of the picture; `texts`: more, by key."""
        own = {key: text for key, text in self.texts.items() if key != XMP_KEY}
        return PictureFacts(own | texts, self.credits)


def facts_in(content: bytes, place: str) -> FileFacts:
    """What a picture's bytes say: PNG, SVG, JPEG or WebP.

    Raises:
        DataError: it is no picture, says nothing, or what it says is damaged. `place`: its name in messages.
    """
    texts = _in_svg(content, place) if _is_svg(content) else _in_picture(content, place)
    if not any(key in texts for key in _MADE_BY):
        raise DataError(place, "does not say what made it", _NEXT)
    return _facts(texts, place)


def facts_in_zip(content: bytes, place: str) -> dict[str, FileFacts]:
    """What the pictures of a zip say, by their names; those that say nothing are left out.

    Raises:
        DataError: it is no zip, is too large, or no picture in it says what made it.
    """
    found: dict[str, FileFacts] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES or sum(one.file_size for one in members) > MAX_BYTES * 16:
                raise DataError(place, "unpacks to more than a set of pictures", _NEXT)
            for one in members:
                if one.filename.endswith((".png", ".svg", ".jpeg", ".jpg", ".webp")):
                    if one.file_size > MAX_BYTES:
                        raise DataError(f"{place}: {one.filename}", "is too large", _NEXT)
                    with archive.open(one) as file:
                        inner = file.read(MAX_BYTES + 1)
                    try:
                        found[one.filename] = facts_in(inner, f"{place}: {one.filename}")
                    except DataError as error:
                        if error.cause != "does not say what made it":
                            raise
    except DataError:
        raise
    except _BROKEN_ZIP as error:
        raise DataError(place, f"is a damaged zip ({error})", "get it again") from error
    if not found:
        raise DataError(place, "holds no picture that says what made it", _NEXT)
    return found


def facts_of_file(path: str | Path) -> FileFacts | None:
    """What a picture's file says; None: it is no picture, or says nothing that can be read."""
    try:
        check_regular(path, str(path))
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            return None
        return facts_in(Path(path).read_bytes(), str(path))
    except (DataError, OSError):
        return None


def is_zip(content: bytes) -> bool:
    """Whether a file's bytes begin like those of a zip."""
    return content[:4] == b"PK\x03\x04"


def _is_svg(content: bytes) -> bool:
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and b"<svg" in head


def _in_svg(content: bytes, place: str) -> dict[str, str]:
    if len(content) > MAX_BYTES:
        raise DataError(place, f"has more than {MAX_BYTES:,} bytes", _NEXT)
    return _in_xml(content, place)


def _in_xml(content: bytes, place: str) -> dict[str, str]:
    """The chunks that the element of our facts holds."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(place, "has a document type, which is not read", _NEXT)
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(place, f"is not well-formed XML ({error})", _NEXT) from error
    element = next(root.iter(FACTS), None)
    if element is None:
        return {}
    values = _json(element.text or "", place)
    if not isinstance(values, dict):
        raise _damaged(place)
    return {str(key): str(value) for key, value in values.items()}


def _in_picture(content: bytes, place: str) -> dict[str, str]:
    open_image(
        content, place
    )  # reports what is wrong with a broken file; text may also follow the pixels
    with Pillow.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        if isinstance(image, PngImagePlugin.PngImageFile):
            return {key: str(value) for key, value in image.text.items()}
        packet = image.info.get("xmp")
    if not isinstance(packet, bytes):
        return {}
    return _in_xml(packet.rstrip(b"\0"), place)


def _facts(texts: Mapping[str, str], place: str) -> FileFacts:
    ids = _json(texts.get(RETRIEVED, "[]"), place)
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise _damaged(place)
    others = {key: text for key, text in texts.items() if key not in (RETRIEVED, DOCUMENTS)}
    if DOCUMENTS not in texts:
        return FileFacts(others, tuple(map(Credit, ids)), False)
    documents = _json(texts[DOCUMENTS], place)
    try:
        if not isinstance(documents, list):
            raise TypeError("no list")
        return FileFacts(others, tuple(map(credit_in, documents)), True)
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(place) from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(place) from error


def _damaged(place: str) -> DataError:
    return DataError(place, "its metadata are damaged", "generate the picture again")
