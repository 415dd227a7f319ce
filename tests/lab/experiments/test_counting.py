"""What documents tell, by counting: by hand, where the document is the picture, and where it has
nothing to do with it."""

from __future__ import annotations

import numpy as np
import pytest

from cm3lab.experiments.retrieval.counting import groups_of_codes, kmeans, told
from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig

GROUPS = np.arange(4)


def noise(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (count, 8, 8))


def test_by_hand() -> None:
    """Two groups, training pictures all 0 before documents all 1, one cell each: 3 seen. Coarse: (3
    + 1) / (3 + 2) = 4/5; fine: of 3 seen and 5 of the coarse table, (3 + 5 * 4/5) / (3 + 5) = 7/8;
    where the document says 0, what was never seen: 4/5."""
    train, document = np.zeros((3, 1, 1), int), np.ones((3, 1, 1), int)
    held, of_held = np.array([[[0]], [[1]], [[0]]]), np.array([[[1]], [[1]], [[0]]])
    found = told(train, document, held, of_held, np.array([0, 1]))
    assert found.same == pytest.approx(2 / 3)
    assert found.without == pytest.approx(-(2 * np.log(4 / 5) + np.log(1 / 5)) / 3)
    assert found.with_document == pytest.approx(
        -(np.log(7 / 8) + np.log(1 / 8) + np.log(4 / 5)) / 3
    )


def test_a_document_that_is_the_picture_tells_everything() -> None:
    found = told(noise(0), noise(0), noise(1), noise(1), GROUPS)
    assert found.same == 1
    assert found.without == pytest.approx(np.log(4), abs=0.02)
    assert found.with_document < 0.05


def test_a_document_that_has_nothing_to_do_with_it_tells_nothing() -> None:
    found = told(noise(0), noise(2), noise(1), noise(3), GROUPS)
    assert found.same == pytest.approx(0.25, abs=0.02)
    assert 0 <= found.with_document - found.without < 0.02, (
        "only what the finer table has seen less of"
    )


def test_groups_are_colours() -> None:
    tokenizer = PatchTokenizerConfig().build()
    groups = groups_of_codes(tokenizer)
    assert groups.shape == (1024,)
    assert set(groups) == set(range(16))
    grid = tokenizer.grid[0] * tokenizer.grid[1]
    colours = tokenizer.decode(np.repeat(np.arange(1024)[:, None], grid, 1).astype(np.int32)).mean(
        (1, 2)
    )
    within = np.mean([colours[groups == group].var(0).sum() for group in range(16)])
    assert within < 0.15 * colours.var(0).sum()


def test_kmeans_by_hand() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    first, second, third, fourth = kmeans(points, 2)
    assert first == second != third == fourth
    assert len(set(kmeans(points, 9))) == 4, "no more groups than points"
