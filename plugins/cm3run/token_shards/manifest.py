"""The manifest of token shards: their files with hashes, and the tools that made them. Also decides which documents
become shards, before any is encoded and identically in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import numpy.typing as npt

from cm3core.arguments import Count, CountOrZero, Matching
from cm3core.document import text_of
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3core.interfaces.dataset import DocumentSource, Provenance, StatedProvenance, provenance_in
from cm3run.json_text import Sha256, StoredName, check_form, parse_json

MANIFEST = "manifest.json"
FORMAT = "cm3 token shards 1"
#: Name of a file beside the manifest: not a path, not hidden.
_FileName = Annotated[str, Matching(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", "a file's name")]


# The file's form.


class _File(TypedDict):
    num_bytes: CountOrZero
    sha256: Sha256


class ShardForm(_File):
    """A shard as `dataclasses.asdict` gives it."""

    name: _FileName
    num_documents: Count


class ProvenanceForm(StatedProvenance):
    """A provenance, and its number of documents."""

    documents: Count


class _Split(TypedDict):
    shards: list[ShardForm]
    num_skipped: CountOrZero
    num_duplicates: CountOrZero
    provenance: list[ProvenanceForm]


class _Tokenizer(TypedDict):
    name: StoredName
    config: dict[str, Any]
    fingerprint: StoredName
    files: dict[_FileName, _File]


class _Stated(TypedDict):
    format: str


class _Form(_Stated):
    text_tokenizer: _Tokenizer
    image_tokenizer: _Tokenizer
    grid: tuple[Count, Count]
    task: StoredName
    plan: str
    splits: dict[StoredName, _Split]


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
            values = parse_json(content, place, form=_Stated)
        except DataError as error:
            raise DataError(
                place,
                f"is not the manifest of token shards ({error.cause})",
                "write them with 'cm3 data encode'",
            ) from error
        if values["format"] != FORMAT:
            raise DataError(
                place,
                f"has the format {values['format'][:60]!r}, but this version reads {FORMAT!r}",
                "use the version that wrote the shards, or encode the data set again",
            )
        try:
            check_form(values, _Form, place)
            _check_sums(values, place)
        except DataError as error:
            cause = f"is damaged ({error.cause})"
            raise DataError(place, cause, "copy it again from its source") from error
        return _manifest(values)


def shard_of(values: ShardForm) -> ShardInfo:
    """A shard from its stored form."""
    return ShardInfo(values["name"], values["num_bytes"], values["sha256"], values["num_documents"])


def provenance_of(values: ProvenanceForm) -> tuple[Provenance, int]:
    """A provenance and its number of documents from their stored form."""
    return provenance_in(values), values["documents"]


def _check_sums(values: _Form, place: str) -> None:
    for name, split in values["splits"].items():
        shards = sum(shard["num_documents"] for shard in split["shards"])
        if shards != sum(one["documents"] for one in split["provenance"]):
            cause = f"splits[{name!r}] has licences of another number of documents"
            raise DataError(place, cause, "correct it")


def _manifest(values: _Form) -> Manifest:
    rows, columns = values["grid"]
    return Manifest(
        _tokenizer(values["text_tokenizer"]),
        _tokenizer(values["image_tokenizer"]),
        (rows, columns),
        values["task"],
        values["plan"],
        {name: _split(split) for name, split in values["splits"].items()},
    )


def _split(values: _Split) -> SplitInfo:
    return SplitInfo(
        tuple(map(shard_of, values["shards"])),
        values["num_skipped"],
        values["num_duplicates"],
        tuple(map(provenance_of, values["provenance"])),
    )


def _tokenizer(values: _Tokenizer) -> TokenizerInfo:
    files = {
        name: StoredFile(file["num_bytes"], file["sha256"])
        for name, file in values["files"].items()
    }
    return TokenizerInfo(values["name"], values["config"], values["fingerprint"], files)


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
