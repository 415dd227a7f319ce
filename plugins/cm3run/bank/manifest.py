"""A bank's `manifest.json`: the tools the bank was made with, and its shards. It defines the bank: files that it does
not list are not part of it.

The file is untrusted: every value is checked, and shard names can't point outside the
folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cm3core.arguments import Count, CountOrZero
from cm3core.errors import DataError, FileError
from cm3core.files import read_text, write_text
from cm3run.json_text import Sha256, StoredName, check_form, parse_json

FORMAT = 1
MANIFEST = "manifest.json"
#: Folder in which an unfinished build records its finished shards.
WORK = ".building"
VECTORS, CODES, TABLE, DOCUMENTS = FILES = (
    "vectors.npy",
    "codes.npy",
    "table.npy",
    "documents.jsonl",
)
_NAME = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Maker:
    """A component that a bank was made with: its recipe name, config values and
    fingerprint."""

    name: str
    config: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class ImageTokenizerMaker(Maker):
    """The image tokenizer, with its `grid` (rows, columns) and number of codes."""

    grid: tuple[int, int]
    codebook_size: int


@dataclass(frozen=True)
class StoredFile:
    """Length in bytes and hexadecimal SHA-256 of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo:
    """A shard: its numbers of documents and pictures, and its `FILES` by name."""

    num_documents: int
    num_pictures: int
    files: Mapping[str, StoredFile]

    @property
    def name(self) -> str:
        """Name of its folder: a hash of its content."""
        return hashlib.sha256(
            "".join(self.files[name].sha256 for name in FILES).encode()
        ).hexdigest()[:24]

    @property
    def num_bytes(self) -> int:
        """Total size of its files."""
        return sum(file.num_bytes for file in self.files.values())


@dataclass(frozen=True)
class Manifest:
    """Everything that defines a bank.

    Args:
        dimension: E, numbers per vector.
        embedder: made the vectors.
        image_tokenizer: made the codes.
        shards: in the order of the documents.
        built_from: hash of everything that determined the bank when it was built; "" once documents were
            added or removed.
        format: version of the folder's format.
        codes_psnr: how well the codes reproduced a sample of the pictures when the bank was built, see
            `cm3run.training.data_notes.codes_kept`; None: not measured.
    """

    dimension: int
    embedder: Maker
    image_tokenizer: ImageTokenizerMaker
    shards: tuple[ShardInfo, ...] = ()
    built_from: str = ""
    format: int = FORMAT
    codes_psnr: float | None = None

    @property
    def num_documents(self) -> int:
        """M."""
        return sum(shard.num_documents for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the documents, their order, vectors and codes, and of the tools that made these."""
        parts = [
            self.embedder.fingerprint,
            self.image_tokenizer.fingerprint,
            *(shard.name for shard in self.shards),
        ]
        return hashlib.sha256(json.dumps([self.format, *parts]).encode()).hexdigest()

    def with_shards(self, shards: tuple[ShardInfo, ...], built_from: str = "") -> Manifest:
        """A manifest with other shards."""
        return replace(self, shards=shards, built_from=built_from)

    def values(self) -> dict[str, Any]:
        """The JSON content; `codes_psnr` is omitted if not measured."""
        values = asdict(self)
        if self.codes_psnr is None:
            del values["codes_psnr"]
        return values

    def write(self, folder: Path) -> None:
        """Write this as the folder's manifest, atomically."""
        write_text(folder / MANIFEST, json.dumps(self.values(), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the folder's manifest.

        Raises:
            DataError: it is missing, damaged, or of a newer version.
        """
        path = folder / MANIFEST
        try:
            values = parse_json(read_text(path), str(path), form=_Stated)
        except FileNotFoundError as error:
            raise _no_bank(folder) from error
        except NotADirectoryError as error:
            raise _no_bank(folder) from error
        except PermissionError as error:
            raise refused(path, error) from error
        except DataError as error:
            raise damaged(path, f"is not a memory bank's manifest ({error.cause})") from error
        except (OSError, ValueError) as error:
            raise damaged(path, f"can't be read ({error})") from error
        if values["format"] > FORMAT:
            raise DataError(
                str(path),
                f"has format {values['format']}, but this version reads {FORMAT}",
                "use a newer cm3leon",
            )
        try:
            check_form(values, _Form, str(path))
        except DataError as error:
            raise damaged(path, f"is damaged ({error.cause})") from error
        made, psnr = made_with(values), values.get("codes_psnr")
        return replace(
            made,
            shards=tuple(map(shard_of, values["shards"])),
            built_from=values["built_from"],
            format=values["format"],
            codes_psnr=None if psnr is None else float(psnr),
        )


def damaged(path: Path, cause: str) -> DataError:
    """The error for a bank whose manifest can't be used."""
    return DataError(
        str(path),
        cause,
        "copy the bank again from its source, or rebuild it: cm3 memory build",
    )


#: Remedies when the system refuses to open or read a file.
_REMEDIES = {
    errno.EMFILE: "close other files of this process, or raise the limit (ulimit -n)",
    errno.ENFILE: "close programs, or raise the system's limit of open files (fs.file-max)",
    errno.ENOMEM: "free memory, or raise the limit of maps (vm.max_map_count)",
    errno.EACCES: "give yourself the permission to read it (chmod, chown)",
    errno.EPERM: "give yourself the permission to read it (chmod, chown)",
    errno.EIO: "check the disk before anything else is written to it",
}


def refused(path: Path, error: OSError) -> FileError:
    """The error for a bank's file that the system refuses to open or read."""
    return FileError(
        str(path),
        f"can't be read now ({error.strerror or error}); the bank itself is intact",
        _REMEDIES.get(error.errno or 0, "correct that, then run the same command again"),
    )


def _no_bank(folder: Path) -> DataError:
    if (folder / WORK).is_dir():
        return DataError(
            str(folder),
            "is a memory bank whose build was interrupted",
            "run the same 'cm3 memory build' again: it resumes",
        )
    cause = (
        "is not a memory bank: it has no manifest.json"
        if folder.is_dir()
        else "is a file"
        if folder.exists()
        else "does not exist"
    )
    return DataError(str(folder), cause, "name a folder that 'cm3 memory build' wrote")


# The file's form.


class _Maker(TypedDict):
    name: StoredName
    config: dict[str, Any]
    fingerprint: StoredName


class _ImageTokenizer(_Maker):
    grid: tuple[Count, Count]
    codebook_size: Count


class MadeWith(TypedDict):
    """What a bank's vectors and codes were made with, in a manifest or in a database."""

    dimension: Count
    embedder: _Maker
    image_tokenizer: _ImageTokenizer


class _File(TypedDict):
    num_bytes: Count
    sha256: Sha256


_Files = TypedDict(
    "_Files",
    {"vectors.npy": _File, "codes.npy": _File, "table.npy": _File, "documents.jsonl": _File},
)


class ShardForm(TypedDict):
    """A shard as `dataclasses.asdict` gives it."""

    num_documents: Count
    num_pictures: CountOrZero
    files: _Files


class _Stated(TypedDict):
    format: int


class _Form(_Stated, MadeWith):
    shards: list[ShardForm]
    built_from: str
    codes_psnr: NotRequired[float | None]


def made_with(values: MadeWith) -> Manifest:
    """A manifest without shards."""
    embedder, tokenizer = values["embedder"], values["image_tokenizer"]
    rows, columns = tokenizer["grid"]
    return Manifest(
        values["dimension"],
        Maker(embedder["name"], embedder["config"], embedder["fingerprint"]),
        ImageTokenizerMaker(
            tokenizer["name"],
            tokenizer["config"],
            tokenizer["fingerprint"],
            (rows, columns),
            tokenizer["codebook_size"],
        ),
    )


def shard_of(values: ShardForm) -> ShardInfo:
    """A shard from its stored form."""
    files = {
        name: StoredFile(file["num_bytes"], file["sha256"])
        for name in FILES
        for file in [values["files"][name]]  # type: ignore[literal-required]  # its keys
    }
    return ShardInfo(values["num_documents"], values["num_pictures"], files)


def is_shard_name(name: str) -> bool:
    """Whether a shard's folder can have this name."""
    return _NAME.fullmatch(name) is not None
