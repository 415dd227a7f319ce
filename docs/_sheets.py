"""Collect how near the pictures of the pages' sheets are to the documents in front of them, and write
docs/figures/sheets.json: `python docs/_sheets.py DRAWN_FOLDER MODEL_FOLDER GUIDE_FOLDER`.

The folders are those that the two commands of docs/gallery.md under "Icons" wrote, and the first command of docs/guide.md;
each picture's file says what it was drawn after, and how near it is. `python docs/_generate.py` then writes the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cm3run.attribution import facts_in, nearest
from cm3run.nearness import NEARLY_A_COPY

FILE = Path(__file__).parent / "figures" / "sheets.json"


def drawn(folder: Path) -> dict[str, Any]:
    """The figures of a sheet, from the files of its pictures."""
    pictures = []
    for path in sorted(folder.glob("[0-9][0-9][0-9].png")):
        facts = facts_in(path.read_bytes(), str(path))
        found = nearest(facts.credits)
        assert found is not None
        assert found.nearness is not None
        prompt = facts.texts["prompt"]
        pictures.append({"prompt": prompt, "retrieved": found.id, "nearness": found.nearness})
    near = [one["nearness"] for one in pictures]
    copies = sum(value >= NEARLY_A_COPY for value in near)
    return {
        "num": len(near),
        "median": float(np.median(near)),
        "copies": copies,
        "pictures": pictures,
    }


if __name__ == "__main__":
    figures = {
        name: drawn(Path(folder))
        for name, folder in zip(
            ("icons-drawn", "icons-model", "guide-draw"), sys.argv[1:], strict=True
        )
    }
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE)
