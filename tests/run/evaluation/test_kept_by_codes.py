"""What codes keep of pictures: by hand, what doesn't count, and when codes don't suit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cm3core.document import Image
from cm3core.errors import DataError
from cm3run.evaluation.kept import Kept, kept_by_codes
from toy_model import GreyTokenizer


def square(level: int, side: int = 4) -> np.ndarray:
    """A square in the middle of a white picture, at a level that the toy's codes keep exactly."""
    pixels = np.full((8, 8, 3), 248, np.uint8)
    start = 4 - side // 2
    pixels[start : start + side, start : start + side] = level
    return pixels


def image(name: str, load: Callable[[], np.ndarray]) -> Image:
    return Image(name, load)


def test_by_hand() -> None:
    """Of four pictures, one comes back as it was, one paler, one blank, and one is blank itself."""
    pictures = np.stack([square(8)] * 3 + [square(248)])
    decoded = np.stack([square(8), square(128), square(248), square(248)])
    kept = Kept.of(pictures, decoded)
    assert kept.drawn_N.tolist() == [True, True, True, False]
    paler, lost = (10 * np.log10(255**2 / difference**2) for difference in (120, 240))
    assert kept.psnr_N[1:3] == pytest.approx([paler, lost])
    assert kept.nearness_N == pytest.approx([1.0, 0.5, 0.0, 1.0], abs=0.01)
    assert (kept.num, kept.psnr, kept.share_lost) == (3, pytest.approx(paler), 1 / 3)
    assert kept.in_words() == (
        "median PSNR 6.5 dB over non-blank areas of 3 pictures, and 33% lose their subject"
    )
    assert kept.sheet().shape == (16, 32, 3)


@pytest.mark.parametrize(
    ("num_lost", "level", "suits"), [(0, 8, True), (1, 8, True), (2, 8, False), (0, 128, False)]
)
def test_codes_suit(num_lost: int, level: int, suits: bool) -> None:
    """A quarter that lose their subject are too many, whatever the others' PSNR; so is a low PSNR."""
    pictures = np.stack([square(8)] * 8)
    decoded = np.stack([square(248)] * num_lost + [square(level)] * (8 - num_lost))
    assert Kept.of(pictures, decoded).suits is suits


def test_pictures_that_can_not_be_read_are_left_out() -> None:
    def damaged() -> np.ndarray:
        raise DataError("a file", "is damaged", "replace it")

    pictures = [
        image("bad", damaged),
        image("good", lambda: square(8)),
        image("blank", lambda: square(248)),
    ]
    kept = kept_by_codes(pictures, GreyTokenizer())
    assert kept is not None
    assert (len(kept.pictures_NHWC), kept.num, kept.share_lost, kept.suits) == (2, 1, 0.0, True)
    assert kept_by_codes(pictures[:1], GreyTokenizer()) is None
    assert kept_by_codes(pictures[2:], GreyTokenizer()) is None
    assert kept_by_codes([], GreyTokenizer()) is None
