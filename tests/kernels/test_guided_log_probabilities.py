"""guided_log_probabilities: by hand, against what guided_sample says of its own draws and the oracle of
one request at a time, gradients against finite differences.

Legend: n requests, V ids.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3kernels import guided_log_probabilities
from cm3kernels.guided_sample.cfg import legal_ids
from guided_sample_oracle import ints, random_batch
from messages import tells

ROWS, ONE = ints(0)[:, None], torch.ones(1, 1)


def test_worked_example() -> None:
    """Guidance 3 on two streams: 3c - 2u = (2, 5, 1, 8); plausible by c: ids 0 and 1. At temperature 3
    id 1 is e times as probable as id 0."""
    logits = torch.tensor([[4.0, 3.0, 1.0, 2.0], [5.0, 2.0, 1.0, -1.0]])
    log_1V = guided_log_probabilities(
        logits,
        ints(0, 1)[None],
        torch.tensor([[3.0, -2.0]]),
        plausible_top_k_n=ints(2),
        temperature_n=torch.tensor([3.0]),
    )
    assert log_1V.exp().tolist()[0] == pytest.approx(
        [1 / (1 + math.e), math.e / (1 + math.e), 0, 0]
    )


def test_a_greedy_request_takes_the_lowest_of_equals() -> None:
    logits = torch.tensor([[1.0, 7.0, 7.0]])
    log_1V = guided_log_probabilities(logits, ROWS, ONE, temperature_n=torch.zeros(1))
    assert log_1V.exp().tolist() == [[0.0, 1.0, 0.0]]


def test_the_ids_of_an_earlier_call_replace_the_filters() -> None:
    """Top-1 keeps id 1 by these logits; it kept 0 and 2 by others. The mask still holds, and the
    temperature."""
    logits = torch.tensor([[0.0, 9.0, 1.0, 5.0]])
    log_1V = guided_log_probabilities(
        logits,
        ROWS,
        ONE,
        top_k_n=ints(1),
        temperature_n=torch.tensor([0.5]),
        allowed_nV=torch.tensor([[True, True, True, False]]),
        kept_nV=torch.tensor([[True, False, True, True]]),
    )
    e2 = math.exp(2)
    assert log_1V.exp().tolist()[0] == pytest.approx([1 / (1 + e2), 0, e2 / (1 + e2), 0])


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    G=st.integers(1, 3),
    V=st.sampled_from([1, 8, 50, 200]),
    rough=st.booleans(),
)
def test_it_is_what_a_draw_says_of_its_token(
    seed: int, n: int, G: int, V: int, rough: bool
) -> None:
    arguments, tokens = random_batch(np.random.default_rng(seed), n, G, V, rough=rough)
    expected = arguments.pop("log_probabilities")
    first_id = arguments.pop("first_id")
    masks = [arguments.pop("allowed_nV")] + [
        arguments.pop(name, None) for name in ("allowed_bits_nW", "allowed_from_n", "allowed_to_n")
    ]
    del arguments["seed_n"], arguments["position_n"]
    log_nV = guided_log_probabilities(**arguments, allowed_nV=legal_ids(n, V, first_id, *masks))
    torch.testing.assert_close(log_nV.exp().sum(1), torch.ones(n))
    found = log_nV.gather(1, ints(*tokens)[:, None] - first_id)[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-4, rel=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
def test_gradients_are_finite_differences(seed: int) -> None:
    """Within the ids that the filters keep, with logits of float64; the others get none."""
    generator = torch.Generator().manual_seed(seed)
    logits_SV = torch.randn(4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    kept_nV = torch.rand(2, 7, generator=generator) < 0.6
    kept_nV[:, 3] = True
    weights_nG = torch.tensor([[1.5, -0.5], [1.0, 0.0]])

    def kept(logits_SV: torch.Tensor) -> torch.Tensor:
        log_nV = guided_log_probabilities(
            logits_SV,
            ints(0, 1, 2, 3).view(2, 2),
            weights_nG,
            temperature_n=torch.tensor([0.7, 1.3]),
            kept_nV=kept_nV,
        )
        return log_nV[kept_nV]

    assert torch.autograd.gradcheck(kept, logits_SV)
    kept(logits_SV)[0].backward()
    assert logits_SV.grad is not None
    assert bool((logits_SV.grad[:2, ~kept_nV[0]] == 0).all())
    assert bool((logits_SV.grad[3] == 0).all())  # a stream without weight


def test_wrong_input() -> None:
    logits = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="guided_log_probabilities: kept_nV is") as error:
        guided_log_probabilities(logits, ROWS, ONE, kept_nV=torch.ones(1, 2, dtype=torch.bool))
    assert tells(error.value, "guided_log_probabilities: kept_nV is [1, 2 ... torch.bool")
    with pytest.raises(ValueError, match="request 0 has no id that is both allowed"):
        guided_log_probabilities(logits, ROWS, ONE, allowed_nV=torch.zeros(1, 3, dtype=torch.bool))
