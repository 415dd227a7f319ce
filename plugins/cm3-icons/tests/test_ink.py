"""The upscaler `ink`: what is a drawing in ink, and that its areas are drawn large without noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import PixelArray
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3icons.config import InkUpscalerConfig
from cm3icons.ink import Ink, ink_of
from cm3kits.upscaler import UpscalerContract
from cm3plugins.upscalers import LanczosUpscalerConfig
from cm3run.evaluation.quality import psnr_per_picture
from messages import tells


class TestInk(UpscalerContract):
    config = InkUpscalerConfig()


def square(side: int = 32, level: int = 0, inside: int | None = None) -> PixelArray:
    """A square of a level on white, half as wide as the picture, with a square of another in it."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    quarter, eighth = side // 4, side // 8
    pixels[quarter:-quarter, quarter:-quarter] = level
    if inside is not None:
        pixels[quarter + eighth : -quarter - eighth, quarter + eighth : -quarter - eighth] = inside
    return pixels


@pytest.mark.parametrize(
    ("pixels", "ink"),
    [
        (square(), Ink(1.0, 0.0)),
        (square(level=51), Ink(0.8, 0.0)),
        (square(inside=255), Ink(1.0, 0.0)),
        (square(inside=153), Ink(1.0, 0.4)),
        (np.full((8, 8, 3), 255, np.uint8), None),  # nothing drawn
        (np.zeros((8, 8, 3), np.uint8), None),  # no paper
        (square() * np.array([1, 0, 0], np.uint8), None),  # in colour
        (np.repeat(np.arange(0, 256, 4, np.uint8)[None, :, None], 64, 0).repeat(3, 2), None),
    ],
)
def test_levels_by_hand(pixels: PixelArray, ink: Ink | None) -> None:
    found = ink_of(pixels)
    if ink is None or found is None:
        assert found is ink
    else:
        assert (round(found.full, 3), round(found.grey, 3)) == (ink.full, ink.grey)


@pytest.mark.parametrize("inside", [None, 255, 153])
def test_areas_are_drawn_large(inside: int | None) -> None:
    upscaler = InkUpscalerConfig().build()
    large = upscaler.upscale(square(inside=inside))
    true = square(128, inside=inside)
    assert np.abs(large.astype(int) - true).max(axis=2).mean() < 4  # corners are rounded
    lanczos = LanczosUpscalerConfig().build().upscale(square(inside=inside))
    ours, theirs = psnr_per_picture(np.stack([large, lanczos]), np.stack([true, true]))
    assert ours > theirs
    # but for edges there are the levels alone
    levels = {0, 255, *([] if inside is None else [inside])}
    assert np.isin(large, list(levels)).mean() > 0.9


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 255, 153]))
@settings(max_examples=20)
def test_noise_in_white_and_in_ink_is_gone(seed: int, inside: int | None) -> None:
    clean = square(inside=inside)
    noise = np.random.default_rng(seed).integers(-9, 10, (32, 32, 1))
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    upscaler = InkUpscalerConfig().build()
    large, wanted = upscaler.upscale(noisy).astype(int), upscaler.upscale(clean).astype(int)
    assert (large[:24] == 255).all()
    assert (large[36:44, 36:92] == 0).all()
    assert np.abs(large - wanted).max(axis=2).mean() < 3


def test_what_is_no_drawing_stays_as_the_other_one_enlarges_it() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), np.uint8)
    other = LanczosUpscalerConfig(scale=3)
    upscaler = InkUpscalerConfig(otherwise=other).build()
    assert upscaler.scale == 3
    assert np.array_equal(upscaler.upscale_batch(colours), other.build().upscale_batch(colours))
    same = InkUpscalerConfig(otherwise=LanczosUpscalerConfig(scale=1)).build()
    assert np.array_equal(same.upscale(square()), square())


def test_in_a_recipe() -> None:
    registry = load_registry()
    recipe = compose("icons", registry=registry)
    assert type(recipe.upscaler) is InkUpscalerConfig
    assert recipe.upscaler.build().scale == 4
    larger = ["upscaler.otherwise=lanczos", "upscaler.otherwise.scale=8"]
    changed = compose("icons", larger, registry=registry).upscaler
    assert changed is not None
    assert changed.build().upscale(square(8)).shape == (64, 64, 3)
    with pytest.raises(RecipeError) as caught:
        compose("icons", ["upscaler.scale=8"], registry=registry)
    assert tells(caught.value, "command line: upscaler.scale: the upscaler 'ink' ... 'scale'")
