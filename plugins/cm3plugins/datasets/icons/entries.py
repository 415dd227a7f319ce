"""The entries of an icon corpus, and its manifest: reading both from a corpus' folder, quickly and compactly,
and checking them, since the folder may be one that a user was given."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cm3core.errors import DataError
from cm3plugins.datasets.emoji.packages import LICENCES, STYLE_PACKAGES
from cm3plugins.datasets.icons.sets import (
    ASSETS,
    EMOJI_LICENCES,
    EMOJI_SET,
    SET_NAME,
    all_sets,
    title_of,
)
from cm3plugins.datasets.icons.splits import SPLITS
from cm3plugins.datasets.vector.files import read, unpack_lines
from cm3plugins.datasets.vector.packages import author_and_address

REINSTALL = "reinstall cm3leon"
REBUILD = "build it again with `cm3 icons build`"
_BLOCK = 256


class IconEntry(NamedTuple):
    """One picture of the corpus.

    Args:
        id: unique name, ``material-symbols/bell-outline``.
        words: what it shows, ``bell off``; the same in every version.
        style: words out of ``STYLE_WORDS``, ``outline rounded``; may be empty in a user's corpus.
        tags: other names and categories, lower case.
        split: ``train``, ``comp``, ``compose`` or ``unseen``; see `splits.py`.
    """

    id: str
    words: str
    style: str
    tags: tuple[str, ...]
    split: str

    @property
    def set_name(self) -> str:
        """The set: the id's first half."""
        return self.id.partition("/")[0]

    @property
    def has_colour(self) -> bool:
        """Whether the picture has three different channels."""
        return "colour" in self.style


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is recorded about a corpus as a whole.

    Args:
        data_sha256: hash of the whole data.
        num_entries: number of pictures.
        num_of_split: split -> number of pictures.
        packages: npm package with its version -> SHA-256 of its tarball.
        licences: set -> SPDX name.
        titles: set -> what captions call it, for sets that are not bundled.
        authors: set -> author and address, for sets that are not bundled.
    """

    data_sha256: str
    num_entries: int
    num_of_split: Mapping[str, int]
    packages: Mapping[str, str]
    licences: Mapping[str, str]
    titles: Mapping[str, str]
    authors: Mapping[str, str]

    def title(self, set_name: str) -> str:
        """Return what captions call a set."""
        return self.titles.get(set_name) or title_of(set_name)

    def source(self, set_name: str) -> tuple[str, str, str]:
        """Return a set's npm package with its version, its author, and its address; the latter two are "" where they
        aren't known."""
        style = set_name.removeprefix(EMOJI_SET)
        if set_name not in self.titles and style in STYLE_PACKAGES and style != set_name:
            package = STYLE_PACKAGES[style]
            return f"npm {package.name} {package.version}", *author_and_address(LICENCES[style][1])
        package_name = f"@iconify-json/{set_name}"
        specs = [spec for spec in self.packages if spec.startswith(f"{package_name}@")]
        version = "".join(spec.removeprefix(package_name).replace("@", " ") for spec in specs[:1])
        author, address = author_and_address(self.authors.get(set_name, ""))
        if set_name not in self.authors and (known := all_sets().get(set_name)) is not None:
            author, address = known.author, known.url
        return f"npm {package_name}{version}", author, address


def read_manifest(folder: Path, next_step: str) -> Manifest:
    """Return the manifest of a corpus' folder.

    Raises:
        DataError: it can't be read, or is none.
    """
    path = folder / "manifest.json"
    content = read(path, next_step)
    emoji = {f"{EMOJI_SET}{style}": licence for style, licence in EMOJI_LICENCES.items()}
    try:
        values: Any = json.loads(content)
        manifest = Manifest(
            data_sha256=values["data_sha256"],
            num_entries=values["num_entries"],
            num_of_split=_table(values["num_of_split"], int),
            packages=_table(values["packages"], str),
            licences=_table(values["licences"], str) | (emoji if folder == ASSETS else {}),
            titles=_table(values.get("titles", {}), str),
            authors=_table(values.get("authors", {}), str),
        )
        well_formed = (
            type(manifest.data_sha256) is str
            and type(manifest.num_entries) is int
            and all(SET_NAME.fullmatch(name) for name in manifest.licences)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise DataError(str(path), "is no manifest of an icon corpus", next_step)
    return manifest


def _table(values: Any, kind: type) -> dict[str, Any]:
    if not isinstance(values, dict) or any(type(value) is not kind for value in values.values()):
        raise TypeError
    return values


def read_entries(folder: Path, manifest: Manifest, next_step: str) -> tuple[IconEntry, ...]:
    """Return the entries of a corpus' folder, equal texts as one object.

    Raises:
        DataError: the file can't be read, is damaged, or does not fit the manifest.
    """
    path = folder / "entries.jsonl.xz"
    lines = unpack_lines(path, next_step)
    try:
        with _no_collection():
            entries = _entries(_rows(lines), manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(str(path), f"the file is damaged ({_cause(error)})", next_step) from error
    if len(entries) != manifest.num_entries:
        cause = f"holds {len(entries):,} entries, the manifest {manifest.num_entries:,}"
        raise DataError(str(path), cause, next_step)
    return entries


@contextmanager
def _no_collection() -> Iterator[None]:
    """Context without Python's search for cycles, which takes most of the time where 100,000 objects are made
    and none is in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rows(lines: list[str]) -> Iterator[Any]:
    """Parse lines by the block: much faster than each by itself, and smaller than all at once."""
    for start in range(0, len(lines), _BLOCK):
        yield from json.loads(f"[{','.join(lines[start : start + _BLOCK])}]")


def _entries(rows: Iterator[Any], manifest: Manifest) -> tuple[IconEntry, ...]:
    texts: dict[Any, Any] = {}
    one = texts.setdefault  # equal texts once: styles, splits and most names occur many times
    entries = tuple(
        IconEntry(
            row["id"],
            one(row["words"], row["words"]),
            one(row["style"], row["style"]),
            tuple([one(tag, tag) for tag in row["tags"]]),
            one(row["split"], row["split"]),
        )
        for row in rows
    )
    if not all(type(text) is str for text in texts):
        raise TypeError("a value is no text")
    sets = dict.fromkeys(entry.id.partition("/")[0] for entry in entries)
    if unknown := [name for name in sets if name not in manifest.licences]:
        raise ValueError(f"the manifest has no licence of {unknown[0]!r}")
    if unknown := sorted({entry.split for entry in entries}.difference(SPLITS)):
        raise ValueError(f"there is no split {unknown[0]!r}")
    if len({entry.id for entry in entries}) < len(entries):
        raise ValueError("an id occurs twice")
    return entries


def _cause(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
