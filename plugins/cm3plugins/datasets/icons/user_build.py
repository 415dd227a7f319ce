"""Build an icon corpus in a user's folder: the same schema, comparison and splits as the bundled corpus, over
the given sets alone, and true to what the bundled one holds out.

What takes minutes, the drawing, is kept by the set in the folder until the corpus is whole, so that a killed
build resumes; its files are named by a hash of what was drawn. The manifest is written last: a folder
without it is no corpus.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError
from cm3core.files import (
    atomic_path,
    cache_folder,
    check_writable,
    locked,
    make_folder,
    write_bytes,
)
from cm3plugins.datasets.icons.attribution import attribution_of
from cm3plugins.datasets.icons.comparison import (
    EMPTY,
    NOT_RENDERED,
    drop_duplicates,
    small_pictures,
)
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.duplicates import NEAR, SIDE
from cm3plugins.datasets.icons.read import Drawing
from cm3plugins.datasets.icons.splits import assign_splits, decided_by
from cm3plugins.datasets.icons.user_sets import UserSet
from cm3plugins.datasets.icons.write import corpus_files
from cm3plugins.datasets.vector.render import renderer_version
from cm3run.npy import load_array, save_array

UNFINISHED = ".unfinished"
"""Folder, in the corpus' one, of what is drawn before the corpus is whole."""
_OWN = re.compile(rf"{re.escape(UNFINISHED)}|entries\.jsonl\.xz|svg-.+\.jsonl\.xz|ATTRIBUTION\.md")


@dataclass(frozen=True)
class Built:
    """What was built.

    Args:
        num_of_set, num_of_split: number of icons by set and by split.
        not_drawn: set -> ids that were not rendered or show nothing -> why.
        left_out: counts by reason.
    """

    num_of_set: Counter[str]
    num_of_split: Counter[str]
    not_drawn: dict[str, dict[str, str]]
    left_out: Counter[str]


def check_output(out: Path) -> None:
    """Raise `CM3Error` unless a corpus can be built in this folder: a new one, or one of a killed build."""
    check_writable(out, folder=True)
    if not out.is_dir():
        return
    names = sorted(path.name for path in out.iterdir())
    if "manifest.json" in names:
        raise DataError(
            str(out), "already holds a corpus", "name another folder, or delete this one"
        )
    if foreign := [name for name in names if not _OWN.fullmatch(name)]:
        cause = f"holds other files, such as {foreign[0]}"
        raise DataError(str(out), cause, "name a new folder")


def build(sets: Sequence[UserSet], out: Path, bundled: IconCorpus) -> Built:
    """Build the corpus of these sets in a folder.

    Args:
        sets: in the corpus' order.
        out: the folder, made if it is not there.
        bundled: the corpus whose held-out things, pairs and drawings are held out here, too.

    Raises:
        DataError: another process builds there, or nothing is left to write.
    """
    unfinished = out / UNFINISHED
    make_folder(unfinished)
    busy = DataError(str(out), "is being built by another process", "wait for it")
    with locked(unfinished / "lock", busy):
        check_output(out)
        built, files = _corpus(sets, unfinished, bundled)
        for path in out.glob("svg-*.jsonl.xz"):
            if path.name not in files:
                path.unlink()  # of a killed build of other sets
        manifest = files.pop("manifest.json")
        for name, data in files.items():
            write_bytes(out / name, data)
        write_bytes(out / "manifest.json", manifest)
        shutil.rmtree(unfinished)
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
        cause = f"no icon is left of {len(drawings):,} ({reasons or 'none was read'})"
        raise DataError("cm3 icons build", cause, "give other sets")
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
    """Drawings that stay and their splits: nothing in `train` that the bundled corpus holds out, by name or by
    looks."""
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
    """Whether each picture is a near-duplicate of one that the bundled corpus holds out."""
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
    """`small_pictures`, kept in a folder; a file that was cut is drawn again."""
    drawn = hashlib.sha256(json.dumps([renderer_version(), *svgs]).encode()).hexdigest()
    path = folder / f"{drawn[:32]}.npy"
    try:
        kept: NDArray[np.float32] = load_array(path)
    except (OSError, ValueError):
        kept = np.empty((0, 0), np.float32)
    if kept.shape == (len(svgs), SIDE * SIDE) and kept.dtype == np.float32:
        return kept
    small_ND = small_pictures(svgs, f"drawing {title}")
    with atomic_path(path) as temporary:
        save_array(temporary, small_ND)
    return small_ND
