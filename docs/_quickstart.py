"""Store what a `cm3 quickstart` drew and measured, for docs/quickstart.md: `python docs/_quickstart.py cm3-quickstart`.

It writes docs/figures/quickstart.json, and pictures: the answers to prompts, and the first cases of sets of which nothing was
trained, none selected. `python docs/_generate.py` makes the page's tables of the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parent
FILE = DOCS / "figures" / "quickstart.json"
SCORES = ("usable", "thing", "thing_top5", "in_hand", "copied")
#: Rows of the sheet of cases to show.
SHEET_ROWS = 6
_COLOURS = 32


def main() -> None:
    """Write the figures and the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the quickstart")
    run = parser.parse_args().run
    training, drawn = (
        json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("training", "drawn")
    )
    splits = {split: scores_of(found) for split, found in drawn["scores"].items()}
    figures = {
        "minutes": round(drawn["minutes"], 1),
        "training_minutes": round(training["seconds"] / 60, 1),
        "steps": training["step"],
        "tokens": training["tokens"],
        "gib": round(max(training["peak_memory_bytes"], drawn["peak_memory_bytes"]) / 2**30, 2),
        "splits": splits,
    }
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    save(Image.open(run / "answers.png"), "quickstart-answers")
    sheet = Image.open(run / "evaluation" / "strangers" / "verdicts.png")
    save(sheet.crop((0, 0, sheet.width, SHEET_ROWS * 116)), "quickstart-strangers")


def scores_of(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Row -> score -> [percent, standard error]: what was drawn, then what it is compared with."""
    known = {one["name"]: one for one in found["scores"]}
    rows = {"drawn": {name: [known[name]["value"], known[name]["spread"]] for name in SCORES}}
    for row in ("real", "thing copied", "hand copied"):
        rows[row] = {
            name: [known[name]["beside"][row], known[name]["beside_spread"][row]] for name in SCORES
        }
    return rows


def save(picture: Image.Image, name: str) -> None:
    """Write a picture in few colours, at most 900 pixels wide."""
    width = min(900, picture.width)
    height = round(picture.height * width / picture.width)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.quantize(_COLOURS).save(DOCS / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
