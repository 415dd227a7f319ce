"""Write a small test fixture of real pictures: ``python -m cm3plugins.datasets.emoji.atlas
tests/fixtures/emoji128``.

It holds 64 concepts of the quickstart list, each in noto and fluent, all in split train: 128 tiles in one
lossless picture, row by row, next to `captions.json` and the licences of the two styles.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from cm3core.files import atomic_path, write_text
from cm3plugins.datasets.emoji.build import unit_hash
from cm3plugins.datasets.emoji.captions import caption
from cm3plugins.datasets.emoji.corpus import ASSETS, EmojiCorpus, select_concepts

TILE = 32
COLUMNS = 16
NUM_CONCEPTS = 64
ATLAS_STYLES = ("noto", "fluent")
_ALWAYS = "red-apple"
_LICENSES = ("Apache-2.0.txt", "MIT-fluentui-emoji.txt")


def choose_entries(corpus: EmojiCorpus) -> list[int]:
    """Return the 128 entries, concept by concept, in an order set by a hash."""
    cells = {
        (entry.concept, entry.style): index
        for index, entry in enumerate(corpus.entries)
        if entry.split == "train"
    }
    whole = [
        concept
        for concept in select_concepts("quickstart", corpus)
        if all((concept, style) in cells for style in ATLAS_STYLES)
    ]
    chosen = sorted(whole, key=lambda concept: (concept != _ALWAYS, unit_hash("atlas", concept)))[
        :NUM_CONCEPTS
    ]
    return [cells[concept, style] for concept in chosen for style in ATLAS_STYLES]


def draw_atlas(corpus: EmojiCorpus, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Return the tiles in one picture, uint8 [rows * TILE, COLUMNS * TILE, 3]. Legend: Y rows and X columns
    of tiles with y by x pixels."""
    tiles = np.stack([corpus.render(index, TILE) for index in indices])
    return rearrange(tiles, "(Y X) y x C -> (Y y) (X x) C", X=COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from PIL import Image

    parser = argparse.ArgumentParser(
        prog="python -m cm3plugins.datasets.emoji.atlas",
        description="Write a test fixture of 128 pictures.",
        epilog="example: python -m cm3plugins.datasets.emoji.atlas tests/fixtures/emoji128",
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    corpus = EmojiCorpus()
    indices = choose_entries(corpus)
    with atomic_path(folder / "atlas.png") as temporary:
        Image.fromarray(draw_atlas(corpus, indices)).save(temporary, format="PNG", optimize=True)
    tiles = []
    for index in indices:
        entry = corpus.entries[index]
        facts = {
            "id": entry.id,
            "concept": entry.concept,
            "label": entry.label,
            "style": entry.style,
        }
        tiles.append(
            {
                **facts,
                "tags": list(entry.tags),
                "category": entry.category,
                "caption": caption(entry),
            }
        )
    lines = ",\n  ".join(json.dumps(tile, ensure_ascii=False) for tile in tiles)
    write_text(
        folder / "captions.json",
        f'{{\n "tile": {TILE},\n "columns": {COLUMNS},\n "tiles": [\n  {lines}\n ]\n}}\n',
    )
    for name in _LICENSES:
        shutil.copyfile(ASSETS / "licenses" / name, folder / name)
    print(f"{folder}: {len(indices)} tiles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
