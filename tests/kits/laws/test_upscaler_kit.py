"""The upscalers' kit: a right upscaler passes, and each law fails for one that is wrong in just
that way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cm3core.document import PixelArray
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig
from cm3kits.upscaler import UpscalerContract
from kit_mutants import assert_covers, assert_law_fails, cases


class Nearest(Upscaler):
    """Right: each pixel becomes four."""

    scale = 2

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return pixels_NHWC.repeat(2, axis=1).repeat(2, axis=2)


@dataclass(kw_only=True)
class NearestConfig(UpscalerConfig):
    def build(self) -> Nearest:
        return Nearest()


class TestRight(UpscalerContract):
    config = NearestConfig()


class BrighterInCompany(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return super()._upscale(pixels_NHWC) + np.uint8(4 * (len(pixels_NHWC) - 1))


class AddsGrain(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        large = super()._upscale(pixels_NHWC)
        return large + np.random.default_rng().integers(0, 3, large.shape, np.uint8)


class WritesOnPictures(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        pixels_NHWC += 1
        return super()._upscale(pixels_NHWC)


class DarkEdges(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        large = super()._upscale(pixels_NHWC)
        large[:, 0] //= 2
        return large


class AtLeastOne(Nearest):
    def upscale_batch(self, pixels_NHWC: PixelArray) -> PixelArray:
        return super().upscale_batch(
            pixels_NHWC if len(pixels_NHWC) else np.zeros((1, *pixels_NHWC.shape[1:]), np.uint8)
        )


class Mirrors(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return super()._upscale(pixels_NHWC)[:, :, ::-1]


class Shifts(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return np.roll(super()._upscale(pixels_NHWC), 4, axis=1)


class CutsTheEdge(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return super()._upscale(pixels_NHWC)[:, :-1]


class Floats(Nearest):
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return super()._upscale(pixels_NHWC) / np.float32(255)


@dataclass(kw_only=True)
class TrainsForAnotherScale(NearestConfig):
    training_scale = 4


class TakesAnything(Nearest):
    def _check(self, pixels: PixelArray, num_axes: int, shape: str) -> None:
        """Nothing is refused."""


class TakesNoPixels(Nearest):
    def _check(self, pixels: PixelArray, num_axes: int, shape: str) -> None:
        if pixels.size:
            super()._check(pixels, num_axes, shape)


MUTANTS = {
    "a_batch_equals_its_pictures_one_by_one": [BrighterInCompany],
    "enlarging_is_deterministic": [AddsGrain, WritesOnPictures],
    "flat_pictures_stay_flat": [DarkEdges],
    "no_pictures_are_a_batch": [AtLeastOne],
    "parts_stay_in_their_places": [Mirrors, Shifts],
    "pictures_have_the_stated_shape": [CutsTheEdge, Floats],
    "the_config_knows_the_scale": [TrainsForAnotherScale],
    "wrong_input_is_refused": [TakesAnything, TakesNoPixels],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_upscaler_fails(law: str, wrong: Any) -> None:
    config = (
        {"config": wrong()} if issubclass(wrong, NearestConfig) else {"make": lambda self: wrong()}
    )
    assert_law_fails(UpscalerContract, law, config)


def test_every_law_has_a_mutant() -> None:
    assert_covers(UpscalerContract, MUTANTS)
