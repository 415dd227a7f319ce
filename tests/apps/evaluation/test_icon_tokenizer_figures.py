"""An image tokenizer beside picture files: sizes by hand, files within a budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.icons.tokenizer_figures import (
    FORMATS,
    _opened,
    best_within,
    bytes_for,
    num_bytes,
)
from cm3run.evaluation.quality import psnr_per_picture


@pytest.mark.parametrize(
    ("grid", "codes", "expected"),
    [((8, 8), 4096, 96), ((8, 8), 1024, 80), ((3, 1), 2, 1), ((4, 4), 5, 6)],
)
def test_bytes_of_codes(grid: tuple[int, int], codes: int, expected: int) -> None:
    tokenizer: Any = SimpleNamespace(grid=grid, codebook_size=codes)
    assert num_bytes(tokenizer) == expected


@pytest.fixture
def disc() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    inside = (y - 30) ** 2 + (x - 33) ** 2 < 400
    return np.where(inside, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_more_bytes_are_never_worse(name: str, disc: np.ndarray) -> None:
    errors = []
    for budget in (400, 900, 5000):
        file = best_within(disc, name, budget)
        made = _opened(file, disc)
        assert made.shape == disc.shape
        if len(file) <= budget:
            errors.append(float(np.square(made.astype(float) - disc).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors, "5,000 bytes hold a disc in any format"


def test_a_png_with_room_is_the_picture(disc: np.ndarray) -> None:
    assert (_opened(best_within(disc, "png", 5000), disc) == disc).all()


def test_nothing_fits_a_byte_and_the_smallest_is_made(disc: np.ndarray) -> None:
    for name in FORMATS:
        assert 1 < len(best_within(disc, name, 1)) <= len(best_within(disc, name, 5000))


@pytest.mark.parametrize("name", FORMATS)
def test_a_better_picture_takes_no_fewer_bytes(name: str, disc: np.ndarray) -> None:
    assert bytes_for(disc, name, 15) <= bytes_for(disc, name, 25) <= bytes_for(disc, name, 1000)


def test_psnr_of_a_shrunk_file(disc: np.ndarray) -> None:
    made = _opened(best_within(disc, "webp", 120), disc)
    assert psnr_per_picture(disc[None], made[None])[0] > 10
