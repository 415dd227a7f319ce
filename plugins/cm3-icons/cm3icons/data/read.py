"""Read icon sets: from npm tarballs to drawings with names, styles and tags."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.files import sha256_file
from cm3icons.data.sets import SET_NAME, IconSet
from cm3icons.data.splits import IconName, read_name
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.svg import square_svg
from cm3run.json_text import parse_json

MAX_JSON_BYTES = 64 * 2**20
"""Larger files in a package are rejected unread: the largest pinned one has 25 MB."""
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_MEMBERS = 1000
MAX_TAGS = 8
_FILES = ("icons.json", "info.json", "metadata.json", "package.json")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """One drawing of a set.

    Args:
        id: ``material-symbols/bell-outline``, unique.
        set_name: ``material-symbols``.
        name: words and style.
        tags: other names in the set, and categories; lower case.
        svg: a whole SVG document.
    """

    id: str
    set_name: str
    name: IconName
    tags: tuple[str, ...]
    svg: str


def open_set(folder: Path, icon_set: IconSet) -> dict[str, Any]:
    """Check the tarball of a set and return its JSON files by name.

    Raises:
        DataError: the tarball is missing, is not the pinned one, lacks a file, or states another licence.
    """
    package = icon_set.package
    path = folder / package.tarball
    if not path.is_file():
        raise DataError(
            str(path), "the tarball is missing", f"run npm pack {package.spec} in that folder"
        )
    found = sha256_file(path)
    if found != package.sha256:
        raise DataError(
            str(path),
            f"SHA-256 is {found}, expected {package.sha256}",
            f"delete the file and run npm pack {package.spec} in that folder",
        )
    files = read_tarball(path)
    stated = stated_licence(files)
    if stated != icon_set.licence:
        raise DataError(
            str(path),
            f"states the licence {stated!r}, expected {icon_set.licence!r}",
            "check the licence",
        )
    return files


def stated_licence(files: Json) -> str | None:
    """Return the SPDX name of the licence stated by a package, if any."""
    licence = files["info.json"].get("license")
    spdx = licence.get("spdx") if isinstance(licence, dict) else None
    return spdx if isinstance(spdx, str) and re.fullmatch(r"[\w.+-]{1,60}", spdx) else None


def read_tarball(path: Path) -> dict[str, Any]:
    """Read the JSON files of an Iconify package, with checks: it may come from anyone.

    Raises:
        DataError: the file is not an Iconify package, or is too large, too deeply nested, or contains links.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_UNPACKED_BYTES + 1)
        if len(content) > MAX_UNPACKED_BYTES:
            raise _refused(path, f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            files = _json_files(path, tar)
    except (OSError, tarfile.TarError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            cause = f"can't be read ({error.strerror})"
            raise DataError(str(path), cause, "correct the path") from error
        raise DataError(
            str(path), f"is not a readable npm package ({error})", "fetch it again"
        ) from error
    for name in ("icons.json", "info.json"):
        if name not in files:
            raise _refused(path, f"has no {name}")
    check_icons(path, files)
    return files


def _refused(path: Path, cause: str) -> DataError:
    return DataError(str(path), cause, "use a package @iconify-json/NAME as written by npm pack")


def _json_files(path: Path, tar: tarfile.TarFile) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for number, member in enumerate(tar, 1):
        if number > MAX_MEMBERS:
            raise _refused(path, f"holds more than {MAX_MEMBERS} files")
        name = member.name.removeprefix("package/")
        if name not in _FILES:
            continue
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            raise _refused(path, f"its {name} is a link or a folder")
        if name in files:
            raise _refused(path, f"holds {name} twice")
        if member.size > MAX_JSON_BYTES:
            raise _refused(path, f"its {name} has {member.size:,} bytes")
        try:
            files[name] = parse_json(
                content.read(), name, form=dict[str, Any], most_bytes=MAX_JSON_BYTES
            )
        except DataError as error:
            raise _refused(path, f"its {name} {error.cause}") from error
    return files


def check_icons(path: Path, files: Json) -> None:
    """Raise `DataError` for values with another type than in Iconify's format."""
    icons, metadata = files["icons.json"], files.get("metadata.json", {})

    def table(of: Json, name: str, kind: type) -> dict[str, Any]:
        values = of.get(name, {})
        if not isinstance(values, dict):
            raise _refused(path, f"{name!r} is not an object")
        for key, value in values.items():
            if type(value) is not kind:
                raise _refused(path, f"{key!r} of {name!r} is not {_KINDS[kind]}")
        return values

    for name, icon in (table(icons, "icons", dict) | {"icons.json": icons}).items():
        if icon is not icons and (type(icon.get("body")) is not str or not _NAME.fullmatch(name)):
            raise _refused(path, f"the icon {name[:80]!r} has no body, or no plain name")
        for side in ("left", "top", "width", "height"):
            value = icon.get(side, 1)
            if type(value) not in (int, float) or not (
                abs(value) < _MAX_SIDE and (value > 0 or side in ("left", "top"))
            ):
                raise _refused(path, f"the {side} of {name!r} is {str(value)[:20]}")
    for alias in table(icons, "aliases", dict).values():
        if type(alias.get("parent")) is not str:
            raise _refused(path, "an alias has no parent")
    for listed in table(metadata, "categories", list).values():
        if any(type(name) is not str for name in listed):
            raise _refused(path, "a category holds a value that is not a name")
    for rules in ("suffixes", "prefixes"):
        table(metadata, rules, str)
    if type(icons.get("prefix")) is not str or not SET_NAME.fullmatch(icons["prefix"][:64]):
        raise _refused(path, "its prefix is not a plain name")
    if not icons.get("icons"):
        raise _refused(path, "has no icons")


_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
_MAX_SIDE = 1e6


def drawings_of_set(icon_set: IconSet, files: Json) -> Iterator[Drawing]:
    """Yield the drawings of one set, in the package's order, without hidden ones, logos and other
    sizes."""
    icons = files["icons.json"]
    metadata = files.get("metadata.json", {})
    brands = _brands(metadata)
    categories = _categories(metadata)
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, target in icons.get("aliases", {}).items():
        aliases[target.get("parent", "")].append(alias)
    for name, icon in icons["icons"].items():
        parsed = read_name(name, icon_set)
        if parsed is None or icon.get("hidden") or not parsed.words or name in brands:
            continue
        other_names = (read_name(alias, icon_set) for alias in aliases[name])
        tags = [" ".join(other.words) for other in other_names if other is not None]
        tags += categories.get(name, ())
        yield Drawing(
            id=f"{icon_set.name}/{name}",
            set_name=icon_set.name,
            name=parsed,
            tags=_distinct(tags, " ".join(parsed.words)),
            svg=_svg(icons, icon),
        )


def emoji_drawings(corpus: EmojiCorpus) -> Iterator[Drawing]:
    """Yield the drawings of the bundled emoji corpus."""
    for index, entry in enumerate(corpus.entries):
        words = tuple(entry.label.replace("-", " ").split())
        yield Drawing(
            id=f"emoji-{entry.style}/{entry.concept}",
            set_name=f"emoji-{entry.style}",
            name=IconName(words, ("colour",)),
            tags=_distinct([*entry.tags, entry.category], entry.label),
            svg=corpus.svg(index),
        )


def _svg(icons: Json, icon: Json) -> str:
    def value(key: str, default: float) -> float:
        return float(icon.get(key, icons.get(key, default)))

    body = icon["body"].replace("currentColor", "#000")
    return square_svg(
        body,
        left=value("left", 0),
        top=value("top", 0),
        width=value("width", 16),
        height=value("height", 16),
    )


def _brands(metadata: Json) -> frozenset[str]:
    """Return the names in categories of logos."""
    return frozenset(
        name
        for category, names in metadata.get("categories", {}).items()
        if category.lower() in _BRAND_CATEGORIES
        for name in names
    )


_BRAND_CATEGORIES = frozenset(
    ("brand", "brands", "logos", "brand / logo", "brand logos", "social network")
)


def _categories(metadata: Json) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for category, names in metadata.get("categories", {}).items():
        for name in names:
            found[name].append(" ".join(category.lower().replace("/", " ").split()))
    return found


def _distinct(tags: list[str], label: str) -> tuple[str, ...]:
    cleaned = dict.fromkeys(" ".join(tag.lower().split()) for tag in tags)
    return tuple(tag for tag in cleaned if tag and tag != label)[:MAX_TAGS]
