"""R@k of drawn icons, by hand: ranks, ties, candidates; a perfect copy and pictures of noise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cm3apps.evaluation.icons.ranking import (
    NUM_CANDIDATES,
    Judge,
    RealPictures,
    blurred,
    judges,
)
from cm3plugins.datasets.icons.corpus import IconCorpus
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


def test_a_copy_is_always_first_and_noise_by_chance(real: RealPictures) -> None:
    indices = _some(real, 30)
    entries = [real.corpus.entries[index] for index in indices]
    judge = judges(["pixels"], real)["pixels"]
    copies = judge.chances([real[index] for index in indices], entries, (1, 5))
    assert copies == {1: 1.0, 5: 1.0}
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in indices]
    assert judge.chances(noise, entries, (1,))[1] <= 0.1
    assert judge.chances(noise, entries, (100,))[100] == 1.0


def test_random_numbers_rank_by_chance(real: RealPictures) -> None:
    """k / 100, for any k, if what is compared has nothing to do with the picture."""
    rng = np.random.default_rng(1)
    judge = Judge(
        lambda pictures: rng.normal(size=(len(pictures), 8)).astype(np.float32), False, real
    )
    indices = _some(real, 100) * 4
    entries = [real.corpus.entries[index] for index in indices]
    found = judge.chances([real[index] for index in indices], entries, (1, 50))
    assert found[1] == pytest.approx(0.01, abs=0.02)
    assert found[50] == pytest.approx(0.5, abs=0.1)


def test_features_that_are_all_equal_rank_by_chance(real: RealPictures) -> None:
    judge = Judge(lambda pictures: np.ones((len(pictures), 4), np.float32), True, real)
    index = _some(real, 1)[0]
    found = judge.chances([real[index]], [real.corpus.entries[index]], (1, 5))
    assert found == pytest.approx({1: 0.01, 5: 0.05})
