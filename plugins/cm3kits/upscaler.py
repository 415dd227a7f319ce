"""Conformance kit of upscalers: shapes, types, determinism, flat pictures, batches, refusals.

class TestMine(UpscalerContract):
    config = MyUpscalerConfig()
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.upscaler import Upscaler
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import every, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits.samples import example_pictures
from cm3kits.strategies import images


class UpscalerContract(ConfigLaws[Upscaler]):
    """Laws of `Upscaler`. Weights must be set."""

    kind: ClassVar[str] = "upscaler"
    #: Levels (of 255) by which a pixel of a flat picture may change.
    flat_tolerance: ClassVar[int] = 4
    #: Levels by which a picture may differ from itself in a batch (by rounding).
    batch_tolerance: ClassVar[int] = 1
    max_examples: ClassVar[int | None] = 5

    def build(self, config: Any) -> Upscaler:
        """See `UpscalerConfig.build`."""
        upscaler: Upscaler = config.build()
        return upscaler

    def observe(self, component: Upscaler) -> Outputs:
        """Pictures, enlarged."""
        return {
            "scale": component.scale,
            "enlarged pictures": component.upscale_batch(example_pictures(16, 20)),
        }

    def law_pictures_have_the_stated_shape(self, data: st.DataObject) -> None:
        """uint8 [N, scale * H, scale * W, 3], for pictures of any size, even one pixel wide."""
        pictures, scale = data.draw(images()), self.subject.scale
        num, height, width, _ = pictures.shape
        shape = (scale * height, scale * width, 3)
        large, one = self.subject.upscale_batch(pictures), self.subject.upscale(pictures[0])
        for got, wanted in ((large, (num, *shape)), (one, shape)):
            holds(
                got.shape == wanted and got.dtype == np.uint8,
                f"enlarged pictures of {height} x {width} pixels {scale} times",
                f"uint8 {list(wanted)}",
                got,
            )

    def law_enlarging_is_deterministic(self, data: st.DataObject) -> None:
        """Equal pictures give equal results, also in an equal upscaler; inputs are unchanged."""
        pictures = data.draw(images())
        before = pictures.copy()
        large = self.subject.upscale_batch(pictures)
        same(self.subject.upscale_batch(pictures), large, "enlarged the same pictures twice")
        again = self.make_again().upscale_batch(pictures)
        same(again, large, "enlarged the same pictures with two upscalers of one config")
        same(pictures, before, "enlarged pictures, and looked at the pictures given")

    def law_a_batch_equals_its_pictures_one_by_one(self, data: st.DataObject) -> None:
        """The rest of the batch does not matter."""
        pictures = data.draw(images())
        alone = np.stack([self.subject.upscale(picture) for picture in pictures]).astype(int)
        together = self.subject.upscale_batch(pictures).astype(int)
        every(
            together - alone,
            np.abs(together - alone) <= self.batch_tolerance,
            f"enlarged {len(pictures)} pictures together and one by one, and subtracted",
            f"at most {self.batch_tolerance} levels of 255 between them",
        )

    def law_flat_pictures_stay_flat(self, data: st.DataObject) -> None:
        """A picture of one colour keeps it within `flat_tolerance`. Waive it for random weights."""
        colour = np.array(
            data.draw(st.tuples(*[st.integers(0, 255)] * 3), label="colour"), np.uint8
        )
        side = data.draw(st.sampled_from([1, 7, 32]), label="side")
        large = self.subject.upscale(np.broadcast_to(colour, (side, side, 3)).copy())
        every(
            large,
            np.abs(large.astype(int) - colour) <= self.flat_tolerance,
            f"enlarged a picture of {side} x {side} pixels of the colour {colour.tolist()}",
            f"that colour everywhere, within {self.flat_tolerance} levels",
        )

    def law_parts_stay_in_their_places(self) -> None:
        """Nothing is turned, mirrored or shifted. Waive it for random weights.

        A white quarter of a black picture is the same quarter of the enlarged one.
        """
        side, scale = 16, self.subject.scale
        for top, left in ((0, 0), (0, 8), (8, 0), (8, 8)):
            picture = np.zeros((side, side, 3), np.uint8)
            picture[top : top + 8, left : left + 8] = 255
            wanted = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            error = float(np.abs(self.subject.upscale(picture).astype(int) - wanted).mean())
            holds(
                error < 255 / 8,
                f"enlarged a black picture of {side} x {side} pixels with a white square of 8 x 8 at "
                f"row {top}, column {left}",
                "the same square, enlarged: a mean difference below 31.9 levels",
                error,
            )

    def law_the_config_knows_the_scale(self) -> None:
        """A trainable config states the upscaler's scale before there are weights."""
        if self.config is not None:
            try:
                scale = self.config.training_scale
            except RecipeError:
                return
            same(scale, self.subject.scale, "compared the config's training_scale with the scale")

    def law_no_pictures_are_a_batch(self) -> None:
        """No pictures in, no pictures out, of the right size."""
        scale = self.subject.scale
        shape = list(self.subject.upscale_batch(np.zeros((0, 3, 5, 3), np.uint8)).shape)
        same(shape, [0, 3 * scale, 5 * scale, 3], "enlarged no pictures of 3 x 5 pixels")

    def law_wrong_input_is_refused(self) -> None:
        """Grey pictures, other types and pictures without pixels are errors, never converted."""
        wrong: list[Any] = [
            np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 1), (4, 4, 4), (1, 4, 4, 3))
        ]
        wrong += [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
        for pixels in wrong:
            refuses(
                lambda pixels=pixels: self.subject.upscale(pixels),  # type: ignore[misc]  # a default
                f"enlarged {pixels.dtype} {list(pixels.shape)}",
                DataError,
                match="an upscaler takes uint8" if pixels.size else "is 4 x 0 pixels",
            )
        refuses(
            lambda: self.subject.upscale_batch(np.zeros((4, 4, 3), np.uint8)),
            "enlarged a batch uint8 [4, 4, 3]",
            DataError,
            match="an upscaler takes uint8",
        )
