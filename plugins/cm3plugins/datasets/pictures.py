"""Picture files of data sets: checks of header and end, and an index stored between runs.

`examine` is cheap (no pixel is decoded) and finds nearly all broken files when a data set is
opened; decoding finds the rest.

A picture's key is the SHA-256 of its bytes, wherever the file is, so cached codes are found again.
Reading every byte at each start would be slow, so hashes are stored in a small SQLite file in the
cache folder, by path, size and modification time. Pictures that can't be decoded are recorded, too,
and skipped from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError, FileError
from cm3core.files import cache_directory, check_regular, user_path

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from cm3core.document import PixelArray

#: File name suffixes of pictures, in lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
#: Suffixes of unsupported pictures, which are reported.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".svg", ".jxl", ".psd")
NEXT_STEP = "replace or remove it"
#: EXIF's orientation tag.
_ORIENTATION = 0x0112
#: Exceptions that Pillow raises for broken headers.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def examine(data: bytes, place: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a picture file's bytes, upright as in `open_image`, without
    decoding it.

    Raises:
        DataError: the file is empty, not a picture supported by `cm3core.images`, too large, or truncated.
    """
    from cm3core.images import MAX_PIXELS

    if not data:
        raise DataError(place, "is empty (0 bytes)", NEXT_STEP)
    picture = _open(data, place)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(
            place,
            f"has {width} x {height} pixels, more than {MAX_PIXELS:,}",
            "make it smaller first",
        )
    if picture.format is not None and (cause := _damage(data, picture.format)):
        raise DataError(place, cause, NEXT_STEP)
    return (height, width) if _lies_on_its_side(picture) else (width, height)


def _lies_on_its_side(picture: Picture) -> bool:
    """Whether the EXIF orientation turns the picture by a quarter."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return False  # Pillow would decode the file to search after the pixels
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags
            orientation = picture.getexif().get(_ORIENTATION)
        return orientation in (5, 6, 7, 8)
    except _BROKEN:
        return False  # decoding reports it


def _open(data: bytes, place: str) -> Picture:
    """Open the picture and read its header."""
    import warnings

    import PIL
    from PIL import Image as Pictures

    from cm3core.images import FORMATS, MAX_PIXELS

    try:
        with warnings.catch_warnings():
            # `examine` has its own limit
            warnings.simplefilter("ignore", Pictures.DecompressionBombWarning)
            return Pictures.open(io.BytesIO(data), formats=FORMATS)
    except Pictures.DecompressionBombError as error:
        raise DataError(
            place, f"has more than {MAX_PIXELS:,} pixels", "make it smaller first"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            place, "is not a picture", f"convert it to one of {', '.join(FORMATS)}"
        ) from error
    except _BROKEN as error:
        raise DataError(place, f"has a broken header ({error})", NEXT_STEP) from error


def _damage(data: bytes, kind: str) -> str | None:
    """Return the fault in the file's structure; None if it is intact. Reads only markers and lengths."""
    if kind == "PNG":
        return _png_damage(data)
    if kind in ("JPEG", "MPO"):
        return (
            None if _has_jpeg_end(data) else "is truncated: the end marker of the JPEG is missing"
        )
    if kind == "GIF":
        return (
            None
            if data.rstrip(b"\0\r\n").endswith(b";")
            else "is truncated: the end marker of the GIF is missing"
        )
    if kind not in ("BMP", "WEBP"):
        return None  # no cheap check
    announced = int.from_bytes(data[2:6] if kind == "BMP" else data[4:8], "little") + (
        0 if kind == "BMP" else 8
    )
    if announced > len(data):
        return f"is truncated: {len(data)} of {announced} bytes"
    return None


def _png_damage(data: bytes) -> str | None:
    """Check a PNG: a signature of 8 bytes and chunks (length, name, content, checksum), IEND last."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            return f"is damaged: wrong checksum of chunk {name.decode('latin-1')} at byte {place}"
        if name == b"IEND":
            return None
        place = end + 4
    return "is truncated: the last chunk of a PNG (IEND) is missing"


def _has_jpeg_end(data: bytes) -> bool:
    """Whether there is an end marker after the start of the scan.

    A thumbnail in the header has an end marker too.
    """
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def suffix_of(data: bytes) -> str:
    """Return the file name suffix for a picture's bytes.

    Raises:
        DataError: it is not a picture.
    """
    kind = (_open(data, "picture").format or "png").lower()
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")


#: Part of the file's name; change it with the tables or the rules of `examine`.
VERSION = 2
TABLES = """
CREATE TABLE IF NOT EXISTS files
    (path TEXT PRIMARY KEY, size INT, mtime_ns INT, key TEXT, width INT, height INT, cause TEXT, step TEXT);
CREATE TABLE IF NOT EXISTS shards (path TEXT PRIMARY KEY, size INT, mtime_ns INT, content TEXT);
CREATE TABLE IF NOT EXISTS undecodable (key TEXT PRIMARY KEY, cause TEXT);
CREATE TABLE IF NOT EXISTS looks (key TEXT PRIMARY KEY, version INT, look BLOB);
"""


@dataclass(frozen=True)
class StoredPicture:
    """A picture file, or a member of a tar.

    Args:
        key: SHA-256 of its bytes, hexadecimal.
        width, height: pixels, from its header, upright.
        place: its name in messages.
        path: file that contains it.
        offset, size: its position in the file, in bytes.
        index_path: index that records it if it can't be decoded.
    """

    key: str
    width: int
    height: int
    place: str
    path: Path
    offset: int
    size: int
    index_path: Path = field(compare=False, repr=False)

    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            DataError: the file is gone, or has changed.
        """
        check_regular(self.path, self.place)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(
                self.place,
                f"can no longer be read: {error.strerror}",
                "put it back, or start again",
            ) from error
        if hashlib.sha256(data).hexdigest() != self.key:
            raise DataError(self.place, "has changed since the data set was opened", "start again")
        return data

    def load(self) -> PixelArray:
        """Return RGB pixels uint8 [height, width, 3].

        Raises:
            DataError: as in `content`, or it can't be decoded; then it is skipped from the next start on.
        """
        data = self.content()
        from cm3core.images import open_image

        try:
            return open_image(data, self.place)
        except DataError as error:
            with PictureIndex.open(self.index_path) as index:
                index.mark_undecodable(self.key, error.cause)
            raise DataError(
                self.place, error.cause, f"{NEXT_STEP}; it is skipped from the next start on"
            ) from error


class PictureIndex:
    """The open index; use `PictureIndex.open`."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, stack: contextlib.ExitStack
    ) -> None:
        self.path, self._connection, self._stack = path, connection, stack
        self._reads_new = False
        self._undecodable = dict(connection.execute("SELECT key, cause FROM undecodable"))

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path | None = None) -> Iterator[PictureIndex]:
        """Open the index at `path` (None: in the cache folder); it is saved when the block ends.

        It is also saved after an interrupt or error.

        Raises:
            DataError: it can't be read or written.
        """
        from cm3run.built_once import place_to_write

        path = path or index_path(None)
        try:
            if not path.exists():
                path = place_to_write(path, "reading pictures")
            connection = sqlite3.connect(path, timeout=60)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error
        with contextlib.ExitStack() as stack:
            yield from cls._opened(path, connection, stack)

    @classmethod
    def _opened(
        cls, path: Path, connection: sqlite3.Connection, stack: contextlib.ExitStack
    ) -> Iterator[PictureIndex]:
        try:
            connection.executescript(TABLES)
            yield cls(path, connection, stack)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        finally:
            # reported above; a full disk must not hide the block's own error
            with contextlib.suppress(sqlite3.Error):
                connection.commit()
            connection.close()

    def picture(self, path: Path, place: str) -> StoredPicture:
        """Return the picture at `path`; reads it only if it is new or has changed.

        Raises:
            DataError: it is missing, not a regular file, too large, unreadable, broken or known to be
                undecodable.
        """
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            cause = (
                "there is no such file"
                if isinstance(error, FileNotFoundError)
                else f"can't be read: {error}"
            )
            raise DataError(place, cause, "correct the path, or remove the record") from error
        from cm3core.images import check_file_bytes

        check_regular(path, place)
        check_file_bytes(status.st_size, place)
        query = "SELECT size, mtime_ns, key, width, height, cause, step FROM files WHERE path = ?"
        state = status.st_size, status.st_mtime_ns
        row = self._row(query, path, state)
        if row is None:
            row = (*state, *_read_facts(path, place))
            self._keep(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(str(path.absolute()), *row)],
            )
        size, _, key, width, height, cause, step = row
        if cause is not None:
            raise DataError(place, cause, step)
        return self.known(StoredPicture(key, width, height, place, path, 0, size, self.path))

    def known(self, picture: StoredPicture) -> StoredPicture:
        """Return `picture`; raises `DataError` if decoding it failed before."""
        if (cause := self.cause_of(picture.key)) is not None:
            raise DataError(picture.place, cause, NEXT_STEP)
        return picture

    def cause_of(self, key: str) -> str | None:
        """Return why decoding the picture with this key failed before; None if it didn't."""
        return self._undecodable.get(key)

    def shard(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """Return the result of `read(path)` for the shard, cached until the shard changes.

        The result must be serialisable as JSON.
        """
        status = path.stat()
        state = status.st_size, status.st_mtime_ns
        row = self._row("SELECT size, mtime_ns, content FROM shards WHERE path = ?", path, state)
        if row is not None:
            return json.loads(row[2])
        content = read(path)
        self._keep(
            "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)",
            [(str(path.absolute()), *state, json.dumps(content))],
        )
        self._connection.commit()
        return content

    def _row(self, query: str, path: Path, state: tuple[int, int]) -> tuple[Any, ...] | None:
        """Return what is known of a file with this size and time; None: nothing, and only this process reads new files."""

        def found() -> tuple[Any, ...] | None:
            row: tuple[Any, ...] | None = self._connection.execute(
                query, (str(path.absolute()),)
            ).fetchone()
            return row if row is not None and row[:2] == state else None

        row = found()
        if row is None and not self._reads_new:
            from cm3run.built_once import only_builder

            self._reads_new = True
            with contextlib.suppress(FileError):  # what nobody can write, nobody waits for
                self._stack.enter_context(only_builder(self.path, "reading new pictures"))
            row = found()  # another process may have read it in the meantime
        return row

    def _keep(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, unless the index can only be read; then their files are read each time."""
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_FULL")):
                raise

    def looks(
        self, loaders: Mapping[str, Callable[[], PixelArray]]
    ) -> dict[str, bytes | DataError]:
        """Return key -> look (`looks.look_of`) of pictures, or why one can't be decoded; each is decoded only once.

        Args:
            loaders: key -> what decodes the picture, which may open the index itself.
        """
        from cm3plugins.datasets.looks import VERSION as LOOKS_VERSION
        from cm3plugins.datasets.looks import look_of
        from cm3run.progress import make_bar

        rows = self._connection.execute(
            "SELECT key, look FROM looks WHERE version = ?", (LOOKS_VERSION,)
        )
        found: dict[str, bytes | DataError] = {key: look for key, look in rows if key in loaders}
        new = [(key, load) for key, load in loaders.items() if key not in found]
        # no transaction stays open while a picture is decoded: a bad one is recorded by another connection
        self._connection.commit()
        unsaved: list[tuple[str, int, bytes]] = []
        try:
            for key, load in make_bar(
                new, desc="comparing looks", unit=" pictures", delay=2, leave=False
            ):
                try:
                    look = look_of(load())
                except DataError as error:
                    found[key] = error
                    continue
                found[key] = look
                unsaved.append((key, LOOKS_VERSION, look))
        finally:
            self._keep("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", unsaved)
        return found

    def mark_undecodable(self, key: str, cause: str) -> None:
        """Record that the picture's header is valid but its pixels can't be decoded."""
        self._undecodable[key] = cause
        self._keep("INSERT OR REPLACE INTO undecodable VALUES (?, ?)", [(key, cause)])


def index_path(cache_dir: str | None) -> Path:
    """Return the path of the index: in `cache_dir`, or in the user's cache folder if that is None."""
    folder = cache_directory() if cache_dir is None else user_path(cache_dir)
    return folder / "datasets" / f"pictures-v{VERSION}.sqlite"


def facts_of(data: bytes, place: str) -> tuple[str, int, int, str | None, str | None]:
    """Return (key, width, height, cause, next step) of a picture's bytes; the last two are None if intact."""
    key = hashlib.sha256(data).hexdigest()
    try:
        return (key, *examine(data, place), None, None)
    except DataError as error:
        return (key, 0, 0, error.cause, error.next_step)


def _unusable(path: Path, error: Exception) -> DataError:
    return DataError(
        str(path),
        f"the index of pictures can't be used: {error}",
        "delete it, or set CM3_CACHE to a writable folder",
    )


def _read_facts(path: Path, place: str) -> tuple[str, int, int, str | None, str | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            place, f"can't be read: {error.strerror}", "correct the path or its permissions"
        ) from error
    return facts_of(data, place)
