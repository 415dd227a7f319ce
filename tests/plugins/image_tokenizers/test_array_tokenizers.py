"""Tokenizers whose weights are a few arrays (`ordered`, `residual`, `bitwise`): the kit's laws, pictures by hand, what
each further code is worth, training, files, errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cm3apps.cli.main import main
from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.images import save_png
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.bitwise import BitwiseTokenizer, BitwiseTokenizerConfig
from cm3plugins.image_tokenizers.by_arrays import Arrays, ArrayTokenizerConfig, Rounds, psnr
from cm3plugins.image_tokenizers.ordered import OrderedTokenizer, OrderedTokenizerConfig
from cm3plugins.image_tokenizers.residual import ResidualTokenizer, ResidualTokenizerConfig
from cm3plugins.trained.training_run import RunOptions
from messages import tells
from small_pictures import drawn_shapes

CONFIGS: dict[str, ArrayTokenizerConfig] = {
    "ordered": OrderedTokenizerConfig(resolution=16, num_codes=24, levels=16),
    "residual": ResidualTokenizerConfig(resolution=16, stage_size=32),
    "bitwise": BitwiseTokenizerConfig(resolution=16, bits=12),
}


@cache
def learnt(name: str) -> Arrays:
    """The weights, learnt from 300 pictures of shapes."""
    return CONFIGS[name].learn(drawn_shapes(300, 16, 0), Rounds(RunOptions(steps=8)))


def trained(name: str) -> Any:
    return CONFIGS[name].of_arrays(learnt(name))


class TestOrdered(ImageTokenizerContract):
    config = CONFIGS["ordered"]

    def make(self) -> OrderedTokenizer:
        return trained("ordered")


class TestResidual(ImageTokenizerContract):
    config = CONFIGS["residual"]

    def make(self) -> ResidualTokenizer:
        return trained("residual")


class TestBitwise(ImageTokenizerContract):
    config = CONFIGS["bitwise"]

    def make(self) -> BitwiseTokenizer:
        return trained("bitwise")


def error_of(tokenizer: Any, codes: Any, pictures: PixelArray) -> float:
    return float(((tokenizer.decode(codes).astype(float) - pictures) ** 2).mean())


def test_a_longer_prefix_decodes_to_a_finer_picture() -> None:
    tokenizer, unseen = trained("ordered"), drawn_shapes(60, 16, 1)
    codes = tokenizer.encode(unseen)
    assert codes[:, :-1].max() < 16
    assert set(codes[:, -1].tolist()) == {16}
    errors = []
    for length in (1, 2, 4, 8, 16, 24):
        prefix = codes.copy()
        prefix[:, length:] = tokenizer.form.end
        errors.append(error_of(tokenizer, prefix, unseen))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_a_missing_coefficient_is_its_mean() -> None:
    """Pictures of one pixel that are grey, g = 0, 100 or 200: direction (1, 1, 1), two levels."""
    config = OrderedTokenizerConfig(resolution=1, num_codes=1, levels=2)
    greys = np.repeat(np.array([0, 100, 200], np.uint8), 3).reshape(3, 1, 1, 3)
    tokenizer = config.of_arrays(config.learn(greys, Rounds(RunOptions(steps=5))))
    codes = tokenizer.encode(greys)
    assert codes[[0, 2]].tolist() == [[0, 2], [1, 2]]
    assert tokenizer.form.name == "a sequence of at most 2 codes"
    low, high = tokenizer.decode(np.array([[0, 2], [1, 2]], np.int32))[:, 0, 0, 0].tolist()
    assert low < 100 < high


def test_each_stage_lowers_the_error() -> None:
    unseen, errors = drawn_shapes(60, 16, 1), []
    for depth in (1, 2, 3, 4):
        config = ResidualTokenizerConfig(resolution=16, stage_size=32, depth=depth)
        tokenizer = config.of_arrays({"centres": learnt("residual")["centres"][:depth]})
        errors.append(error_of(tokenizer, tokenizer.encode(unseen), unseen))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_a_square_by_hand_is_the_sum_of_its_centres() -> None:
    config = ResidualTokenizerConfig(resolution=1, patch_size=1, depth=2, stage_size=2)
    centres = np.array([[[0] * 3, [200] * 3], [[-20] * 3, [10] * 3]], np.int16)
    tokenizer = config.of_arrays({"centres": centres})
    pictures = np.array([[[[198, 198, 198]]], [[[12, 12, 12]]]], np.uint8)
    codes = tokenizer.encode(pictures)
    assert codes.tolist() == [[1, 3], [0, 3]]
    assert tokenizer.decode(codes)[:, 0, 0, 0].tolist() == [210, 10]
    assert tokenizer.decode(np.array([[0, 2]], np.int32)).max() == 0, "clipped"


def test_a_square_by_hand_is_its_levels_in_gray_code() -> None:
    """Red has four levels, two bits; green none; blue two levels, one bit."""
    config = BitwiseTokenizerConfig(resolution=1, patch_size=1, bits=3)
    edges = np.zeros((3, 63))
    edges[0, :3], edges[2, 0] = [30.5, 60.5, 90.5], 50.5
    values = np.zeros((3, 64), np.float32)
    values[0, :4], values[2, :2] = [-100, -30, 30, 100], [-40, 40]
    arrays = {
        "mean": np.array([100, 7, 50], np.float32),
        "directions": np.eye(3, dtype=np.int16),
        "bits": np.array([2, 0, 1], np.int16),
        "edges": edges,
        "values": values,
    }
    tokenizer = config.of_arrays(arrays)
    reds = [0, 31, 61, 91]
    pictures = np.array([[[[red, 0, 50 + (red == 31)]]] for red in reds], np.uint8)
    codes = tokenizer.encode(pictures)
    # 00, 01, 11, 10; the codes of bit j are 2 j and 2 j + 1
    assert codes.tolist() == [[0, 2, 4], [0, 3, 5], [1, 3, 4], [1, 2, 4]]
    drawn = tokenizer.decode(codes)[:, 0, 0].tolist()
    assert drawn == [[0, 7, 10], [70, 7, 90], [130, 7, 10], [200, 7, 10]]


def test_more_bits_keep_more() -> None:
    training, unseen = drawn_shapes(200, 16, 0), drawn_shapes(40, 16, 1)
    kept = []
    for bits in (1, 4, 12):
        config = BitwiseTokenizerConfig(resolution=16, bits=bits)
        tokenizer = config.of_arrays(config.learn(training, Rounds(RunOptions(steps=8))))
        kept.append(psnr(tokenizer.decode(tokenizer.encode(unseen)), unseen))
    assert kept == sorted(kept)


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_by_the_command(name: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for place, picture in enumerate(drawn_shapes(40, 16, 0)):
        save_png(tmp_path / "pictures" / f"{place}.png", picture)
        (tmp_path / "pictures" / f"{place}.txt").write_text("shapes")
    own = {
        "ordered": "image_tokenizer.num_codes=8",
        "residual": "image_tokenizer.stage_size=8",
        "bitwise": "image_tokenizer.bits=6",
    }[name]
    out = tmp_path / "out"
    arguments = [
        *("tokenizer", "train-image", f"{name}-tiny", "image_tokenizer.resolution=16", own),
        *("dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.valid=0.1"),
        *("--steps", "2", "-o", str(out), "--quiet"),
    ]
    assert main(arguments) == 0
    recipe = compose(str(out / "recipe.yaml"), [], registry=load_registry())
    assert recipe.image_tokenizer is not None
    tokenizer = recipe.image_tokenizer.build()
    assert tokenizer.form == recipe.image_tokenizer.form
    assert json.loads((out / "training.json").read_text())["rounds"] > 0


def test_weights_of_another_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = dataclasses.replace(CONFIGS["residual"], weights=str(path))
    for write, words in (
        (lambda: None, f"{path}: there is no such file"),
        (lambda: path.write_bytes(b"nothing"), "...is not a complete safetensors file"),
        (lambda: trained("bitwise").save(tmp_path), "...not of the format 'cm3leon residual 1'"),
        (lambda: trained("residual").save(tmp_path), "...sizes ... 32 ... the recipe has ... 16"),
    ):
        write()
        if (saved := tmp_path / "model.safetensors").exists():
            saved.replace(path)
        wanted = dataclasses.replace(config, stage_size=16) if "sizes" in words else config
        with pytest.raises(CheckpointError) as error:
            wanted.build()
        assert tells(error.value, words)
    assert config.build().fingerprint == trained("residual").fingerprint
    sizes = json.dumps(config.sizes)
    save_file(
        {"centres": load_file(path)["centres"][:, :1]},
        path,
        {"format": "cm3leon residual 1", "sizes": sizes},
    )
    with pytest.raises(CheckpointError, match="its arrays are not those that its sizes need"):
        config.build()
    with pytest.raises(CheckpointError, match="is null: there are no weights to use"):
        CONFIGS["residual"].build()


FEW: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "coefficients": (
        lambda: CONFIGS["ordered"].train(drawn_shapes(24, 16, 0), "unused", steps=1),
        DataError,
        "training pictures: 24 of 768 ... at most 23 ... num_codes is 24",
    ),
    "squares": (
        lambda: CONFIGS["residual"].train(np.zeros((2, 16, 16, 3), np.uint8), "unused", steps=1),
        DataError,
        "training pictures: hold 1 different squares, fewer ... stage_size 32",
    ),
    "directions": (
        lambda: CONFIGS["bitwise"].train(np.zeros((2, 16, 16, 3), np.uint8), "unused", steps=1),
        DataError,
        "training pictures: their squares differ in 0 directions ... bits 12",
    ),
    "size": (
        lambda: CONFIGS["bitwise"].train(np.zeros((2, 8, 8, 3), np.uint8), "unused", steps=1),
        DataError,
        "training pictures: uint8 [2, 8, 8, 3], expected",
    ),
    "patches": (
        lambda: ResidualTokenizerConfig(resolution=30).check(),
        RecipeError,
        "image_tokenizer.resolution: is 30, not ... patch_size 4",
    ),
    "codes": (
        lambda: ResidualTokenizerConfig(resolution=1024, patch_size=1).check(),
        RecipeError,
        "image_tokenizer.patch_size: is 1 ... 4,194,304 codes",
    ),
    "bits": (
        lambda: BitwiseTokenizerConfig(resolution=2, patch_size=1, bits=4).check(),
        RecipeError,
        "image_tokenizer.bits: is 4 ... has 3 numbers",
    ),
}


@pytest.mark.parametrize("name", FEW)
def test_what_can_not_be_trained(name: str) -> None:
    act, kind, words = FEW[name]
    with pytest.raises(kind) as error:
        act()
    assert tells(error.value, words)
