"""Measure how near the pictures of the pages' sheets are to the documents in front of them, and write
docs/figures/sheets.json: `python docs/_sheets.py FOLDER` (ten minutes of one core).

Pictures of `bundled:icons64-tuned` are drawn again, into FOLDER, by the commands of README.md and docs/gallery.md; the
sheets of experiments and of the quick start are measured as they are published. `python docs/_generate.py` then writes
the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cm3core
from cm3apps.evaluation.icons.experiment import nearness_figures
from cm3apps.quickstart.pictures import GAP, HEADER_HEIGHT, TEXT_HEIGHT, TILE
from cm3core.images import save_png
from cm3run.nearness import nearness

DOCS = Path(__file__).parent
FILE = DOCS / "figures" / "sheets.json"
#: Sheet -> prompts and pictures of each; the seed is 1.
SHEETS: dict[str, tuple[tuple[str, ...], int]] = {
    "readme": (
        ("folder download, outline", "potted plant, outline", "fuel pump, filled", "fish, filled"),
        6,
    ),
    "icons-model": (
        (
            *("folder download, outline", "potted plant, outline", "bell minus, filled"),
            *("fuel pump, filled", "motorcycle, outline rounded", "fish, filled"),
            *("snowman, filled rounded", "cat, outline rounded"),
        ),
        4,
    ),
}
#: Published sheet -> pictures of a row, and which of them are in front and drawn after it.
PUBLISHED: dict[str, tuple[int, int, int]] = {
    **{f"icons-{split}": (6, 4, 5) for split in ("comp", "compose", "unseen")},
}
_BLOCKS = 4


def of_sheet(path: Path, num_columns: int, front: int, drawn: int) -> list[float]:
    """The nearness of the pictures in two columns of a sheet (`cm3apps.quickstart.pictures.write_table`)."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    width, height = num_columns * (TILE + GAP) + 3 * GAP, TEXT_HEIGHT + TILE + GAP
    found = []
    for block in range(_BLOCKS):
        for top in range(HEADER_HEIGHT + TEXT_HEIGHT, sheet.shape[0] - TILE - GAP + 1, height):
            one, other = (
                sheet[top : top + TILE, left : left + TILE]
                for left in (
                    block * width + GAP + column * (TILE + GAP) for column in (front, drawn)
                )
            )
            if (one != 255).any():  # else the last block has fewer rows
                found.append(nearness(one, other))
    return found


def published() -> dict[str, dict[str, Any]]:
    """The figures of the sheets that are measured as they are."""
    return {
        name: nearness_figures(of_sheet(DOCS / "images" / f"{name}.png", *columns))
        for name, columns in PUBLISHED.items()
    }


def drawn_again(folder: Path, prompts: Sequence[str], each: int, name: str) -> dict[str, Any]:
    """The figures of a sheet that is drawn again, picture by picture."""
    model = cm3core.load("bundled:icons64-tuned", num_threads=1)
    pictures = []
    for number, one in enumerate(model.generate(list(prompts), each, seed=1)):
        save_png(folder / f"{name}-{number:03}.png", one.pixels, {})
        near = one.nearest
        assert near is not None, "each of these prompts finds a document"
        pictures.append(
            {
                "prompt": one.prompt,
                "retrieved": near.document.id,
                "nearness": round(near.nearness, 4),
            }
        )
    return {**nearness_figures([one["nearness"] for one in pictures]), "pictures": pictures}


if __name__ == "__main__":
    figures = published()
    for sheet_name, (its_prompts, number_of_each) in SHEETS.items():
        figures[sheet_name] = drawn_again(
            Path(sys.argv[1]), its_prompts, number_of_each, sheet_name
        )
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)
