"""Features in chunks: the same as at once, and extracted once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.document import PixelArray
from cm3plugins.extractors.simple import PixelsExtractor
from cm3run.evaluation import features as cached
from cm3run.evaluation.features import features_in_chunks, picture_hash


class Counting(PixelsExtractor):
    extracted = 0

    def _extract(self, pictures: Sequence[PixelArray]) -> Any:
        self.extracted += len(pictures)
        return super()._extract(pictures)


@pytest.fixture
def pictures() -> list[PixelArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (9, 8, 3), np.uint8) for _ in range(11)]


def run(pictures: list[PixelArray], extractor: Counting, folder: Path) -> tuple[Any, list[int]]:
    done: list[int] = []
    parts = list(
        features_in_chunks(
            [partial(np.copy, one) for one in pictures],
            extractor,
            folder=folder,
            advance=done.append,
        )
    )
    assert [place for places, _ in parts for place in places] == list(range(len(pictures)))
    return np.concatenate([rows for _, rows in parts]), done


def test_a_second_time_nothing_is_extracted(
    pictures: list[PixelArray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "CHUNK", 4)
    extractor = Counting(2)
    first, done = run(pictures, extractor, tmp_path)
    assert done == [4, 4, 3]
    assert np.array_equal(first, extractor.extract(pictures))
    extractor.extracted = 0
    again, _ = run(pictures, extractor, tmp_path)
    assert np.array_equal(first, again)
    assert extractor.extracted == 0
    pictures[5] = 255 - pictures[5]  # of the second chunk
    run(pictures, extractor, tmp_path)
    assert extractor.extracted == 4
    other = Counting(3)  # another fingerprint
    assert run(pictures, other, tmp_path)[0].shape == (11, 27)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00junk", None])
def test_damaged_files_are_extracted_again(
    pictures: list[PixelArray], tmp_path: Path, damage: bytes | None
) -> None:
    extractor = Counting(2)
    first, _ = run(pictures, extractor, tmp_path)
    [path] = tmp_path.glob("*.npy")
    if damage is None:
        np.save(path, np.full_like(first, np.nan))
    else:
        path.write_bytes(damage)
    assert np.array_equal(run(pictures, extractor, tmp_path)[0], first)


def test_a_hash_knows_the_size() -> None:
    flat = np.zeros((2, 8, 3), np.uint8)
    assert picture_hash(flat) != picture_hash(flat.reshape(4, 4, 3))
    assert picture_hash(flat) == picture_hash(flat[:, ::-1])
