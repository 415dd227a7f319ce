"""The laws of both kinds, and the kind from outside."""

import numpy as np
import pytest
from cm3_watermark import CornerConfig, MarkedConfig
from cm3_watermark.interface import Watermark, WatermarkConfig
from cm3_watermark.testing import WatermarkContract

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.upscaler import UpscalerContract

REGISTRY = load_registry()
LANCZOS = REGISTRY.config_class("upscaler", "bundled/lanczos")


class TestCorner(WatermarkContract):
    config = CornerConfig(size=3)


class TestMarked(UpscalerContract):
    config = MarkedConfig(inner=LANCZOS(), mark=CornerConfig())
    flat_tolerance = 255  # the mark is another colour


class Invisible(Watermark):
    def _mark(self, pixels_HWC):
        return pixels_HWC


def test_the_kit_finds_a_mark_that_is_not_seen():
    class InvisibleConfig(WatermarkConfig):
        def build(self):
            return Invisible()

    tests = WatermarkContract.for_config(InvisibleConfig())()
    with pytest.raises(AssertionError):
        tests.test_a_mark_is_seen()


def test_a_recipe_has_the_section_and_the_upscaler_any_mark():
    overrides = ["upscaler.name=marked", "upscaler.inner=lanczos", "upscaler.mark.name=corner"]
    recipe = compose(
        "tiny", [*overrides, "upscaler.mark.size=3", "watermark=corner"], registry=REGISTRY
    )
    recipe.check()
    assert recipe.watermark == CornerConfig()
    large = recipe.upscaler.build().upscale(np.zeros((4, 4, 3), np.uint8))
    assert large.sum() == 3 * 3 * 3 * 255


def test_a_size_out_of_range():
    recipe = compose("tiny", ["watermark=corner", "watermark.size=0"], registry=REGISTRY)
    with pytest.raises(RecipeError, match=r"watermark.size: is 0, must be at least 1"):
        recipe.check()
