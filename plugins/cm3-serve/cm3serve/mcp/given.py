"""What agents give to the tools: pictures as text, and folders, which must be inside those that the user allowed."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from cm3core.errors import DataError, FileError

#: Largest picture that a tool takes, in bytes and in pixels.
MOST_BYTES, MOST_PIXELS = 2 << 20, 16_000_000
#: Longest text that can be such a picture in base64.
MOST_CHARACTERS = MOST_BYTES * 4 // 3 + 100
#: Longest text of a call, and names of one.
MOST_LETTERS, MOST_NAMES = 1000, 20
#: Pictures that a server remembers by their ids.
MOST_KEPT = 64
_ID = "picture:"


class Pictures:
    """The files of the last pictures that the tools returned, by an id that depends on their bytes alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, content: bytes) -> str:
        """Remember a file; return its id."""
        id = _ID + sha256(content).hexdigest()[:24]
        self._kept[id] = content
        self._kept.move_to_end(id)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return id

    def read(self, given: str) -> bytes:
        """The file that an argument names or contains.

        Args:
            given: the id of a picture, the text of an SVG, or base64 of a picture, also as a `data:` URL.

        Raises:
            DataError: the id is not known, or the text is neither SVG nor base64, or too long.

        >>> Pictures().read("data:image/png;base64,aGk=")
        b'hi'
        """
        text = given.strip()
        if text.startswith(_ID):
            if text not in self._kept:
                cause = f"{text[:60]!r} is not among the last {MOST_KEPT} pictures of this server"
                raise DataError("picture", cause, "pass the picture itself, or draw it again")
            return self._kept[text]
        if len(text) > MOST_CHARACTERS:
            cause = f"has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read"
            raise DataError("picture", cause, "reduce its size first")
        if text.startswith("<"):
            return text.encode("utf-8", "replace")
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            content = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(
                "picture",
                f"is neither SVG nor base64 ({error})",
                "pass the id of a picture of this server, the text of an SVG, or base64 of a PNG",
            ) from None
        if not content:
            raise DataError(
                "picture", "is empty", "pass the base64 of a PNG, or the text of an SVG"
            )
        return content


def is_svg(content: bytes) -> bool:
    """Whether a file starts like an SVG.

    >>> is_svg(b" <svg/>"), is_svg(b"PNG")
    (True, False)
    """
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


class AllowedFolders:
    """The folders in which tools may read and write.

    Args:
        folders: that the user allowed (`--allow`).

    Raises:
        FileError: one of them is no folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for one in folders:
            if not one.is_dir():
                raise FileError(f"--allow {one}", "is not a folder", "name a folder that exists")
        self.folders = [one.resolve() for one in folders]

    def path(self, given: str, place: str) -> Path:
        """A path inside an allowed folder, without links.

        Args:
            given: the path; a relative one is inside an allowed folder, the first in which it exists.
            place: its name in messages.

        Raises:
            FileError: it is outside all allowed folders, also by `..` or by a link.
        """
        if not self.folders:
            raise FileError(
                place,
                "no folder is allowed on this server",
                "ask the user to start it with `cm3 mcp --allow FOLDER`",
            )
        try:
            found = [(folder, (folder / given).resolve()) for folder in self.folders]
            inside = [path for folder, path in found if path.is_relative_to(folder)]
            if inside:
                return next((path for path in inside if path.exists()), inside[0])
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # such as a null byte, or a ring of links
            raise FileError(place, f"is no path ({error})", "name a folder") from error
        names = ", ".join(map(str, self.folders))
        raise FileError(
            place, f"{given[:200]!r} is outside the allowed folders", f"use a folder in {names}"
        )
