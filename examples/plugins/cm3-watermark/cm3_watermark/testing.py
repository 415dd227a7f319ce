"""Conformance kit of kind `watermark`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3_watermark.interface import Watermark
from cm3core.document import PixelArray
from cm3kits import Contract


class WatermarkContract(Contract[Watermark]):
    """Laws of `Watermark`."""

    kind: ClassVar[str] = "watermark"

    def build(self, config: Any) -> Watermark:
        """See `WatermarkConfig.build`."""
        watermark: Watermark = config.build()
        return watermark

    def law_pictures_keep_their_shape(self, data: st.DataObject) -> None:
        """uint8 [H, W, 3] gives uint8 [H, W, 3]."""
        picture = drawn(data)
        marked = self.subject.mark(picture)
        assert (marked.shape, marked.dtype) == (picture.shape, picture.dtype)

    def law_marking_is_deterministic(self, data: st.DataObject) -> None:
        """Equal pictures get equal marks, and the picture given is not changed."""
        picture = drawn(data)
        before = picture.copy()
        assert np.array_equal(self.subject.mark(picture), self.make_again().mark(picture))
        assert np.array_equal(picture, before)

    def law_a_mark_is_seen(self) -> None:
        """A black picture does not stay black."""
        assert self.subject.mark(np.zeros((8, 8, 3), np.uint8)).any()


def drawn(data: st.DataObject) -> PixelArray:
    """A picture of any size from 1 x 1."""
    size, seed = st.integers(1, 20), data.draw(st.integers(0, 99))
    shape = (data.draw(size), data.draw(size), 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
