"""R@k of drawn icons, by hand: ranks, ties, candidates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cm3icons.data.corpus import IconCorpus
from cm3icons.evaluation.ranking import NUM_CANDIDATES, RealPictures, blurred
from cm3plugins.metrics.ranking import chance_among_first


@pytest.fixture(scope="module")
def real() -> RealPictures:
    return RealPictures(IconCorpus(), 32, (32, 32), None)


def _some(real: RealPictures, number: int) -> list[int]:
    return [
        index
        for index, entry in enumerate(real.corpus.entries)
        if (entry.set_name, entry.style) == ("lucide", "outline rounded")
    ][:number]


def test_ranks_by_hand() -> None:
    distances = np.array([3.0, 1.0, 2.0, 5.0], np.float32)
    assert [chance_among_first(distances, k) for k in (1, 2, 3, 4)] == [0, 0, 1, 1]
    tied = np.array([2.0, 1.0, 2.0, 2.0, 9.0], np.float32)
    assert [chance_among_first(tied, k) for k in (1, 2, 3, 4)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )


def test_a_blurred_dot_by_hand() -> None:
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[0, 10, 20] = 255
    grid = blurred(picture).reshape(32, 32, 3)
    assert grid[10, 20] == pytest.approx([1 / 9] * 3)
    assert grid[9, 20, 0] == pytest.approx(2 / 27)
    assert grid[8, 18, 0] == pytest.approx(1 / 81)
    assert grid.sum() == pytest.approx(3)


def test_large_pictures_are_shrunk_by_means() -> None:
    small = np.zeros((1, 32, 32, 3), np.uint8)
    small[0, ::3, ::5] = 255
    large = small.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(blurred(large), blurred(small))


def test_candidates_are_other_things_of_the_same_set_and_style(real: RealPictures) -> None:
    for index in _some(real, 5):
        entry = real.corpus.entries[index]
        found = real.candidates(entry)
        assert found[0] == index
        assert len(found) == len(set(found)) == NUM_CANDIDATES
        others = [real.corpus.entries[one] for one in found[1:]]
        assert all(one.words != entry.words for one in others)
        assert {(one.set_name, one.style) for one in others} == {(entry.set_name, entry.style)}


def test_few_of_a_style_are_filled_up_from_the_set(real: RealPictures) -> None:
    sizes = Counter((one.set_name, one.style) for one in real.corpus.entries)
    few = next(key for key, size in sizes.items() if size < NUM_CANDIDATES // 2)
    entry = next(one for one in real.corpus.entries if (one.set_name, one.style) == few)
    found = [real.corpus.entries[index] for index in real.candidates(entry)]
    assert {one.set_name for one in found} == {entry.set_name}
    assert len(found) > sizes[few] or sum(n for key, n in sizes.items() if key[0] == few[0]) < 100
