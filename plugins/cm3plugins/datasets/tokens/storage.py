"""Files of token shards: in a folder, or fetched from an object store into the cache and checked there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from cm3core.errors import CM3Error, DataError, MissingPackageError
from cm3core.files import (
    atomic_path,
    cache_folder,
    make_folder,
    open_regular,
    sha256_file,
    write_bytes,
)
from cm3plugins.datasets.hub_data import TOKENS, local
from cm3run.built_once import built_once
from cm3run.hub import is_address
from cm3run.token_shards import StoredFile

T = TypeVar("T")

#: Size limit of a manifest.
_MAX_MANIFEST = 1 << 28
#: Seconds before the second try, doubled for each further one up to the second number.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
#: botocore's errors for missing or partial keys; it may not be installed.
_NO_KEYS = {"NoCredentialsError", "PartialCredentialsError"}
_CORRECT = "correct dataset.path, or the keys in the environment"
_CLOCK = "set this machine's clock, then start again; training resumes"
_AGAIN = "copy it again from its source, or encode the data set again"


class Storage(ABC):
    """Storage of shards."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Return a file's name for messages."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of a small file.

        Raises:
            DataError: it does not exist, or can't be read.
        """

    @abstractmethod
    def checked(self, name: str, num_bytes: int, sha256: str) -> Path:
        """Return the path of a file with this size and SHA-256.

        Raises:
            DataError: it does not exist, can't be read, is truncated or differs.
        """

    @abstractmethod
    def folder_of(self, folder: str, files: Mapping[str, StoredFile]) -> Path:
        """Return the path of a folder with these files, checked as in `checked`."""

    def fetch(self, name: str, num_bytes: int, sha256: str) -> None:  # noqa: B027  # a folder has all files
        """Fetch a file that will be needed soon."""


class FolderStorage(Storage):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            with open_regular(self.folder / name) as file:
                return file.read(_MAX_MANIFEST)
        except OSError as error:
            raise _unreadable(self.place(name), error) from error

    def checked(self, name: str, num_bytes: int, sha256: str) -> Path:
        path = self.folder / name
        try:
            check_bytes(path, self.place(name), num_bytes, sha256)
        except OSError as error:
            raise _unreadable(self.place(name), error) from error
        return path

    def folder_of(self, folder: str, files: Mapping[str, StoredFile]) -> Path:
        for name, file in files.items():
            self.checked(f"{folder}/{name}", file.num_bytes, file.sha256)
        return self.folder / folder


class ObjectStorage(Storage):
    """A folder of an object store, read with fsspec.

    Args:
        address: address with its protocol.
        cache: folder for fetched files, named by their hashes.
        max_bytes: see `TokensSourceConfig.cache_gb`.
        tries: see `TokensSourceConfig`.
        pause: waits for a number of seconds.
    """

    def __init__(
        self,
        address: str,
        cache: Path,
        max_bytes: float | None,
        tries: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address, self.cache = address.rstrip("/"), cache
        self.max_bytes, self.tries, self._pause = max_bytes, tries, pause
        self._files, self._root = _file_system(self.address)

    def place(self, name: str) -> str:
        return f"{self.address}/{name}"

    def read(self, name: str) -> bytes:
        def once() -> bytes:
            # fetched, not opened: opening first requests the size, whose refusal has no reason
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "file"
                self._files.get_file(f"{self._root}/{name}", str(path))
                with path.open("rb") as file:
                    return file.read(_MAX_MANIFEST)

        return self._tried(self.place(name), once)

    def fetch(self, name: str, num_bytes: int, sha256: str) -> None:
        self._fetched(name, num_bytes, sha256)

    def checked(self, name: str, num_bytes: int, sha256: str) -> Path:
        while True:
            path = self._fetched(name, num_bytes, sha256)
            try:
                check_bytes(path, str(path), num_bytes, sha256)
            except FileNotFoundError:
                continue  # another process deleted it to make room
            except DataError:
                path.unlink(missing_ok=True)  # it changed on disk after it was fetched
                path = self._fetched(name, num_bytes, sha256)
            with contextlib.suppress(OSError):
                os.utime(path)
            return path

    def folder_of(self, folder: str, files: Mapping[str, StoredFile]) -> Path:
        hashes = json.dumps({name: file.sha256 for name, file in files.items()}, sort_keys=True)
        name = hashlib.sha256(hashes.encode()).hexdigest()[:24]
        found = cache_folder("folders", name, root=self.cache)
        make_folder(found)
        for name, file in files.items():
            path = self.checked(f"{folder}/{name}", file.num_bytes, file.sha256)
            if not (found / name).is_file():
                write_bytes(found / name, path.read_bytes())
        return found

    def _fetched(self, name: str, num_bytes: int, sha256: str) -> Path:
        """Return the path of a file in the cache, checked when it was fetched."""

        def build(path: Path) -> None:
            self._make_room(num_bytes)

            def once() -> None:
                with atomic_path(path) as temporary:
                    self._files.get_file(f"{self._root}/{name}", str(temporary))
                    check_bytes(temporary, self.place(name), num_bytes, sha256)

            self._tried(self.place(name), once)

        return built_once(
            cache_folder(sha256[:2], root=self.cache) / sha256,
            f"fetching {self.place(name)}",
            lambda path: path if path.is_file() else None,
            build,
            or_alone=False,  # `max_bytes` limits the cache, and no other folder
        )

    def _make_room(self, num_bytes: int) -> None:
        """Delete the least recently used files until `num_bytes` more are within the limit."""
        if self.max_bytes is None:
            return
        now = time.time()
        found = []
        for path in self.cache.glob("??/*"):
            with contextlib.suppress(OSError):
                if len(path.name) == 64:
                    status = path.stat()
                    if (
                        status.st_mtime > now
                    ):  # used before the clock was set back: ages from now on
                        os.utime(path)
                    found.append((min(status.st_mtime, now), status.st_size, path))
        total = sum(size for _, size, _ in found) + num_bytes
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)  # readers keep it open
            total -= size

    def _tried(self, place: str, once: Callable[[], T]) -> T:
        """Return the result of `once`, retried on failure."""
        for number in range(1, self.tries + 1):
            try:
                return once()
            except MissingPackageError:
                raise
            except CM3Error as error:
                if not isinstance(error, DataError) or number == self.tries:
                    raise
                cause = error.cause
            except Exception as error:  # stores raise errors of their own libraries
                lasting = _lasting(place, error)
                if lasting is not None:
                    raise lasting from error
                if number == self.tries:
                    raise DataError(
                        place,
                        f"can't be read after {_times(number)} ({_reason(error)})",
                        _CLOCK
                        if _code(error) == "RequestTimeTooSkewed"
                        else "check the network, the store's address and its keys, then start again; "
                        "training resumes",
                    ) from error
                cause = _reason(error)
            # the store's library waits many minutes for a silent store, and training waits with it
            tqdm.write(
                f"note: {place}: try {number} of {self.tries} failed ({cause})", file=sys.stderr
            )
            self._pause(min(_FIRST_PAUSE_S * 2 ** (number - 1), _LONGEST_PAUSE_S))
        raise AssertionError


def storage_of(path: str, cache: Path, cache_gb: float | None, tries: int) -> Storage:
    """Return the storage for `dataset.path`; `cache`: folder for fetched files; for the other arguments see
    `TokensSourceConfig`."""
    if "://" not in path or is_address(path):
        folder = local(path, TOKENS)
        if not folder.is_dir():
            raise DataError(
                f"dataset.path {folder}", "there is no such folder", "correct dataset.path"
            )
        return FolderStorage(folder)
    limit = None if cache_gb is None else cache_gb * 1e9
    return ObjectStorage(path, cache, limit, tries)


def check_bytes(path: Path, place: str, num_bytes: int, sha256: str) -> None:
    """Raise `DataError` unless a file has this size and SHA-256; `OSError` if it can't be read."""
    size = path.stat().st_size
    if size != num_bytes:
        cause = "is truncated" if size < num_bytes else "is too long"
        raise DataError(place, f"{cause}: {size:,} of {num_bytes:,} bytes", _AGAIN)
    if sha256_file(path) != sha256:
        raise DataError(place, "has changed: its SHA-256 differs from the manifest's", _AGAIN)


def _file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it."""
    place = f"dataset.path {address}"
    try:
        import fsspec.core
    except ModuleNotFoundError as error:
        raise MissingPackageError.extra(place, "fsspec", "s3") from error
    try:
        files, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        protocol = address.partition("://")[0]
        if protocol in ("s3", "s3a"):
            raise MissingPackageError.extra(place, "s3fs", "s3") from error
        raise MissingPackageError(
            place,
            f"fsspec needs a package for {protocol} ({_reason(error)})",
            "pip install that package",
        ) from error
    except ValueError as error:
        raise DataError(
            place, f"fsspec can't use it ({_reason(error)})", "correct dataset.path"
        ) from error
    return files, str(root).rstrip("/")


def _unreadable(place: str, error: OSError) -> DataError:
    cause = (
        "there is no such file"
        if isinstance(error, FileNotFoundError)
        else f"can't be read: {error.strerror or error}"
    )
    return DataError(place, cause, "copy the shards again, or correct dataset.path")


def _lasting(place: str, error: Exception) -> DataError | None:
    """Return the error to report if waiting would not help; None if it may."""
    if type(error).__name__ in _NO_KEYS:
        return DataError(
            place,
            f"the store needs keys ({_reason(error)})",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        )
    if isinstance(error, FileNotFoundError):
        what = "bucket" if _code(error) == "NoSuchBucket" else "file"
        return DataError(place, f"there is no such {what} in the store", _CORRECT)
    # a clock that jumped may be corrected
    if isinstance(error, PermissionError) and _code(error) != "RequestTimeTooSkewed":
        return DataError(place, f"the store refuses to read it ({_reason(error)})", _CORRECT)
    return None


def _code(error: BaseException) -> str:
    """Return S3's name of an error; "" if there is none."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _reason(error: BaseException) -> str:
    """Return the first line of an error's text, or its name."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _times(number: int) -> str:
    return "1 try" if number == 1 else f"{number} tries"
