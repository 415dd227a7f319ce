"""guided_sample against others: an independent float64 implementation, known vectors, and transformers'
warpers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from cm3kernels import guided_sample
from cm3kernels.guided_sample import eager, reference
from cm3kernels.guided_sample.philox import log_survival, philox4x32
from guided_sample_oracle import (
    OFF,
    as_arguments,
    draw,
    exponential_oracle,
    ints,
    philox_oracle,
    random_batch,
    sample_oracle,
)

ZERO = torch.zeros(1, dtype=torch.int64)
PLAIN = ("eager", "reference")


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        # Random123's kat_vectors; ours, whose counter words 2 and 3 are zero, can meet the first
        # only.
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF,) * 4,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_oracle_gives_random123s_known_words(
    key: tuple[int, int], counter: tuple[int, int, int, int], words: tuple[int, ...]
) -> None:
    assert philox_oracle(key, counter) == words
    if counter[2:] == (0, 0):
        ours = philox4x32(ints(key[0] | key[1] << 32), ints(counter[0])[None], ints(counter[1]))
        assert tuple(ours[0, 0].tolist()) == tuple(word >> 8 for word in words)


@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    position=st.integers(0, 2**32 - 3),
    first=st.integers(0, 2**32 - 400),
    c=st.sampled_from([1, 5, 63, 64, 107, 390]),
)
def test_philox_equals_the_scalar_form(seeds: list[int], position: int, first: int, c: int) -> None:
    """Few counters and many: computed with integers and with tensors."""
    n = len(seeds)
    drawn = philox4x32(
        ints(*seeds), torch.arange(first, first + c)[None], torch.arange(n) + position
    )
    backwards = philox4x32(
        ints(*seeds),
        torch.arange(first, first + c).flip(0).expand(n, c),
        torch.arange(n) + position,
    )
    assert torch.equal(drawn.flip(1), backwards)
    for row, place in {(0, 0), (n - 1, c - 1), (n - 1, c // 2)}:
        key = (seeds[row] & 0xFFFFFFFF, seeds[row] >> 32 & 0xFFFFFFFF)
        expected = philox_oracle(key, (first + place, position + row, 0, 0))
        assert drawn[row, place].tolist() == [word >> 8 for word in expected]


@pytest.mark.parametrize("implementation", PLAIN)
@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        # Probabilities 0.5, 0.3, 0.15, 0.05; surprises 0.693, 1.204, 1.897, 2.996, entropy 1.142,
        # distances 0.449, 0.062, 0.755, 1.854.
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.0}, {0, 1, 2, 3}),
        ({"typical_p": 0.2}, {1}),
        ({"typical_p": 0.7}, {0, 1}),
        ({"typical_p": 0.9}, {0, 1, 2}),
        ({"typical_p": 0.0}, {1}),
        ({"typical_p": 1.0}, {0, 1, 2, 3}),
        # Of ids 0 to 2, renormalised: 0.526, 0.316, 0.158; entropy 0.993; distances 0.351, 0.160,
        # 0.853.
        ({"top_k": 3, "typical_p": 0.6}, {0, 1}),
        ({"min_p": 0.25, "typical_p": 0.85}, {0, 1, 2}),
        # At temperature 2, 0.379, 0.294, 0.208, 0.120: the third and the fourth have 0.548 and
        # 0.316 times the largest.
        ({"temperature": 2.0, "min_p": 0.5}, {0, 1, 2}),
        ({"temperature": 0.0, "min_p": 1.0, "typical_p": 0.2}, {0}),
    ],
)
def test_min_p_and_typical_by_hand(
    filters: dict[str, Any], kept: set[int], implementation: str
) -> None:
    n = 300
    arguments: dict[str, Any] = {
        "logits_SV": torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(),
        "weights_nG": torch.ones(n, 1),
        "stream_rows_nG": ZERO.expand(n, 1),
        "seed_n": torch.arange(n),
        "position_n": ZERO.expand(n),
    }
    assert (
        set(draw(arguments | as_arguments([OFF | filters] * n), implementation=implementation))
        == kept
    )


@given(
    seed=st.integers(0, 2**32),
    V=st.integers(1, 40),
    p=st.floats(1e-6, 1.1),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0]),
    ties=st.booleans(),
)
def test_typical_ids_are_the_smallest_set_around_the_entropy(
    seed: int, V: int, p: float, spread: float, ties: bool
) -> None:
    """Mass of at least p, and less without the furthest; none left out is nearer than one that is
    kept; eager alike."""
    score_V = np.random.default_rng(seed).normal(size=V) * spread
    score_V = np.round(score_V) if ties else score_V
    log_V = score_V - np.log(np.exp(score_V).sum())
    distance_V = np.abs(-log_V + (np.exp(log_V) * log_V).sum())
    score_1V, p_1 = torch.tensor(score_V)[None], torch.tensor([p], dtype=torch.float64)
    kept_V = reference.typical_ids(score_1V, p_1)[0].numpy()
    assert kept_V.any()
    if p >= 1:
        assert kept_V.all()
        return
    assert (eager.typical_ids(score_1V, score_1V.exp(), p_1, [p])[0].numpy() == kept_V).all()
    furthest = distance_V[kept_V].max()
    assert (distance_V[~kept_V] > furthest - 1e-12).all()
    assert np.exp(log_V[kept_V]).sum() >= p - 1e-12
    assert np.exp(log_V[distance_V < furthest - 1e-12]).sum() < p + 1e-12


@given(seed=st.integers(0, 2**32), p=st.floats(0.01, 0.99), V=st.integers(2, 60))
def test_sets_are_those_of_transformers(seed: int, p: float, V: int) -> None:
    """The ids that min-p and typical keep, exactly; in float64, as transformers' warpers then
    compute."""
    logits = torch.tensor(np.random.default_rng(seed).normal(size=(1, V)) * 3)
    p_1 = torch.tensor([p], dtype=torch.float64)
    typical = TypicalLogitsWarper(p)(None, logits) > -math.inf
    assert torch.equal(reference.typical_ids(logits, p_1), typical)
    assert torch.equal(eager.typical_ids(logits, logits.exp(), p_1, [p]) > 0, typical)
    n = 200
    arguments: dict[str, Any] = {
        "logits_SV": logits.float(),
        "weights_nG": torch.ones(n, 1),
        "stream_rows_nG": ZERO.expand(n, 1),
        "seed_n": torch.arange(n) + seed,
        "position_n": ZERO.expand(n),
        "min_p_n": p_1.expand(n),
    }
    kept = MinPLogitsWarper(p)(None, logits.float().double())[0] > -math.inf
    for name in PLAIN:
        assert kept[draw(arguments, implementation=name)].all()
        # and what they leave out would not have been drawn
        only = {"allowed_nV": kept.expand(n, V)}
        assert draw(arguments | only | {"min_p_n": None}, implementation=name) == draw(
            arguments, implementation=name
        )


@pytest.mark.parametrize("implementation", PLAIN)
@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("G", [1, 2, 3])
@pytest.mark.parametrize("V", [5, 64, 300, 1000])
def test_tokens_equal_the_oracles(V: int, G: int, rough: bool, implementation: str) -> None:
    rng = np.random.default_rng([G, V])
    for _ in range(3):
        arguments, expected = random_batch(rng, n=8, G=G, V=V, rough=rough)
        log_probability_n = torch.zeros(8)
        assert (
            draw(arguments, implementation=implementation, out_log_probability_n=log_probability_n)
            == expected
        )
        assert log_probability_n.tolist() == pytest.approx(arguments["log_probabilities"], abs=1e-5)
        assert draw(arguments, implementation=implementation) == expected


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 5),
    G=st.integers(1, 3),
    V=st.integers(1, 400),
    rough=st.booleans(),
)
def test_any_batch_equals_the_oracle(seed: int, n: int, G: int, V: int, rough: bool) -> None:
    arguments, expected = random_batch(np.random.default_rng(seed), n, G, V, rough=rough)
    assert draw(arguments) == expected
    assert draw(arguments, implementation="reference") == expected


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 15.0])
@pytest.mark.parametrize("ties", [False, True])
def test_eager_equals_the_reference_on_long_rows(spread: float, ties: bool) -> None:
    """Flat and peaked rows, with one filter each: nuclei with and without the winner, few ids and
    many, narrow columns, ties."""
    generator = torch.Generator().manual_seed(int(spread * 100))
    n, V = 6, 3000
    logits = torch.randn(2 * n, V, generator=generator) * spread
    logits = (logits / spread).round() if ties else logits
    rows, weights = torch.arange(2 * n).view(n, 2), torch.tensor([[2.0, -1.0]]).expand(n, 2)
    for settings in (
        {},
        {"top_p": 0.95},
        {"top_k": 2000},
        {"top_k": 900, "top_p": 0.5},
        {"plausible_top_p": 0.9},
        {"plausible_top_k": 300, "top_p": 0.7},
        {"plausible_alpha": 0.01, "plausible_k": 40, "temperature": 0.3},
        {"plausible_alpha": 1.5, "plausible_k": 2900},
        {"temperature": 0.0},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"top_k": 40, "typical_p": 0.3},
        {"plausible_alpha": 0.5, "top_p": 0.4, "min_p": 0.01},
        {"plausible_alpha": 0.5, "temperature": 0.0},
    ):
        arguments = as_arguments([OFF | settings] * n) | {
            "seed_n": torch.arange(n),
            "position_n": torch.arange(n) + 9,
        }
        drawn = [
            guided_sample(logits, rows, weights, first_id=7, implementation=name, **arguments)
            for name in PLAIN
        ]
        assert torch.equal(*drawn)


def test_large_flat_rows_need_more_candidates() -> None:
    """A nucleus wider than the first candidates considered: 900 of 1,000 almost equal ids are
    kept."""
    logits = torch.linspace(0, 1e-3, 1000)[None]
    settings = OFF | {"top_p": 0.9, "plausible_top_p": 0.9}
    for position in range(8):
        expected, _ = sample_oracle(
            logits.numpy(), np.ones(1), 0, np.ones(1000, bool), 3, 11, position, settings
        )
        got = guided_sample(
            logits,
            ZERO[None],
            torch.ones(1, 1),
            seed_n=ints(11),
            position_n=ints(position),
            first_id=3,
            **as_arguments([settings]),
        )
        assert got.item() == expected


@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kept_ids_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    """An id is kept if some draw gives it: 3,000 draws of 12 ids reach every kept one of any
    weight, and no other."""
    logits = torch.randn(
        1, 12, generator=torch.Generator().manual_seed(top_k + 3), dtype=torch.float64
    )
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    n = 3000
    tokens = guided_sample(
        logits,
        torch.zeros(n, 1, dtype=torch.int64),
        torch.ones(n, 1),
        seed_n=torch.arange(n),
        position_n=torch.full((n,), 4),
        temperature_n=torch.full((n,), temperature),
        top_k_n=torch.full((n,), top_k),
        top_p_n=torch.full((n,), top_p, dtype=torch.float64),
    )
    probability = warped.softmax(-1)[0]
    assert not (probability[tokens] == 0).any()
    counts = torch.bincount(tokens, minlength=12)
    assert (counts[probability > 0.004] > 0).all()
    assert torch.allclose(counts / n, probability.float(), atol=0.04)


def test_frequencies_are_the_softmaxs() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5, -0.5, 1.5]])
    n = 20_000
    tokens = guided_sample(
        logits,
        torch.zeros(n, 1, dtype=torch.int64),
        torch.ones(n, 1),
        seed_n=torch.arange(n),
        position_n=torch.zeros(n, dtype=torch.int64),
        first_id=2,
    )
    expected = torch.softmax(logits[0].double(), 0) * n
    observed = torch.bincount(tokens - 2, minlength=7)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.9999, df=6)
    neighbours = (tokens[1:] == tokens[:-1]).double().mean()  # seeds 1 apart are independent
    assert abs(float(neighbours) - float(((expected / n) ** 2).sum())) < 0.015


def test_noise_is_exponential() -> None:
    """-log E over all ids and positions: E has mean 1 and variance 1."""
    exponential = -log_survival(torch.full((100,), 9), torch.arange(100), 1001, 999)
    assert abs(float(exponential.mean()) - 1) < 0.01
    assert abs(float(exponential.var()) - 1) < 0.03
    assert exponential[3, 7].item() == pytest.approx(exponential_oracle(9, 3, 1008), rel=1e-12)
