"""Store what a `cm3 quickstart` drew and measured, for docs/quickstart.md: `python docs/_quickstart.py cm3-quickstart`.

Of scenes it writes docs/figures/quickstart.json, and a picture: the first scenes of unseen objects, none selected, with verdicts.
Of icons (`--recipe quickstart`) it writes docs/figures/quickstart-icons.json, and pictures: the answers to prompts, and the first
cases of sets of which nothing was trained, none selected: with verdicts for docs/quickstart.md, with nearness for
docs/gallery.md. `python docs/_generate.py` makes the page's tables of the files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3core.document import PixelArray
from cm3icons.data import IconSourceConfig
from cm3run.nearness import NEARLY_A_COPY, nearness
from cm3run.sheets import grid

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures"
SCORES = ("usable", "thing", "thing_top5", "in_hand", "copied")
#: Rows of the sheet of cases to show.
SHEET_ROWS = 6
_COLOURS = 32
#: Cases of the gallery's picture: side by side, and in all.
BESIDE, CASES = 6, 24


def main() -> None:
    """Write the figures and the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the quickstart")
    run = parser.parse_args().run
    training, drawn = (
        json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("training", "drawn")
    )
    figures = {
        "minutes": round(drawn["minutes"], 1),
        "training_minutes": round(training["seconds"] / 60, 1),
        "steps": training["step"],
        "tokens": training["tokens"],
        "gib": round(max(training["peak_memory_bytes"], drawn["peak_memory_bytes"]) / 2**30, 2),
    }
    is_of_icons = "restyle" in drawn["scores"]
    figures |= icons(run, drawn) if is_of_icons else scenes(run, drawn)
    name = "quickstart-icons" if is_of_icons else "quickstart"
    text = json.dumps(figures, indent=1) + "\n"
    (FIGURES / f"{name}.json").write_text(text, encoding="utf-8")


def scenes(run: Path, drawn: dict[str, Any]) -> dict[str, Any]:
    """The rows of the table of scenes, as in the report, and the sheet of unseen objects."""
    save(Image.open(run / "evaluation" / "unseen" / "verdicts.png"), "quickstart-unseen", 256)
    kept = ("name", "value", "spread", "num", "beside", "beside_spread")
    judged = {
        name: [{key: one[key] for key in kept if key in one} for one in found["scores"]]
        for name, found in drawn["scores"].items()
    }
    return {"judged": judged}


def icons(run: Path, drawn: dict[str, Any]) -> dict[str, Any]:
    """The scores of each split, with the nearness of the gallery's cases; and the pictures."""
    splits = {split: scores_of(found) for split, found in drawn["scores"].items()}
    picture, near = cases_of(run / "evaluation" / "missing")
    save(picture, "quickstart-cases")
    save(Image.open(run / "answers.png"), "quickstart-answers")
    sheet = Image.open(run / "evaluation" / "missing" / "verdicts.png")
    save(sheet.crop((0, 0, sheet.width, SHEET_ROWS * 116)), "quickstart-missing")
    cases = {"num": len(near), "copies": sum(one >= NEARLY_A_COPY for one in near)}
    return {"splits": splits, "cases": cases}


def scores_of(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Row -> score -> [percent, standard error]: what was drawn, then what it is compared with."""
    known = {one["name"]: one for one in found["scores"]}
    rows = {"drawn": {name: [known[name]["value"], known[name]["spread"]] for name in SCORES}}
    for row in ("real", "thing copied", "hand copied"):
        rows[row] = {
            name: [known[name]["beside"][row], known[name]["beside_spread"][row]] for name in SCORES
        }
    return rows


def cases_of(folder: Path) -> tuple[Image.Image, list[float]]:
    """The first cases of an evaluation: what was drawn, the documents before the prompt beside it, and below it how near it is
    to the nearer one; and all these numbers."""
    icons = IconSourceConfig(split="all").build()
    place = {icons.id(index): index for index in range(len(icons))}
    near: list[float] = []
    cells: list[PixelArray] = []
    texts: list[str] = []
    for line in (folder / "made.jsonl").read_text("utf-8").splitlines()[:CASES]:
        case = json.loads(line)
        drawn = np.asarray(Image.open(folder / case["picture"]).convert("RGB"))
        beside = [icons.document(place[name])[1].load() for name in case["documents"]]
        near.append(max((nearness(drawn, one) for one in beside), default=0.0))
        cells.append(cell(drawn, beside))
        texts.append(f"{case['prompt']}\n{near[-1]:.2f}")
    rows = [slice(start, start + BESIDE) for start in range(0, len(cells), BESIDE)]
    sheet = grid(
        [cells[row] for row in rows], captions=[texts[row] for row in rows], scale=1, gap=10
    )
    return Image.fromarray(sheet), near


def cell(drawn: PixelArray, beside: Sequence[PixelArray]) -> PixelArray:
    """A drawing of 96 pixels, and right of it its documents in half that size."""
    canvas = Image.new("RGB", (148, 96), "white")
    canvas.paste(Image.fromarray(drawn).resize((96, 96), Image.Resampling.LANCZOS), (0, 0))
    for number, one in enumerate(beside[:2]):
        small = Image.fromarray(one).resize((44, 44), Image.Resampling.LANCZOS)
        canvas.paste(small, (104, number * 52))
    return np.asarray(canvas)


def save(picture: Image.Image, name: str, colours: int = _COLOURS) -> None:
    """Write a picture in few colours, at most 900 pixels wide."""
    width = min(900, picture.width)
    height = round(picture.height * width / picture.width)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.quantize(colours).save(DOCS / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
