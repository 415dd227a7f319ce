"""Index of picture files, kept between runs: content hashes, sizes, and undecodable files.

A picture's key is the SHA-256 of its bytes: it is the same wherever the file is, so codes computed
once are found again. Reading every byte at every start would be slow, so hashes are kept in a small
SQLite file in the cache folder, by path, size and modification time. Pictures that turned out to be
undecodable are recorded too, and skipped from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError
from cm3core.files import cache_directory, check_regular, user_path
from cm3plugins.datasets.pictures import NEXT_STEP, examine

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: Part of the file's name; changed when the tables or the rules of `examine` change.
VERSION = 2
TABLES = """
CREATE TABLE IF NOT EXISTS files
    (path TEXT PRIMARY KEY, size INT, mtime_ns INT, key TEXT, width INT, height INT, cause TEXT, step TEXT);
CREATE TABLE IF NOT EXISTS shards (path TEXT PRIMARY KEY, size INT, mtime_ns INT, content TEXT);
CREATE TABLE IF NOT EXISTS undecodable (key TEXT PRIMARY KEY, cause TEXT);
"""


@dataclass(frozen=True)
class StoredPicture:
    """A picture file, or a member of a tar.

    Args:
        key: SHA-256 of its bytes, hexadecimal.
        width, height: pixels, from its header, upright.
        place: its name in messages.
        path: the file that holds it.
        offset, size: where it is in the file, in bytes.
        index_path: the index that records it if it can't be decoded.
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
        """Its bytes.

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
        """RGB pixels uint8 [height, width, 3].

        Raises:
            DataError: as `content`, or it can't be decoded; then it is skipped from the next start on.
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

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection
        self._undecodable = dict(connection.execute("SELECT key, cause FROM undecodable"))

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path | None = None) -> Iterator[PictureIndex]:
        """The index at `path` (None: in the cache folder), saved when the block ends.

        It is saved after an interrupt or error too.

        Raises:
            DataError: it can't be read or written.
        """
        path = path or index_path(None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=60)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error
        try:
            connection.executescript(TABLES)
            yield cls(path, connection)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        finally:
            # reported above; a full disk must not hide what happened in the block
            with contextlib.suppress(sqlite3.Error):
                connection.commit()
            connection.close()

    def picture(self, path: Path, place: str) -> StoredPicture:
        """The picture at `path`; read only if it is new or has changed.

        Raises:
            DataError: missing, not a regular file, too large, unreadable, broken or known to be
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
        name = str(path.absolute())
        row = self._connection.execute(
            "SELECT size, mtime_ns, key, width, height, cause, step FROM files WHERE path = ?",
            (name,),
        ).fetchone()
        if row is None or row[:2] != (status.st_size, status.st_mtime_ns):
            row = (status.st_size, status.st_mtime_ns, *_read_facts(path, place))
            self._connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (name, *row)
            )
        size, _, key, width, height, cause, step = row
        if cause is not None:
            raise DataError(place, cause, step)
        return self.known(StoredPicture(key, width, height, place, path, 0, size, self.path))

    def known(self, picture: StoredPicture) -> StoredPicture:
        """`picture`; raises `DataError` if it was found to be undecodable before."""
        if (cause := self.cause_of(picture.key)) is not None:
            raise DataError(picture.place, cause, NEXT_STEP)
        return picture

    def cause_of(self, key: str) -> str | None:
        """Why the picture with this key could not be decoded before; None if it could."""
        return self._undecodable.get(key)

    def shard(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What `read(path)` returns for the shard, cached until the shard changes.

        The result of `read` must be serialisable as JSON.
        """
        status = path.stat()
        name = str(path.absolute())
        row = self._connection.execute(
            "SELECT size, mtime_ns, content FROM shards WHERE path = ?", (name,)
        ).fetchone()
        if row is not None and row[:2] == (status.st_size, status.st_mtime_ns):
            return json.loads(row[2])
        content = read(path)
        self._connection.execute(
            "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)",
            (name, status.st_size, status.st_mtime_ns, json.dumps(content)),
        )
        self._connection.commit()
        return content

    def mark_undecodable(self, key: str, cause: str) -> None:
        """Record that the picture's header is fine but its pixels can't be decoded."""
        self._undecodable[key] = cause
        self._connection.execute("INSERT OR REPLACE INTO undecodable VALUES (?, ?)", (key, cause))


def index_path(cache_dir: str | None) -> Path:
    """Path of the index: in `cache_dir`, or in the user's cache folder if that is None."""
    folder = cache_directory() if cache_dir is None else user_path(cache_dir)
    return folder / "datasets" / f"pictures-v{VERSION}.sqlite"


def facts_of(data: bytes, place: str) -> tuple[str, int, int, str | None, str | None]:
    """(key, width, height, cause, next step) of a picture's bytes; the last two None if intact."""
    key = hashlib.sha256(data).hexdigest()
    try:
        return (key, *examine(data, place), None, None)
    except DataError as error:
        return (key, 0, 0, error.cause, error.next_step)


def _unusable(path: Path, error: Exception) -> DataError:
    return DataError(
        str(path),
        f"the index of pictures can't be used: {error}",
        "delete it, or set CM3_CACHE to a folder that can be written",
    )


def _read_facts(path: Path, place: str) -> tuple[str, int, int, str | None, str | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            place, f"can't be read: {error.strerror}", "correct the path or its permissions"
        ) from error
    return facts_of(data, place)
