"""Squares as codes: the kit's laws, a picture by hand, equal pictures whatever is encoded with
them, training, files, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig
from cm3plugins.image_tokenizers.patches.tokenizer import (
    PatchTokenizer,
    nearest,
    pictures,
    save_codebook,
    squares,
)
from cm3plugins.image_tokenizers.patches.training import divided
from messages import tells

SMALL = PatchTokenizerConfig(resolution=4, patch_size=2, codebook_size=3, weights=None)
#: Black, white, and the left half red.
CODEBOOK = np.array([[0] * 12, [255] * 12, [255, 0, 0, 0, 0, 0] * 2], np.uint8)


class TestPatches(ImageTokenizerContract):
    config = SMALL

    def make(self) -> PatchTokenizer:
        return PatchTokenizer(4, 2, CODEBOOK)


class TestBundled(ImageTokenizerContract):
    config = PatchTokenizerConfig()


def test_a_picture_by_hand() -> None:
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    picture[0, :2, :2] = 250  # nearest white
    picture[0, 2:, 2, 0] = 200  # left column of the last square, red
    tokenizer = PatchTokenizer(4, 2, CODEBOOK)
    codes = tokenizer.encode(picture)
    assert codes.tolist() == [[1, 0, 0, 2]]
    drawn = tokenizer.decode(codes)[0]
    assert drawn[0, 0].tolist() == [255, 255, 255]
    assert drawn[3, 2].tolist() == [255, 0, 0]
    assert drawn[3, 3].tolist() == [0, 0, 0]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_squares_are_cut_in_raster_order_and_put_back(
    seed: int, num: int, rows: int, columns: int, side: int
) -> None:
    shape = (num, rows * side, columns * side, 3)
    given_NHWC = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    cut = squares(given_NHWC, side)
    assert [square.tolist() for square in cut] == [
        picture[side * y : side * (y + 1), side * x : side * (x + 1)].ravel().tolist()
        for picture in given_NHWC
        for y in range(rows)
        for x in range(columns)
    ]
    assert np.array_equal(pictures(cut, side, (rows, columns)), given_NHWC)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_nearest_is_brute_force_and_its_own(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    codebook = rng.integers(0, 256, (7, 12), dtype=np.uint8)
    codebook[5] = codebook[2]  # an exact tie: the first
    drawn = rng.integers(0, 256, (number, 12), dtype=np.uint8)
    drawn[0] = codebook[5]
    expected = [
        min(range(7), key=lambda k: (int(((row.astype(int) - codebook[k]) ** 2).sum()), k))
        for row in drawn
    ]
    assert nearest(drawn, codebook).tolist() == expected
    assert [int(nearest(row[None], codebook)[0]) for row in drawn] == expected, (
        "whatever is encoded together"
    )


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 48, 300, 432]),
    st.integers(1, 40),
    st.integers(0, 20),
    st.sampled_from([(0, 256), (0, 3), (253, 256)]),
)
def test_float32_is_as_exact_as_float64(
    seed: int, numbers: int, codes: int, number: int, between: tuple[int, int]
) -> None:
    """Also at black and white, whose sums are the largest; 432 numbers are compared in float64."""
    rng = np.random.default_rng(seed)
    codebook = rng.choice([0, 255, int(rng.integers(*between))], (codes, numbers)).astype(np.uint8)
    drawn = rng.choice([0, 255, int(rng.integers(*between))], (number, numbers)).astype(np.uint8)
    drawn = np.concatenate([drawn, drawn[::-1]])  # equal squares
    wide = codebook.astype(np.float64)
    expected = ((wide**2).sum(1) / 2 - drawn.astype(np.float64) @ wide.T).argmin(1)
    found = nearest(drawn, codebook)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()


def test_frequent_squares_by_hand() -> None:
    """Of 16 squares and 8 codes, what occurs twice is frequent; a quarter of the codes are two."""
    given_P1 = np.array([[9]] * 6 + [[201]] * 4 + [[100]] * 3 + [[8], [50], [101]], np.uint8)
    frequent, others = divided(given_P1, 8)
    assert frequent.tolist() == [[9], [201]], "the most frequent first"
    assert others.tolist() == [[50], [102]], "8 is 9 and 101 is 100, merged"
    frequent, others = divided(np.array([[9]] * 3 + [[v] for v in range(20, 98, 4)], np.uint8), 4)
    assert frequent.tolist() == [], "3 of 23 are less than a quarter"
    assert len(others) == 21


def test_plain_backgrounds_come_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    backgrounds = np.array([[253, 251, 7], [31, 30, 29]], np.uint8)
    shown = np.broadcast_to(backgrounds[np.arange(8) % 2, None, None], (8, 32, 32, 3)).copy()
    shown[:, 8:16, 8:16] = rng.integers(0, 256, (8, 8, 8, 3))
    config = PatchTokenizerConfig(codebook_size=12, weights=None)
    first, second = (
        config.train(shown, tmp_path / name, steps=3, show_progress=False) for name in "ab"
    )
    tokenizer, other = (replace(config, weights=str(path)).build() for path in (first, second))
    assert tokenizer.fingerprint == other.fingerprint, "the seed decides"
    plain = np.broadcast_to(backgrounds[:, None, None], (2, 32, 32, 3))
    assert np.array_equal(tokenizer.decode(tokenizer.encode(plain)), plain)
    again = tokenizer.decode(tokenizer.encode(shown))
    assert np.array_equal(again[:, 16:], shown[:, 16:]), "around a drawing, too"
    assert json.loads((tmp_path / "a" / "training.json").read_text())["frequent_squares"] == 2


def test_the_same_weights_at_two_resolutions(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    rng = np.random.default_rng(0)
    save_codebook(path, 4, rng.integers(0, 256, (4096, 48), dtype=np.uint8))
    small, large = (
        PatchTokenizerConfig(resolution=side, codebook_size=4096, weights=str(path)).build()
        for side in (32, 64)
    )
    picture = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    codes = large.encode(picture).reshape(16, 16)
    assert np.array_equal(small.encode(picture[:, 32:, :32])[0], codes[8:, :8].ravel())


def test_what_looks_the_same_has_the_same_codes() -> None:
    """Unlike a VQGAN's, whose normalisation looks at the whole picture."""
    tokenizer = PatchTokenizerConfig().build()
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    other[8:16, 4:12] = one[8:16, 4:12]
    codes = tokenizer.encode(np.stack([one, other])).reshape(2, 8, 8)
    assert np.array_equal(codes[0, 2:4, 1:3], codes[1, 2:4, 1:3])
    assert not np.array_equal(codes[0], codes[1])


def test_training_finds_the_squares_there_are(tmp_path: Path) -> None:
    shown = PatchTokenizer(4, 2, CODEBOOK).decode(np.array([[0, 1, 2, 0], [2, 2, 1, 0]], np.int32))
    path = SMALL.train(shown, tmp_path, steps=5, validation_NHWC=shown, show_progress=False)
    tokenizer = PatchTokenizerConfig(
        resolution=4, patch_size=2, codebook_size=3, weights=str(path)
    ).build()
    again = tokenizer.decode(tokenizer.encode(shown))
    assert np.abs(again.astype(int) - shown).max() <= 3, (
        "squares are learned up to the rounding that makes near ones one"
    )
    assert json.loads((tmp_path / "training.json").read_text())["different_squares"] == 3
    with pytest.raises(DataError) as error:
        PatchTokenizerConfig(resolution=4, patch_size=2, codebook_size=4, weights=None).train(
            shown, tmp_path, steps=1
        )
    assert tells(error.value, "training pictures: hold 3 different")


def test_by_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(
            [
                "tokenizer",
                "train-image",
                "tiny",
                "image_tokenizer=patches",
                "image_tokenizer.weights=null",
                "image_tokenizer.codebook_size=64",
                "--steps",
                "2",
                "-o",
                str(out),
                "--quiet",
            ]
        )
        == 0
    )
    recipe = compose(str(out / "recipe.yaml"), [], registry=load_registry())
    assert recipe.image_tokenizer is not None
    assert recipe.image_tokenizer.build().codebook_size == 64


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = PatchTokenizerConfig(resolution=4, patch_size=2, codebook_size=3, weights=str(path))
    next_step = "use a file written by `cm3 tokenizer train-image`, or leave image_tokenizer.weights at bundled:emoji32"
    with pytest.raises(CheckpointError) as missing:
        config.build()
    assert str(missing.value) == f"{path}: there is no such file\n  next: {next_step}"
    save_codebook(path, 2, CODEBOOK[:2])
    with pytest.raises(CheckpointError) as other:
        config.build()
    assert tells(other.value, f"{path}: holds 2 squares of 2 ... expects 3 of 2")
    save_file(
        {"codebook": CODEBOOK.astype(np.float32)},
        path,
        {"format": "cm3leon patches 1", "patch_size": "2"},
    )
    with pytest.raises(CheckpointError, match="does not have the format 'cm3leon patches 1'"):
        config.build()
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        config.build()
    with pytest.raises(CheckpointError) as unknown:
        PatchTokenizerConfig(weights="bundled:none").build()
    assert tells(unknown.value, "image_tokenizer.weights=bundled:none: no such bundled tokenizer")
    with pytest.raises(RecipeError) as odd:
        PatchTokenizerConfig(resolution=30).check()
    assert tells(odd.value, "image_tokenizer.resolution: is 30, not ... patch_size 4")
