"""Draw docs/images/forms.png: what image tokenizers of four forms keep of held-out pictures, and what toy models draw from
their captions: `python docs/_forms.py RUNS`, where RUNS has the folders `ordered`, `outlines`, `residual` and `bitwise`
of docs/adding-a-tokenizer.md, 'Toy recipes'.

The captions are the first of the recipe's split `comp`, one of each object; the seed is 1; nothing is selected.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import cm3core
from cm3core.document import Image, PixelArray, Text
from cm3core.images import fit, save_png
from cm3run.model import Model
from cm3run.sheets import grid

FORMS = ("outlines", "ordered", "residual", "bitwise")
#: Codes of coarser pictures of `ordered`.
FEW = 16
COLUMNS, SIZE = 7, 64


def held_out(model: Model) -> list[tuple[str, PixelArray]]:
    """Captions and pictures of the split `comp`, one of each object."""
    config = model.recipe.dataset
    assert config is not None
    source = replace(config, split="comp").build()
    found: dict[str, tuple[str, PixelArray]] = {}
    for index in range(len(source)):
        caption, picture = source.document(index)
        assert isinstance(caption, Text)
        assert isinstance(picture, Image)
        found.setdefault(source.group(index), (caption.text, picture.load()))
    return list(found.values())[:COLUMNS]


def enlarged(picture: PixelArray) -> PixelArray:
    """A picture as large as the others, without smoothing."""
    times = SIZE // picture.shape[0]
    return picture.repeat(times, 0).repeat(times, 1)


def rows_of(name: str, folder: Path) -> list[tuple[str, list[PixelArray], list[str]]]:
    """The rows of a form with a label and captions: the pictures, what the codes keep of them, what the model draws."""
    model = cm3core.load(folder)
    shown = held_out(model)
    captions = [caption for caption, _ in shown]
    tokenizer = model.components.image_tokenizer
    pictures = np.stack([fit(picture, tokenizer.image_size) for _, picture in shown])
    rows = [
        (f"{name}: held-out pictures", pictures),
        ("by their codes", tokenizer.decode(tokenizer.encode(pictures))),
    ]
    for label, most in (("drawn", None), *([(f"drawn in {FEW} codes", FEW)] * (name == "ordered"))):
        drawn = [model.generate(caption, 1, seed=1, max_codes=most)[0] for caption in captions]
        rows.append((label, np.stack([one.pixels for one in drawn])))
    below = [captions] + [[""] * len(shown)] * (len(rows) - 1)
    return [
        (label, [enlarged(one) for one in row], under)
        for (label, row), under in zip(rows, below, strict=True)
    ]


if __name__ == "__main__":
    every = [row for name in FORMS for row in rows_of(name, Path(sys.argv[1]) / name)]
    labels, rows, captions = zip(*every, strict=True)
    path = Path(__file__).parent / "images" / "forms.png"
    sheet = grid(
        rows, row_labels=labels, captions=captions, scale=1, gap=4, font_size=9, label_width=90
    )
    save_png(path, sheet)
    print(path)
