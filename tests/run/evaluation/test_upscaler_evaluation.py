"""Upscalers from outside: what the interface refuses, and how their quality is measured beside
Lanczos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces import ImageTokenizer, Upscaler, UpscalerConfig
from cm3run.evaluation.quality import (
    SSIM_WINDOW,
    evaluate_upscaler,
    lanczos,
    small_pictures,
    ssim_per_picture,
)
from messages import tells


class Nearest(Upscaler):
    """Each pixel becomes 3 x 3."""

    scale = 3

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return pixels_NHWC.repeat(3, axis=1).repeat(3, axis=2)


class Lanczos(Upscaler):
    scale = 3

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return lanczos(pixels_NHWC, 3)


class FourGreys(ImageTokenizer):
    """Pictures of 4 x 6 pixels, each pixel one of four greys."""

    image_size, grid, codebook_size, fingerprint = (4, 6), (4, 6), 4, "four greys"

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        return (pixels_NHWC.mean(axis=3) / 64).astype(np.int32).reshape(len(pixels_NHWC), -1)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        return (codes_Nc * 85).astype(np.uint8).reshape(-1, 4, 6, 1).repeat(3, axis=3)


def noise(*shape: int, seed: int = 0) -> PixelArray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (noise(4, 4), "picture: uint8 [4, 4], but an upscaler takes uint8 [height, width, 3]"),
        (
            noise(4, 4, 1),
            "picture: uint8 [4, 4, 1], but an upscaler takes uint8 [height, width, 3]",
        ),
        (
            noise(4, 4, 3).astype(np.float32),
            "picture: float32 [4, 4, 3], but an upscaler takes uint8 [height, width, 3]",
        ),
    ],
)
def test_other_arrays_are_refused(pixels: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        Nearest().upscale(pixels)
    assert str(caught.value) == f"{told}\n  next: open it with cm3core.images.open_image"
    with pytest.raises(DataError, match=r"an upscaler takes uint8 \[N, height, width, 3\]"):
        Nearest().upscale_batch(pixels)


def test_empty_and_huge_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        Nearest().upscale(noise(0, 7, 3))
    assert tells(caught.value, "picture: is 7 x 0")
    monkeypatch.setattr("cm3core.interfaces.upscaler.MAX_PIXELS", 9 * 20)
    assert Nearest().upscale(noise(4, 5, 3)).shape == (12, 15, 3)
    with pytest.raises(DataError) as caught:
        Nearest().upscale(noise(3, 7, 3))
    assert tells(caught.value, "picture: 7 x 3 ... 3 ... than 180")


def test_what_cannot_be_trained_says_so() -> None:
    with pytest.raises(RecipeError) as caught:
        _ = UpscalerConfig().training_scale
    assert tells(caught.value, "upscaler: UpscalerConfig can't be")


def test_lanczos_is_pillows() -> None:
    pixels = noise(2, 5, 7, 3)
    expected = [
        np.asarray(Pillow.fromarray(picture).resize((28, 20), Pillow.Resampling.LANCZOS))
        for picture in pixels
    ]
    assert np.array_equal(lanczos(pixels, 4), expected)


def test_small_pictures_are_shrunk_and_reconstructed() -> None:
    """Squares of 3 x 3 equal pixels far from edges shrink to that pixel; the tokenizer knows four
    greys of it."""
    large = np.full((3, 12, 18, 3), 70, np.uint8)
    large[1], large[2] = 190, (0, 130, 230)
    done: list[int] = []
    small, reconstructed = small_pictures(large, FourGreys(), batch_size=2, progress=done.append)
    assert small.shape == reconstructed.shape == (3, 4, 6, 3)
    assert small[:, 0, 0].tolist() == [[70] * 3, [190] * 3, [0, 130, 230]]
    assert reconstructed[:, 0, 0].tolist() == [[85] * 3, [170] * 3, [85] * 3]
    assert done == [2, 1]


def test_ssim_by_hand() -> None:
    """Flat pictures of 100 and 120: variances are 0, so SSIM is (2 ab + c1) / (a^2 + b^2 + c1), c1
    = 2.55^2."""
    a, b = np.full((1, 9, 8, 3), 100, np.uint8), np.full((1, 9, 8, 3), 120, np.uint8)
    assert ssim_per_picture(a, b).tolist() == pytest.approx([(24000 + 6.5025) / (24400 + 6.5025)])
    with pytest.raises(DataError) as caught:
        ssim_per_picture(a[:, :6], b[:, :6])
    assert tells(caught.value, "pictures: 8 x 6 ... SSIM ... of 7")


@given(
    st.integers(0, 2**32 - 1),
    st.integers(SSIM_WINDOW, 12),
    st.integers(SSIM_WINDOW, 12),
    st.integers(0, 255),
)
def test_ssim_window_by_window(seed: int, height: int, width: int, strength: int) -> None:
    """The definition, one window after the other."""
    a = noise(2, height, width, 3, seed=seed)
    b = np.clip(
        a.astype(int) + noise(2, height, width, 3, seed=seed + 1).astype(int) * strength // 255,
        0,
        255,
    ).astype(np.uint8)
    for index, found in enumerate(ssim_per_picture(a, b)):
        x, y = a[index].mean(axis=2), b[index].mean(axis=2)
        values = []
        for top in range(height - SSIM_WINDOW + 1):
            for left in range(width - SSIM_WINDOW + 1):
                u, v = (
                    grey[top : top + SSIM_WINDOW, left : left + SSIM_WINDOW].ravel()
                    for grey in (x, y)
                )
                (uu, uv), (_, vv) = np.cov(u, v)
                values.append(
                    (2 * u.mean() * v.mean() + 6.5025)
                    * (2 * uv + 58.5225)
                    / ((u.mean() ** 2 + v.mean() ** 2 + 6.5025) * (uu + vv + 58.5225))
                )
        assert found == pytest.approx(np.mean(values))
    assert ssim_per_picture(a, a) == pytest.approx(1.0)


def test_evaluation_compares_with_lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanczos beside itself is equal; blocks of 3 x 3 pixels are what `Nearest` draws and Lanczos
    blurs; greys lose colour."""
    blocks = noise(7, 4, 6, 3).repeat(3, axis=1).repeat(3, axis=2)
    report = evaluate_upscaler(Lanczos(), FourGreys(), blocks, batch_size=3)
    assert report.quality["shrunk"][0] == report.quality["shrunk"][1]
    assert report.quality["reconstructed"][0] == report.quality["reconstructed"][1]
    done: list[int] = []
    monkeypatch.setattr("cm3run.evaluation.quality.NUM_SHOWN", 2)
    nearest = evaluate_upscaler(
        Nearest(),
        FourGreys(),
        blocks,
        batch_size=3,
        progress=done.append,
        name="nearest",
    )
    base, ours = nearest.quality["shrunk"]
    assert base == report.quality["shrunk"][0]
    assert ours.psnr > base.psnr
    assert ours.ssim > base.ssim
    assert nearest.quality["reconstructed"][1].psnr < ours.psnr - 3
    assert done == [3, 3, 1]
    assert nearest.picture.shape[0] < report.picture.shape[0], "two rows of pictures, seven rows"


def test_evaluation_refuses_other_sizes() -> None:
    for wrong, shown in (
        (noise(2, 12, 12, 3), "[2, 12, 12, 3]"),
        (noise(0, 12, 18, 3), "[0, 12, 18, 3]"),
    ):
        with pytest.raises(DataError) as caught:
            evaluate_upscaler(Nearest(), FourGreys(), wrong)
        assert tells(caught.value, f"pictures: uint8 {shown}, expected ... 12 ... 18 ... 3")
