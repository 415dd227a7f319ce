"""guided_sample against an independent float64 implementation in numpy, known vectors, and transformers' warpers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cm3kernels import guided_sample
from cm3kernels.guided_sample.philox import philox4x32
from cm3kernels.guided_sample.reference import race_noise

ZERO = torch.zeros(1, dtype=torch.int64)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


# The oracle: one request at a time, sorted lists, scalar Philox. Nothing is shared with the implementation.

def philox_oracle(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((second >> 32) ^ c1 ^ k0, second & 0xFFFFFFFF, (first >> 32) ^ c3 ^ k1, first & 0xFFFFFFFF)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def exponential_oracle(seed: int, position: int, token: int) -> float:
    word = philox_oracle((seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF), (token // 4, position, 0, 0))[token % 4]
    return -math.log1p(-((word >> 8) + 0.5) / 2**24)


def keep_top(values: dict[int, float], k: int, p: float) -> dict[int, float]:
    """Values of the ids that top-k and then top-p keep, ties kept."""
    if 0 < k < len(values):
        kth = sorted(values.values(), reverse=True)[k - 1]
        values = {i: x for i, x in values.items() if x >= kth}
    if p < 1:
        ordered = np.array(sorted(values.values(), reverse=True))
        mass = np.cumsum(np.exp(ordered - ordered[0]))
        last = min(int(np.sum(mass < p * mass[-1])), len(ordered) - 1)
        values = {i: x for i, x in values.items() if x >= ordered[last]}
    return values


def sample_oracle(logits: np.ndarray, weights: np.ndarray, reference: int, allowed: np.ndarray, first_id: int, seed: int,
                  position: int, s: dict[str, Any]) -> int:
    logits, weights = logits.astype(np.float64), weights.astype(np.float64)
    legal = [i for i in range(logits.shape[1]) if allowed[i]]
    conditional = {i: float(logits[reference, i]) for i in legal}
    plausible = keep_top(conditional, s["plausible_top_k"], s["plausible_top_p"]).keys()
    if s["plausible_alpha"] > 0:
        ordered = sorted(conditional.values(), reverse=True)
        limit = min(ordered[min(s["plausible_k"], len(ordered)) - 1] + math.log(s["plausible_alpha"]), ordered[0])
        plausible = plausible & {i for i, x in conditional.items() if x >= limit}
    mixed = {i: float(sum(weights[g] * logits[g, i] for g in range(len(weights)))) for i in plausible}
    if s["temperature"] <= 0:
        return min(i for i, x in mixed.items() if x == max(mixed.values())) + first_id
    kept = keep_top({i: x / s["temperature"] for i, x in mixed.items()}, s["top_k"], s["top_p"])
    return min(kept, key=lambda i: (-(kept[i] - math.log(exponential_oracle(seed, position, i + first_id))), i)) + first_id


SETTINGS = ("temperature", "top_k", "top_p", "plausible_top_k", "plausible_top_p", "plausible_alpha", "plausible_k")
WHOLE = ("top_k", "plausible_top_k", "plausible_k")


def random_settings(rng: np.random.Generator, V: int) -> dict[str, Any]:
    return {"temperature": rng.choice([0.0, 0.5, 1.0, 1.3]), "top_k": int(rng.choice([0, 1, 5, V, V + 3])),
            "top_p": rng.choice([1.0, 0.9, 0.31, 1e-9]), "plausible_top_k": int(rng.choice([0, 7, 20])),
            "plausible_top_p": rng.choice([1.0, 0.83]), "plausible_alpha": rng.choice([0.0, 0.1, 0.7, 1.0]),
            "plausible_k": int(rng.choice([1, 3, V + 9]))}


def as_arguments(settings: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {f"{name}_n": torch.tensor([s[name] for s in settings],
                                      dtype=torch.int64 if name in WHOLE else torch.float64) for name in SETTINGS}


def random_batch(rng: np.random.Generator, n: int, G: int, V: int) -> tuple[dict[str, Any], list[int]]:
    """A batch of every mixture of settings, and what the oracle draws."""
    logits = torch.tensor(rng.normal(size=(n * G + 2, V)) * 3, dtype=torch.float32)
    if rng.random() < 0.4:
        logits = logits.bfloat16()  # many exact ties
    rows = rng.integers(0, n * G + 2, size=(n, G))
    weights = rng.normal(size=(n, G)).astype(np.float32)
    allowed = rng.random((n, V)) < 0.6
    allowed[np.arange(n), rng.integers(0, V, n)] = True
    reference, seed = rng.integers(0, G, n), rng.integers(-2**63, 2**63 - 1, n)
    position, first_id = rng.integers(0, 2**20, n), int(rng.integers(0, 70000))
    settings = [random_settings(rng, V) for _ in range(n)]
    arguments = {"logits_SV": logits, "stream_rows_nG": torch.tensor(rows), "weights_nG": torch.tensor(weights),
                 "reference_n": torch.tensor(reference), "allowed_nV": torch.tensor(allowed), "seed_n": torch.tensor(seed),
                 "position_n": torch.tensor(position), "first_id": first_id, **as_arguments(settings)}
    values = logits.float().numpy()
    expected = [sample_oracle(values[rows[i]], weights[i], int(reference[i]), allowed[i], first_id, int(seed[i]),
                              int(position[i]), settings[i]) for i in range(n)]
    return arguments, expected


def draw(arguments: dict[str, Any]) -> list[int]:
    positional = [arguments[k] for k in ("logits_SV", "stream_rows_nG", "weights_nG")]
    tokens: list[int] = guided_sample(*positional, **{k: v for k, v in arguments.items()
                                                      if k not in ("logits_SV", "stream_rows_nG", "weights_nG")}).tolist()
    return tokens


@pytest.mark.parametrize(("key", "counter", "words"), [
    # Random123's kat_vectors; ours, whose counter words 2 and 3 are zero, can meet the first only.
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_oracle_gives_random123s_known_words(key: tuple[int, int], counter: tuple[int, int, int, int],
                                             words: tuple[int, ...]) -> None:
    assert philox_oracle(key, counter) == words
    if counter[2:] == (0, 0):
        ours = philox4x32(ints(key[0] | key[1] << 32), ints(counter[0]), ints(counter[1]))
        assert tuple(ours[0, 0].tolist()) == words


@given(seed=st.integers(-2**63, 2**63 - 1), position=st.integers(0, 2**32 - 1), counter=st.integers(0, 2**32 - 1))
def test_philox_equals_the_scalar_form(seed: int, position: int, counter: int) -> None:
    words = philox4x32(ints(seed), ints(counter), ints(position))[0, 0].tolist()
    assert tuple(words) == philox_oracle((seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF), (counter, position, 0, 0))


def test_worked_example() -> None:
    """Guidance 3 on two streams, by hand: 3c - 2u = (2, 5, 1, 8); plausible by c: the two largest are ids 0 and 1."""
    logits = torch.tensor([[4.0, 3.0, 1.0, 2.0], [5.0, 2.0, 1.0, -1.0]])
    rows, weights = ints(0, 1)[None], torch.tensor([[3.0, -2.0]])
    greedy: dict[str, Any] = {"temperature_n": torch.zeros(1), "seed_n": ZERO, "position_n": ZERO}
    assert guided_sample(logits, rows, weights, **greedy).item() == 3
    assert guided_sample(logits, rows, weights, plausible_top_k_n=ints(2), **greedy).item() == 1
    assert guided_sample(logits, rows, weights, allowed_nV=torch.tensor([[1, 0, 1, 0]]).bool(), **greedy).item() == 0
    # c >= c_(2) + log 0.5 = 3 - 0.693: again ids 0 and 1; with alpha = 0.3, 3 - 1.204 = 1.796, id 3 comes back.
    for alpha, token in ((0.5, 1), (0.3, 3)):
        settings = {"plausible_alpha_n": torch.tensor([alpha]), "plausible_k_n": ints(2)}
        assert guided_sample(logits, rows, weights, **settings, **greedy).item() == token


@pytest.mark.parametrize("G", [1, 2, 3])
@pytest.mark.parametrize("V", [5, 64, 300])
def test_tokens_equal_the_oracles(G: int, V: int) -> None:
    rng = np.random.default_rng([G, V])
    for _ in range(4):
        arguments, expected = random_batch(rng, n=12, G=G, V=V)
        assert draw(arguments) == expected


@given(seed=st.integers(0, 2**32), n=st.integers(1, 5), G=st.integers(1, 3), V=st.integers(1, 40))
def test_any_batch_equals_the_oracle(seed: int, n: int, G: int, V: int) -> None:
    arguments, expected = random_batch(np.random.default_rng(seed), n, G, V)
    assert draw(arguments) == expected


def test_large_flat_rows_need_more_candidates() -> None:
    """A nucleus wider than the first candidates looked at: 900 of 1,000 almost equal ids are kept."""
    logits = torch.linspace(0, 1e-3, 1000)[None]
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 0.9, "plausible_top_k": 0, "plausible_top_p": 0.9,
                "plausible_alpha": 0.0, "plausible_k": 1}
    for position in range(8):
        expected = sample_oracle(logits.numpy(), np.ones(1), 0, np.ones(1000, bool), 3, 11, position, settings)
        got = guided_sample(logits, ZERO[None], torch.ones(1, 1), seed_n=ints(11), position_n=ints(position), first_id=3,
                            **as_arguments([settings]))
        assert got.item() == expected


def test_draw_depends_on_seed_position_and_id_only() -> None:
    rng = np.random.default_rng(5)
    arguments, expected = random_batch(rng, n=16, G=2, V=96)
    order = torch.tensor(rng.permutation(16))
    permuted = {k: v[order] if isinstance(v, torch.Tensor) and k != "logits_SV" else v for k, v in arguments.items()}
    assert draw(permuted) == [expected[i] for i in order.tolist()]
    for i in (0, 7):
        alone = {k: v[i:i + 1] if isinstance(v, torch.Tensor) and k != "logits_SV" else v for k, v in arguments.items()}
        assert draw(alone) == [expected[i]]
    # The same ids as columns 37.. of a wider slice, the others not allowed.
    wider = dict(arguments, logits_SV=torch.randn(34, 150, dtype=torch.float64),
                 allowed_nV=torch.zeros(16, 150, dtype=torch.bool))
    wider["first_id"] = max(arguments["first_id"] - 37, 0)
    shift = arguments["first_id"] - wider["first_id"]
    wider["logits_SV"][:, shift:shift + 96] = arguments["logits_SV"]
    wider["allowed_nV"][:, shift:shift + 96] = arguments["allowed_nV"]
    for name in ("top_k_n", "plausible_top_k_n", "plausible_k_n"):  # a k past the slice stays off
        wider[name] = arguments[name].where(arguments[name] < 96, 1000 if name == "plausible_k_n" else 0)
    assert draw(wider) == expected


def test_frequencies_are_the_softmaxs() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5, -0.5, 1.5]])
    n = 20_000
    tokens = guided_sample(logits, torch.zeros(n, 1, dtype=torch.int64), torch.ones(n, 1), seed_n=torch.arange(n),
                           position_n=torch.zeros(n, dtype=torch.int64), first_id=2)
    expected = torch.softmax(logits[0].double(), 0) * n
    observed = torch.bincount(tokens - 2, minlength=7)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.9999, df=6)
    neighbours = (tokens[1:] == tokens[:-1]).double().mean()  # seeds 1 apart are independent
    assert abs(float(neighbours) - float(((expected / n) ** 2).sum())) < 0.015


def test_noise_is_exponential() -> None:
    """-log E over all ids and positions: E has mean 1 and variance 1."""
    exponential = (-race_noise(torch.full((100,), 9), torch.arange(100), 1001, 999)).exp()
    assert abs(float(exponential.mean()) - 1) < 0.01
    assert abs(float(exponential.var()) - 1) < 0.03
    assert exponential[3, 7].item() == pytest.approx(exponential_oracle(9, 3, 1008), rel=1e-12)


@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kept_ids_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    """An id is kept if some draw gives it: 3,000 draws of 12 ids reach every kept one of weight, and no other."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(top_k + 3), dtype=torch.float64)
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    n = 3000
    tokens = guided_sample(logits, torch.zeros(n, 1, dtype=torch.int64), torch.ones(n, 1), seed_n=torch.arange(n),
                           position_n=torch.full((n,), 4), temperature_n=torch.full((n,), temperature),
                           top_k_n=torch.full((n,), top_k), top_p_n=torch.full((n,), top_p, dtype=torch.float64))
    probability = warped.softmax(-1)[0]
    assert not (probability[tokens] == 0).any()
    counts = torch.bincount(tokens, minlength=12)
    assert (counts[probability > 0.004] > 0).all()
    assert torch.allclose(counts / n, probability.float(), atol=0.04)


def test_infinite_logits_never_make_nan() -> None:
    """Guidance over -inf: (1 - s) * -inf is +inf and 0 * -inf is NaN; such ids are just not drawn."""
    inf = float("inf")
    logits = torch.tensor([[0.0, -inf, 1.0, 0.5], [0.0, 3.0, -inf, 0.0]])
    greedy: dict[str, Any] = {"temperature_n": torch.zeros(1), "seed_n": ZERO, "position_n": ZERO}
    both = ints(0, 1)[None]
    assert guided_sample(logits, both, torch.tensor([[3.0, -2.0]]), **greedy).item() == 3
    assert guided_sample(logits, both, torch.tensor([[1.0, 0.0]]), **greedy).item() == 2  # weight 0: its -inf doesn't count
    assert guided_sample(logits, both, torch.tensor([[1.0, 0.0]]), seed_n=ZERO, position_n=ZERO).item() in (0, 2, 3)


def test_greedy_ties_go_to_the_lowest_id_and_one_id_is_always_drawn() -> None:
    equal = torch.zeros(1, 9)
    row, one = ZERO[None], torch.ones(1, 1)
    assert guided_sample(equal, row, one, temperature_n=torch.zeros(1), seed_n=ZERO, position_n=ZERO).item() == 0
    only = torch.zeros(1, 9, dtype=torch.bool)
    only[0, 6] = True
    for seed in range(5):
        assert guided_sample(equal, row, one, allowed_nV=only, top_p_n=torch.tensor([1e-9]), seed_n=ints(seed),
                             position_n=ZERO).item() == 6
    # top-k 1 of nine equal ids keeps all nine
    seeds = torch.arange(200)
    tokens = guided_sample(equal, torch.zeros(200, 1, dtype=torch.int64), torch.ones(200, 1), top_k_n=torch.ones_like(seeds),
                           seed_n=seeds, position_n=torch.zeros_like(seeds))
    assert len(tokens.unique()) == 9


def test_request_without_a_choice_is_refused() -> None:
    rows = ints(0, 0)[:, None]
    allowed = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError) as caught:
        guided_sample(torch.zeros(1, 2), rows, torch.ones(2, 1), allowed_nV=allowed, seed_n=ints(0, 0), position_n=ints(0, 0))
    assert str(caught.value) == "guided_sample: request 1 has no id that is both allowed and of a finite logit"
    with pytest.raises(ValueError, match="request 0 has no id"):
        guided_sample(torch.full((1, 2), math.nan), ZERO[None], torch.ones(1, 1), seed_n=ZERO, position_n=ZERO)


def test_wrong_arguments_are_named() -> None:
    logits, row, one = torch.zeros(1, 4), ZERO[None], torch.ones(1, 1)
    with pytest.raises(ValueError) as caught:
        guided_sample(logits, row, one, top_k_n=torch.ones(1), seed_n=ZERO, position_n=ZERO)
    assert str(caught.value) == "guided_sample: top_k_n is [1] torch.float32, must be int64 [1]"
    with pytest.raises(ValueError) as caught:
        guided_sample(logits, row, one, seed_n=ZERO, position_n=ZERO, implementation="triton")
    assert str(caught.value) == ("guided_sample: implementation 'triton' is not available\n"
                                 "  next: use 'auto' or one of: reference")
