"""The tokenizer `product`: the kit's laws, squares by hand, grey pictures that stay grey, what is learnt, and errors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cm3apps.cli.main import main
from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.images import save_png
from cm3core.picture_form import CodeRules
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.by_arrays import Arrays, Rounds, psnr
from cm3plugins.image_tokenizers.product import (
    ProductTokenizer,
    ProductTokenizerConfig,
    best_tints,
    brightness,
)
from cm3plugins.trained.training_run import RunOptions
from messages import tells
from small_pictures import drawn_shapes

SMALL: dict[str, Any] = {"resolution": 16, "patch_size": 8, "part_codes": 32, "colours": 8}
COLOURED = ProductTokenizerConfig(**SMALL)
GREY = ProductTokenizerConfig(**SMALL, colour=False)
BUNDLED = ProductTokenizerConfig(weights="bundled:icons64-ink", part_codes=1280)


@cache
def learnt() -> Arrays:
    """The weights, learnt from 300 pictures of shapes, half of them grey."""
    pictures = drawn_shapes(300, 16, 0)
    pictures[::2] = brightness(pictures[::2])[..., None]
    return COLOURED.learn(pictures, Rounds(RunOptions(steps=8)))


class TestProduct(ImageTokenizerContract):
    config = COLOURED

    def make(self) -> ProductTokenizer:
        return COLOURED.of_arrays(learnt())


class TestProductWithoutColour(ImageTokenizerContract):
    config = GREY

    def make(self) -> ProductTokenizer:
        return GREY.of_arrays(learnt())


def by_hand() -> ProductTokenizer:
    """One square of 2 x 2 pixels, each a part: white, black or 128; tints: grey, and red in the dark."""
    config = ProductTokenizerConfig(resolution=2, patch_size=2, parts=2, part_codes=3, colours=2)
    tints = np.array([[0, 0, 0, 0], [200, 0, 0, 0]], np.int16)
    return config.of_arrays({"parts": np.array([[255], [0], [128]], np.uint8), "tints": tints})


def test_a_square_by_hand() -> None:
    tokenizer = by_hand()
    grey = np.repeat(np.array([[[250, 3], [140, 255]]], np.uint8)[..., None], 3, axis=3)
    codes = tokenizer.encode(grey)
    # ids 0..2, 3..5, 6..8, 9..11 are those of the parts, 12 and 13 those of the tints
    assert codes.tolist() == [[0, 4, 8, 9, 12]]
    assert tokenizer.decode(codes)[0, ..., 0].tolist() == [[255, 0], [128, 255]]
    red = codes.copy()
    red[0, 4] = 13
    # in the dark 200 more red and 200 * 77 / 150 less green, which is clipped; half of that at 128; nothing in white
    assert tokenizer.decode(red)[0].tolist() == [
        [[255, 255, 255], [200, 0, 0]],
        [[228, 77, 128], [255, 255, 255]],
    ]
    assert tokenizer.encode(tokenizer.decode(red)).tolist()[0][4] == 13


def test_the_best_tint_by_hand() -> None:
    """Two pixels, black with 200 more red and white with 10 less blue, each times 255 or 255^2."""
    sums = np.array([[255 * 200.0, 0, 0, 255 * -10, 255**2, 0, 255**2]])
    assert best_tints(sums).tolist() == [[200, 0, 0, -10]]


def test_the_form_says_which_slot_a_code_belongs_to() -> None:
    assert COLOURED.form.rules == CodeRules.by_slot([32, 32, 32, 32, 8])
    assert GREY.form.rules == CodeRules.by_slot([32] * 4)
    assert (COLOURED.form.num_codes, GREY.form.num_codes) == (20, 16)
    both = COLOURED.of_arrays(learnt()), GREY.of_arrays(learnt())
    assert both[0].fingerprint != both[1].fingerprint


GREYS = arrays(np.uint8, (2, 64, 64, 1), elements=st.integers(0, 255), fill=st.just(255))


@given(GREYS)
def test_grey_pictures_stay_grey_and_blank_squares_blank(greys: PixelArray) -> None:
    tokenizer = BUNDLED.build()
    pictures = np.repeat(greys, 3, axis=3)
    again = tokenizer.decode(tokenizer.encode(pictures))
    assert np.ptp(again, axis=3).max() == 0
    for value in (0, 255):
        blank = np.full((1, 64, 64, 3), value, np.uint8)
        assert np.array_equal(tokenizer.decode(tokenizer.encode(blank)), blank)
    squares, kept = (
        one[..., 0].reshape(2, 16, 4, 16, 4).swapaxes(2, 3) for one in (pictures, again)
    )
    white = (squares == 255).all((3, 4))
    assert (kept[white] == 255).all()


@given(st.integers(0, 2**31))
def test_what_is_decoded_is_encoded_as_itself(seed: int) -> None:
    """Any grey picture that codes decode to is kept exactly."""
    tokenizer = GREY.of_arrays(learnt())
    codes = np.random.default_rng(seed).integers(0, 32, (3, 16)) + np.tile([0, 32, 64, 96], 4)
    pictures = tokenizer.decode(codes.astype(np.int32))
    assert np.array_equal(tokenizer.decode(tokenizer.encode(pictures)), pictures)


def test_colour_has_the_ink_of_grey() -> None:
    """The colour code changes no code of a part, so that codes of grey icons serve with and without it."""
    pictures = drawn_shapes(20, 16, 1)
    coloured, grey = (one.of_arrays(learnt()).encode(pictures) for one in (COLOURED, GREY))
    assert np.array_equal(coloured.reshape(20, 4, 5)[..., :4], grey.reshape(20, 4, 4))
    assert coloured.reshape(20, 4, 5)[..., 4].max() > 128
    inked = brightness(pictures)[..., None].repeat(3, 3)
    kept = COLOURED.of_arrays(learnt())
    assert psnr(kept.decode(coloured), pictures) > psnr(inked, pictures)


def test_trained_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for place, picture in enumerate(drawn_shapes(40, 16, 0)):
        save_png(tmp_path / "pictures" / f"{place}.png", picture)
        (tmp_path / "pictures" / f"{place}.txt").write_text("shapes")
    out = tmp_path / "out"
    arguments = [
        *("tokenizer", "train-image", "tokenizer-icons-ink", "image_tokenizer.resolution=16"),
        *("image_tokenizer.part_codes=16", "image_tokenizer.colours=4"),
        *("dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.valid=0.1"),
        *("train.validation_splits=[valid]", "--steps", "2", "-o", str(out), "--quiet"),
    ]
    assert main(arguments) == 0
    assert json.loads((out / "training.json").read_text())["validation_psnr"] > 10
    weights = str(out / "model.safetensors")
    sizes: dict[str, Any] = {**SMALL, "part_codes": 16, "colours": 4}
    assert (
        ProductTokenizerConfig(**sizes, weights=weights, colour=False).build().codebook_size == 64
    )
    with pytest.raises(CheckpointError) as error:
        ProductTokenizerConfig(**{**sizes, "colours": 5}, weights=weights).build()
    assert tells(error.value, "...sizes ... 4 ... the recipe has ... 5")


def test_what_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        ProductTokenizerConfig(parts=3).check()
    assert tells(error.value, "image_tokenizer.parts: is 3 ... 8 pixels a side")
    with pytest.raises(DataError) as few:
        COLOURED.train(np.zeros((2, 16, 16, 3), np.uint8), "unused", steps=1)
    assert tells(few.value, "training pictures: hold 1 different parts, fewer ... part_codes 32")
    with pytest.raises(CheckpointError) as unknown:
        ProductTokenizerConfig(weights="bundled:ink").build()
    assert tells(unknown.value, "image_tokenizer.weights=bundled:ink: no such bundled tokenizer")
