"""The manifest of token shards: their files with hashes, and the tools that made them. Also decides which documents
become shards, before any is encoded and identically in every process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.document import text_of
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3core.interfaces.dataset import DocumentSource, Provenance, provenance_in

MANIFEST = "manifest.json"
FORMAT = "cm3 token shards 1"
_HASH = re.compile(r"[0-9a-f]{64}")
#: Name of a file beside the manifest: not a path, not hidden.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


@dataclass(frozen=True)
class StoredFile:
    """A file: size in bytes, and hexadecimal SHA-256."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo:
    """A shard: its file's name, bytes and SHA-256, and its documents."""

    name: str
    num_bytes: int
    sha256: str
    num_documents: int


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that made ids or codes: its name and config in the recipe, its fingerprint, and its files by name
    if they are stored."""

    name: str
    config: Mapping[str, Any]
    fingerprint: str
    files: Mapping[str, StoredFile] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitInfo:
    """A split: its shards in order, the numbers of skipped records and of duplicates, and the numbers of documents
    by provenance."""

    shards: tuple[ShardInfo, ...]
    num_skipped: int
    num_duplicates: int
    provenance: tuple[tuple[Provenance, int], ...]

    @property
    def num_documents(self) -> int:
        """Number of documents in all shards."""
        return sum(shard.num_documents for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """The complete manifest.

    Args:
        text_tokenizer, image_tokenizer: made the ids and codes.
        grid: (rows, columns) of codes of a picture.
        task: name of the task that made the documents; "" if none did.
        plan: hash of everything that determines the shards.
        splits: by name.
    """

    text_tokenizer: TokenizerInfo
    image_tokenizer: TokenizerInfo
    grid: tuple[int, int]
    task: str
    plan: str
    splits: Mapping[str, SplitInfo]

    def fingerprint(self, split: str) -> str:
        """Hash of all documents of a split."""
        shards = [shard.sha256 for shard in self.splits[split].shards]
        return hashlib.sha256(" ".join(["token shards", *shards]).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it into the shards' folder."""
        values = asdict(self)
        for name, split in self.splits.items():
            values["splits"][name]["provenance"] = [
                {**one.stated(), "documents": number} for one, number in split.provenance
            ]
        text = json.dumps({"format": FORMAT, **values}, indent=1, ensure_ascii=False)
        write_text(folder / MANIFEST, text + "\n")

    @classmethod
    def parse(cls, content: bytes, place: str) -> Manifest:
        """Parse a manifest file.

        Raises:
            DataError: not a manifest, or of another version. `place`: its name in messages.
        """
        try:
            values = json.loads(content)
            given = values["format"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DataError(
                place, "is not the manifest of token shards", "write them with 'cm3 data encode'"
            ) from error
        if given != FORMAT:
            raise DataError(
                place,
                f"has the format {str(given)[:60]!r}, but this version reads {FORMAT!r}",
                "use the version that wrote the shards, or encode the data set again",
            )
        try:
            return _manifest(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                place,
                f"is damaged ({type(error).__name__}: {error})",
                "copy it again from its source",
            ) from error


def shard_of(values: Mapping[str, Any]) -> ShardInfo:
    """A shard from `dataclasses.asdict`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    name = values["name"]
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not a file's name")
    file = _file(values)
    return ShardInfo(
        name, file.num_bytes, file.sha256, _number(values["num_documents"], "num_documents", 1)
    )


def _manifest(values: Mapping[str, Any]) -> Manifest:
    rows, columns = (_number(one, "grid", 1) for one in values["grid"])
    return Manifest(
        _tokenizer(values["text_tokenizer"]),
        _tokenizer(values["image_tokenizer"]),
        (rows, columns),
        str(values["task"]),
        str(values["plan"]),
        {str(name): _split(split) for name, split in values["splits"].items()},
    )


def _split(values: Mapping[str, Any]) -> SplitInfo:
    split = SplitInfo(
        tuple(shard_of(shard) for shard in values["shards"]),
        _number(values["num_skipped"], "num_skipped", 0),
        _number(values["num_duplicates"], "num_duplicates", 0),
        tuple(provenance_of(one) for one in values["provenance"]),
    )
    if sum(number for _, number in split.provenance) != split.num_documents:
        raise ValueError("licences of another number of documents")
    return split


def provenance_of(values: Mapping[str, Any]) -> tuple[Provenance, int]:
    """A provenance and its number of documents, from a dictionary; raises the errors of `shard_of`."""
    return provenance_in(values), _number(values["documents"], "documents", 1)


def _tokenizer(values: Mapping[str, Any]) -> TokenizerInfo:
    files = {name: _file(file) for name, file in values["files"].items()}
    for name in files:
        if not _FILE.fullmatch(name):
            raise ValueError(f"{name!r} is not a file's name")
    return TokenizerInfo(
        str(values["name"]), dict(values["config"]), str(values["fingerprint"]), files
    )


def _file(values: Mapping[str, Any]) -> StoredFile:
    if not _HASH.fullmatch(values["sha256"]):
        raise ValueError(f"{values['sha256']!r} is not a SHA-256")
    return StoredFile(_number(values["num_bytes"], "num_bytes", 0), values["sha256"])


def _number(value: object, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}")
    return value


#: What makes documents duplicates: the same pictures and words, the same pictures (words, without pictures),
#: or nothing.
DUPLICATES = ("documents", "pictures", "keep")


@dataclass(frozen=True)
class Settings:
    """Settings that determine the shards besides the data.

    Args:
        shard_size: documents per shard.
        duplicates: see `DUPLICATES`.
        num_texts: texts to draw for a document with unlimited variations, including the canonical one.
    """

    shard_size: int
    duplicates: str = DUPLICATES[0]
    num_texts: int = 8


def kept_documents(source: DocumentSource, duplicates: str) -> npt.NDArray[np.int64]:
    """Return the indices of documents that are not duplicates of earlier ones, int64, ascending.

    Documents are compared by all of their content keys; with "documents" also by the words of their
    canonical text, ignoring case and spacing. A document without keys can't be compared and is kept.
    """
    if duplicates == "keep":
        return np.arange(len(source), dtype=np.int64)
    seen: set[bytes] = set()
    kept = []
    for index in range(len(source)):
        try:
            name = _content(source, index, with_words=duplicates == "documents")
        except DataError:
            name = None  # the error is reported when it is encoded
        if name is not None:
            if name in seen:
                continue
            seen.add(name)
        kept.append(index)
    return np.array(kept, np.int64)


def _content(source: DocumentSource, index: int, *, with_words: bool) -> bytes | None:
    """16 bytes of a hash of a document's content; None without a key."""
    keys = sorted(source.content_keys(index))
    if not keys:
        return None
    if with_words:
        words = " ".join(text_of(source.document(index)).casefold().split())
        keys.append(f"words:{words}")
    return hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).digest()[:16]


def plan_of(
    sources: Mapping[str, DocumentSource],
    text_tokenizer: TokenizerInfo,
    image_tokenizer: TokenizerInfo,
    task: str,
    settings: Settings,
) -> str:
    """Return a hash of everything that determines the shards."""
    parts = [
        FORMAT,
        {name: source.content_fingerprint for name, source in sources.items()},
        [text_tokenizer.fingerprint, image_tokenizer.fingerprint, task],
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
