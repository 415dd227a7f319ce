"""Measure what the codes of three image tokenizers keep of grey icons that are held out, and write
docs/figures/icon-codes.json: `python docs/_codes.py` (a minute of one core). `python docs/_generate.py` makes the table
of docs/icons.md of the file.

A square of 8 x 8 pixels is changed if one of its pixels is by more than `VISIBLE` levels; a picture is coloured if the
channels of one of its pixels differ by more than that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.cli._dataset import data_source, drawings_of
from cm3core.images import fit
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.evaluation.quality import psnr_per_picture

FILE = Path(__file__).parent / "figures" / "icon-codes.json"
RECIPES = {"icons64": "icons", "icons64-ink": "icons-ink", "svg": "icons-svg"}
SPLITS, NUM = ("unseen", "restyle", "variant", "strangers"), 250
VISIBLE = 32


def measured(recipe_name: str) -> dict[str, Any]:
    """What the codes of a recipe keep of `NUM` grey icons of each split."""
    own = ["dataset.held_out=closed", "dataset.styles=[-colour]"]
    recipe = compose(recipe_name, own, registry=load_registry())
    assert recipe.image_tokenizer is not None
    tokenizer = recipe.image_tokenizer.build()
    found, again, number = [], [], 0
    for split in SPLITS:
        source = data_source(recipe, split)
        number += min(NUM, len(source))
        if tokenizer.reads_drawings:
            images, codes, _ = drawings_of(source, tokenizer, NUM)
        else:
            step = max(1, len(source) // NUM)
            places = range(0, len(source), step)[:NUM]
            loaded = [source.document(place)[1].load() for place in places]
            images = np.stack([fit(one, tokenizer.image_size) for one in loaded])
            codes = tokenizer.encode(images)
        found.append(images)
        again.append(tokenizer.decode(codes))
    pictures, kept = (np.concatenate(one).astype(int) for one in (found, again))
    far = np.abs(pictures - kept).max(3) > VISIBLE
    rows, columns = (side // 8 for side in far.shape[1:])
    squares = far.reshape(-1, rows, 8, columns, 8).any((2, 4))
    decibels = psnr_per_picture(pictures, kept)
    return {
        "icons": number,
        "encoded": len(pictures),
        "median": float(np.median(decibels)),
        "tenth": float(np.percentile(decibels, 10)),
        "changed": float(squares.mean()),
        "coloured": float((np.ptp(kept, axis=3).max((1, 2)) > VISIBLE).mean()),
    }


if __name__ == "__main__":
    figures = {name: measured(recipe) for name, recipe in RECIPES.items()}
    FILE.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))
