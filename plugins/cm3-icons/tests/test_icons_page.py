"""docs/icons.md: its tables and picture are those of the shipped corpus, its keys those of the data set."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import _icons
import numpy as np
import pytest
from PIL import Image as Picture

from cm3icons.data import IconSourceConfig
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.sets import PERMITTED_LICENCES

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "icons.md").read_text(encoding="utf-8")


def test_the_splits_are_those_of_the_corpus() -> None:
    assert PAGE.count("<!-- table: ") == 9
    for split, number in IconCorpus().manifest.num_of_split.items():
        assert f"| `{split}` | {number:,} | " in PAGE


@pytest.mark.slow
def test_the_picture_is_of_this_corpus() -> None:
    with Picture.open(_icons.PICTURE) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    made = _icons.picture(IconCorpus()).astype(int)
    assert made.shape == shown.shape, f"run `{_icons.COMMAND}`"
    # another version of the renderer or of Pillow may smooth edges otherwise
    assert np.abs(made - shown).mean() < 2, f"run `{_icons.COMMAND}`"


def test_every_key_is_documented() -> None:
    table = PAGE.split("| key |")[1].split("\n\n")[0]
    keys = {
        name
        for cell in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert keys == {field.name for field in fields(IconSourceConfig)}


def test_permitted_licences_are_named() -> None:
    line = PAGE.split("has only sets under ")[1].split(". ")[0]
    for licence in PERMITTED_LICENCES:
        assert licence.removesuffix("-1.0").removesuffix("-4.0") in line
