"""Rebuild the corpus' data files from the pinned npm packages: ``python -m
cm3icons.data.build --tarballs FOLDER``.

Steps: fetch the tarballs and check their SHA-256; split names; draw everything once and drop what can't be
distinguished; assign the fixed splits; write the compressed files. The same packages give the same bytes (with
liblzma 5.x, the same renderer, and the same number of threads: `close_pairs` compares twelve neighbours,
and if there are more, rounding decides which are the nearest).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cm3core.files import write_bytes
from cm3icons.data.comparison import drop_duplicates, small_pictures
from cm3icons.data.read import Drawing, drawings_of_set, emoji_drawings, open_set
from cm3icons.data.sets import ASSETS, all_sets
from cm3icons.data.splits import assign_splits
from cm3icons.data.write import attribution, corpus_files
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.datasets.vector.packages import fetch_tarballs, rebuild_main


def data_files(drawings: Sequence[Drawing], splits: Sequence[str]) -> dict[str, bytes]:
    """Return the corpus' files: name -> bytes."""
    records = {
        "packages": {s.package.spec: s.sha256 for s in all_sets().values()},
        "licences": {s.name: s.licence for s in all_sets().values()},
    }
    files = corpus_files(drawings, splits, all_sets(), records)
    of_set = Counter(drawing.set_name for drawing in drawings)
    return files | {"ATTRIBUTION.md": attribution(of_set).encode()}


def build(tarballs: Path) -> tuple[dict[str, bytes], Counter[str]]:
    """Return the data files, and the number of drawings left out by reason."""
    drawings = [
        drawing
        for icon_set in all_sets().values()
        for drawing in drawings_of_set(icon_set, open_set(tarballs, icon_set))
    ]
    drawings += emoji_drawings(EmojiCorpus())
    small_ND = small_pictures([drawing.svg for drawing in drawings])
    _, kept, near, counts = drop_duplicates(drawings, small_ND)
    splits = assign_splits([d.id for d in kept], [d.name.words for d in kept], near)
    counts["would show a held-out pair"] = splits.count(None)
    chosen = [(d, split) for d, split in zip(kept, splits, strict=True) if split is not None]
    return data_files([d for d, _ in chosen], [split for _, split in chosen]), counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return rebuild_main("icons", ASSETS, _run, arguments)


def _run(tarballs: Path, output: Path, check: bool) -> int:
    fetch_tarballs(tarballs, [icon_set.package for icon_set in all_sets().values()])
    files, counts = build(tarballs)
    print(json.loads(files["manifest.json"])["num_of_split"])
    print("left out: " + ", ".join(f"{number} {reason}" for reason, number in counts.items()))
    if check:
        differing = [
            name
            for name, data in files.items()
            if not (output / name).is_file() or (output / name).read_bytes() != data
        ]
        print(f"differs: {', '.join(differing)}" if differing else f"{output}: equal byte for byte")
        return 1 if differing else 0
    for name, data in files.items():
        write_bytes(output / name, data)
    print(f"{output}: {sum(map(len, files.values())):,} bytes in {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
