"""Build an icon corpus in a user's folder: the same schema, comparison and splits as in the bundled corpus, from
the given sets alone, respecting the bundled corpus' held-out drawings.

A set is a tarball given by the user, and describes itself: it lists suffixes and prefixes of names with titles, which are
mapped to the style words shared by all sets. Its drawings may come from anyone. They may contain shapes, and small
references within themselves. The renderer would read external pictures from the disk and expand nested references, so
both are rejected first.

Drawing takes minutes, so its results are stored per set in the folder until the corpus is complete, and a killed
build resumes; file names contain a hash of the drawings. The manifest is written last: a folder
without it is not a corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError
from cm3core.files import (
    cache_folder,
    locked,
    make_folder,
    remove_unfinished,
    sha256_file,
    write_bytes,
)
from cm3core.outputs import OutputFolder, foreign_in, remove_own
from cm3icons.data.comparison import (
    EMPTY,
    NEAR,
    NOT_RENDERED,
    SIDE,
    drop_duplicates,
    small_pictures,
)
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.read import Drawing, drawings_of_set, read_tarball, stated_licence
from cm3icons.data.sets import PERMITTED_LICENCES, IconSet, all_sets, style_words
from cm3icons.data.splits import assign_splits, decided_by
from cm3icons.data.write import attribution_of, corpus_files
from cm3plugins.svg import fault, renderer_version
from cm3run.built_once import computed_once
from cm3run.npy import load_array, save_array

_STYLE_OF_WORD = {
    "outline": ("regular", "line", "lined", "lineal", "linear", "outline", "outlined", "stroke"),
    "filled": ("fill", "filled", "solid", "baseline", "glyph"),
    "duotone": ("duotone", "duo", "twotone", "bulk"),
    "colour": ("color", "colour", "colored", "coloured", "multicolor", "flat"),
    "broken": ("broken",),
    "thin": ("thin",),
    "light": ("light",),
    "bold": ("bold",),
    "rounded": ("round", "rounded"),
    "sharp": ("sharp",),
}
_STYLES = {word: style for style, words in _STYLE_OF_WORD.items() for word in words}
_NO_WORD = re.compile(r"[^\w ]+")
_SIZE = re.compile(r"\d+(x\d+)?(px)?")


def set_of_package(
    files: Mapping[str, Any], sha256: str, licence: str
) -> tuple[IconSet, list[str]]:
    """Return a set with its package's rules, and the suffixes and prefixes whose title contains a word that is
    not a style: these stay words of the names, so that nothing is mistaken for a style.

    Args:
        files: result of `read_tarball`.
        sha256: SHA-256 of the tarball.
        licence: licence stated by the package.
    """
    info, metadata = files["info.json"], files.get("metadata.json", {})
    unknown: list[str] = []
    rules: dict[str, dict[str, str]] = {"suffixes": {}, "prefixes": {}}
    for kind, known in rules.items():
        for word, title in metadata.get(kind, {}).items():
            style = _style_of(title)
            if style is not None:
                known[word] = style
            elif word:
                unknown.append(word)
    author = info.get("author")
    author = author if isinstance(author, dict) else {}
    default = rules["suffixes"].pop("", rules["prefixes"].pop("", ""))
    name = files["icons.json"]["prefix"]
    icon_set = IconSet(
        name=name,
        title=" ".join(_NO_WORD.sub(" ", _cell(info.get("name")).lower()).split())
        or name.replace("-", " "),
        version=version_of(files),
        sha256=sha256,
        licence=licence,
        author=_cell(author.get("name")),
        url=_cell(author.get("url")),
        default=default,
        endings=rules["suffixes"],
        beginnings=rules["prefixes"],
        always="colour" if info.get("palette") is True else "",
    )
    return icon_set, unknown


def version_of(files: Mapping[str, Any]) -> str:
    """Return the version stated by a package, or ``unknown``."""
    version = files.get("package.json", {}).get("version")
    stated = isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version)
    return str(version) if stated else "unknown"


def _style_of(title: str) -> str | None:
    """Return the style words of a title, ``Two-Tone`` or ``24 Regular``; None if it has other words, or none."""
    words = re.sub(r"two[- ]tone", "twotone", title.lower()).replace("-", " ").split()
    words = [word for word in words if not _SIZE.fullmatch(word)]
    if not words or not all(word in _STYLES for word in words):
        return None
    return " ".join(style_words(" ".join(_STYLES[word] for word in words)))


def _cell(text: object) -> str:
    """Format a text from the package as a cell of the attribution's table."""
    plain = text[:200] if isinstance(text, str) else ""
    kept = (letter for letter in plain if letter.isspace() or letter.isprintable())
    return " ".join("".join(letter for letter in kept if letter not in "|`<>").split())


@dataclass(frozen=True)
class UserSet:
    """A set read from a tarball.

    Args:
        icon_set: rules and facts, with the version and checksum of the tarball.
        drawings: accepted drawings.
        unknown_styles: suffixes and prefixes that stay words of the names.
        refused: ids of rejected drawings -> reason.
        num_left_out: number of icons excluded by the rules: logos, other sizes, hidden ones.
    """

    icon_set: IconSet
    drawings: list[Drawing]
    unknown_styles: list[str]
    refused: dict[str, str]
    num_left_out: int


def read_set(path: Path, *, any_version: bool, licences: Collection[str]) -> UserSet:
    """Read one tarball.

    Args:
        path: path of the tarball.
        any_version: apply a bundled set's rules to any version and checksum.
        licences: SPDX names permitted in addition to `PERMITTED_LICENCES`.

    Raises:
        DataError: the tarball can't be used.
    """
    if not path.is_file():
        raise DataError(
            str(path),
            "is not a file",
            "run npm pack @iconify-json/SET, and pass the path of its file",
        )
    files = read_tarball(path)
    licence, sha256 = stated_licence(files), sha256_file(path)
    if licence is None or licence not in {*PERMITTED_LICENCES, *licences}:
        for_own_use = f", or for your own use: --allow-licence {licence}" if licence else ""
        raise DataError(
            str(path),
            f"its licence is {licence or 'not stated'}, which is not permitted",
            f"use sets under {', '.join(PERMITTED_LICENCES)}{for_own_use}",
        )
    pinned = all_sets().get(files["icons.json"]["prefix"])
    unknown: list[str] = []
    if pinned is None:
        icon_set, unknown = set_of_package(files, sha256, licence)
    else:
        version = version_of(files)
        if sha256 != pinned.sha256 and not any_version:
            cause = (
                f"is {pinned.name} {version}; the known version is {pinned.version}"
                if version != pinned.version
                else f"is {pinned.name} {version} with another checksum: {sha256}, "
                f"expected {pinned.sha256}"
            )
            raise DataError(
                str(path),
                cause,
                f"run npm pack {pinned.package.spec}, or read it anyway: --any-version",
            )
        icon_set = replace(pinned, version=version, sha256=sha256, licence=licence)
    read = list(drawings_of_set(icon_set, files))
    refused = {drawing.id: why for drawing in read if (why := fault(drawing.svg)) is not None}
    return UserSet(
        icon_set,
        [drawing for drawing in read if drawing.id not in refused],
        unknown,
        refused,
        len(files["icons.json"]["icons"]) - len(read),
    )


UNFINISHED = ".unfinished"
"""Subfolder of drawings while the corpus is incomplete."""


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Args:
        num_of_set, num_of_split: number of icons by set and by split.
        not_drawn: set -> ids that were not rendered or are empty -> reason.
        left_out: counts by reason.
    """

    num_of_set: Counter[str]
    num_of_split: Counter[str]
    not_drawn: dict[str, dict[str, str]]
    left_out: Counter[str]


def check_output(out: Path) -> None:
    """Raise `CM3Error` unless a corpus can be built in this folder: it must be new, or left by a killed build."""
    own = OutputFolder(out)
    remove_unfinished(out)
    if not out.is_dir():
        return
    names = sorted(path.name for path in out.iterdir())
    if "manifest.json" in names:
        cause = "already holds a corpus (manifest.json)"
        step = "choose another folder, or delete this one"
        raise DataError(str(out), cause, step)
    foreign = [name for name in names if name != UNFINISHED and not own.is_own(name)]
    inside = [
        path
        for path in foreign_in(out / UNFINISHED)
        if path.name != "lock" and path.suffix != ".lock"
    ]
    if foreign := [*foreign, *(os.path.relpath(path, out) for path in inside)]:
        cause = f"holds other files, such as {foreign[0]}"
        raise DataError(str(out), cause, "choose a new folder")


def build(sets: Sequence[UserSet], out: Path, bundled: IconCorpus) -> Built:
    """Build the corpus of these sets in a folder.

    Args:
        sets: in corpus order.
        out: the folder, created if it does not exist.
        bundled: corpus whose held-out objects, pairs and drawings are also held out here.

    Raises:
        DataError: another process builds there, or nothing is left to write.
    """
    unfinished = out / UNFINISHED
    make_folder(unfinished)
    busy = DataError(str(out), "is being built by another process", "wait until it finishes")
    with locked(unfinished / "lock", busy):
        check_output(out)
        built, files = _corpus(sets, unfinished, bundled)
        for path in out.glob("svg-*.jsonl.xz"):
            if path.name not in files:
                OutputFolder(out).remove(path.name)  # left by a killed build of other sets
        manifest = files.pop("manifest.json")
        for name, data in files.items():
            write_bytes(out / name, data)
        write_bytes(out / "manifest.json", manifest)
        (unfinished / "lock").unlink(missing_ok=True)
        remove_own(unfinished)
    return built


def _corpus(
    sets: Sequence[UserSet], unfinished: Path, bundled: IconCorpus
) -> tuple[Built, dict[str, bytes]]:
    small = [
        _kept_small([d.svg for d in given.drawings], unfinished, given.icon_set.name)
        for given in sets
    ]
    drawings = [drawing for given in sets for drawing in given.drawings]
    small_ND = np.concatenate([np.empty((0, SIDE * SIDE), np.float32), *small])
    rows, kept, near, left_out = drop_duplicates(drawings, small_ND)
    chosen, splits = _with_splits(kept, small_ND[rows], near, bundled, left_out)
    if not chosen:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
        cause = f"none of {len(drawings):,} icons is left ({reasons or 'none was read'})"
        raise DataError("cm3 icons build", cause, "use other sets")
    of_set = Counter(drawing.set_name for drawing in chosen)
    written = [given.icon_set for given in sets if of_set[given.icon_set.name]]
    files = corpus_files(
        chosen,
        splits,
        [icon_set.name for icon_set in written],
        {
            "packages": {s.package.spec: s.sha256 for s in written},
            "licences": {s.name: s.licence for s in written},
            "titles": {s.name: s.title for s in written},
            "authors": {s.name: ", ".join(filter(None, (s.author, s.url))) for s in written},
            "held_out_with": bundled.data_sha256,
        },
    )
    files = {"ATTRIBUTION.md": attribution_of(written, of_set).encode(), **files}
    not_drawn = {
        given.icon_set.name: given.refused | _not_drawn(given, rows_ND)
        for given, rows_ND in zip(sets, small, strict=True)
    }
    return Built(of_set, Counter(splits), not_drawn, left_out), files


def _not_drawn(given: UserSet, small_ND: NDArray[np.float32]) -> dict[str, str]:
    reasons = {NOT_RENDERED: "is not rendered", EMPTY: "is empty"}
    return {
        drawing.id: reasons[mark]
        for drawing, mark in zip(given.drawings, small_ND[:, 0].tolist(), strict=True)
        if mark in reasons
    }


def _with_splits(
    kept: Sequence[Drawing],
    small_ND: NDArray[np.float32],
    near: dict[int, set[int]],
    bundled: IconCorpus,
    left_out: Counter[str],
) -> tuple[list[Drawing], list[str]]:
    """Return the remaining drawings and their splits, without drawings in `train` that the bundled corpus holds out, by
    name or by appearance."""
    entries = bundled.entries
    decided = decided_by(
        [entry.id for entry in entries],
        [tuple(entry.words.split()) for entry in entries],
        [entry.split for entry in entries],
    )
    splits = assign_splits([d.id for d in kept], [d.name.words for d in kept], near, decided)
    left_out["held out, or show what is held out"] = splits.count(None)
    alike = _like_held_out(small_ND, bundled)
    chosen = [
        (drawing, split)
        for drawing, split, is_alike in zip(kept, splits, alike, strict=True)
        if split is not None and not (is_alike and split == "train")
    ]
    left_out["look like what the bundled corpus holds out"] = (
        len(splits) - splits.count(None) - len(chosen)
    )
    return [drawing for drawing, _ in chosen], [split for _, split in chosen]


def _like_held_out(small_ND: NDArray[np.float32], bundled: IconCorpus) -> list[bool]:
    """Return whether each picture is a near-duplicate of one held out by the bundled corpus."""
    import faiss

    held_out = [i for i, entry in enumerate(bundled.entries) if entry.split != "train"]
    svgs = [bundled.svg(index) for index in held_out]
    folder = cache_folder("icons-held-out")
    make_folder(folder)
    held_out_MD = _kept_small(svgs, folder, "held-out pictures of the bundled corpus")
    if not svgs or not len(small_ND):
        return [False] * len(small_ND)
    index = faiss.IndexFlatL2(held_out_MD.shape[1])
    index.add(np.ascontiguousarray(held_out_MD))
    nearest_N1, _ = index.search(np.ascontiguousarray(small_ND), 1)
    return [bool(distance <= NEAR) for distance in nearest_N1[:, 0]]


def _kept_small(svgs: Sequence[str], folder: Path, title: str) -> NDArray[np.float32]:
    """Return `small_pictures`, cached in a folder; a truncated file is drawn again."""
    drawn = hashlib.sha256(json.dumps([renderer_version(), *svgs]).encode()).hexdigest()

    def read(path: Path) -> NDArray[np.float32] | None:
        try:
            kept: NDArray[np.float32] = load_array(path)
        except (OSError, ValueError):
            return None
        is_whole = kept.shape == (len(svgs), SIDE * SIDE) and kept.dtype == np.float32
        return kept if is_whole else None

    what = f"drawing {title}"
    return computed_once(
        folder / f"{drawn[:32]}.npy", what, read, lambda: small_pictures(svgs, what), save_array
    )
