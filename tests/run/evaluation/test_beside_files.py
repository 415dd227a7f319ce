"""Codes beside JPEG and WebP files: bytes by hand and by an independent count, budgets that hold."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cm3core.picture_form import CodeRules, PictureForm
from cm3run.evaluation.beside_files import FORMATS, coded_bytes, files_of, plain_bytes
from cm3run.evaluation.quality import psnr_per_picture

PAIRS = PictureForm.of_grid(1, 2, 2, CodeRules.by_slot([3, 3]))


def drawings(number: int) -> np.ndarray:
    """Coloured squares on white."""
    rng = np.random.default_rng(0)
    pictures = np.full((number, 32, 32, 3), 255, np.uint8)
    for picture in pictures:
        for colour in rng.integers(0, 256, (4, 3), dtype=np.uint8):
            top, left = rng.integers(0, 24, 2)
            picture[top : top + 8, left : left + 8] = colour
    return pictures


def test_plain_bytes_by_hand() -> None:
    """Four codes of three: log2(3) bits each; a sequence is as long as it is."""
    assert plain_bytes(np.array([[0, 3, 1, 5]]), PAIRS, 6) == pytest.approx(4 * math.log2(3) / 8)
    sequence = PictureForm.sequence(4, 0, 8)
    assert plain_bytes(np.array([[1, 2, 0, 0]]), sequence, 8) == pytest.approx(3 * 3 / 8)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=9))
def test_coded_bytes_are_those_of_counting(rows: list[tuple[int, ...]]) -> None:
    """Counted again with dictionaries."""
    codes = np.array([[a, 3 + b, c, 3 + d] for a, b, c, d in rows])
    bits = 0.0
    for slot in range(2):
        own = codes[:, slot::2].tolist()
        seen = {code for row in own for code in row}
        for place, row in enumerate(own):
            others = Counter(code for other in own[1 - place % 2 :: 2] for code in other)
            for code in row:
                total = sum(others.values()) + 0.5 * len(seen)
                bits -= math.log2((others[code] + 0.5) / total)
    assert coded_bytes(codes, PAIRS) == pytest.approx(bits / 8 / len(rows))


@pytest.mark.parametrize("name", FORMATS)
def test_files_keep_to_the_bytes_and_more_of_them_are_better(name: str) -> None:
    pictures = drawings(12)
    found = [files_of(pictures, name, size) for size in (60, 150, 10_000)]
    assert all(files is not None for files in found)
    sizes = [files.size for files in found if files is not None]
    assert sizes[0] <= 60 < sizes[1] <= 150
    decibels = [
        psnr_per_picture(pictures, files.decoded_NHWC).mean()
        for files in found
        if files is not None
    ]
    assert decibels[0] < decibels[1] < decibels[2]
    assert found[2] is not None
    assert (found[2].scale, found[2].quality) == (1, 100)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_so_small(name: str) -> None:
    assert files_of(drawings(2), name, 1) is None


def test_headers_and_tables_do_not_count() -> None:
    """Of a JPEG, the scan that its parser finds: what lies between its first entropy-coded byte and the end."""
    stream = io.BytesIO()
    Image.fromarray(drawings(1)[0]).save(stream, "JPEG", quality=50)
    file, place = stream.getvalue(), 2
    while file[place + 1] != 0xDA:  # each segment: FF, its kind, its length
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    start = place + 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    found = files_of(drawings(1), "JPEG", len(file))
    assert found is not None
    assert file[-2:] == b"\xff\xd9"
    by_quality = files_of(drawings(1), "JPEG", len(file) - 2 - start)
    assert by_quality is not None
    assert by_quality.size == len(file) - 2 - start


@settings(max_examples=10)
@given(st.integers(20, 400))
def test_a_budget_is_never_exceeded(most: int) -> None:
    for name in FORMATS:
        files = files_of(drawings(3), name, most)
        assert files is None or files.size <= most
