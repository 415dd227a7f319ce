"""The laws of samplers, and the behaviour specific to this one."""

import pytest
import torch
from cm3_top_n_sigma import SigmaFilters, TopNSigmaConfig
from cm3_top_n_sigma.sampler import near_the_top

from cm3core.errors import RecipeError
from cm3kits.sampler import SamplerContract


class TestTopNSigma(SamplerContract):
    config = TopNSigmaConfig()
    max_examples = 25

    def companions(self):
        return [
            TopNSigmaConfig(n_sigma=0.5, temperature=0.0).build(),
            TopNSigmaConfig(guidance_scale=1.0).build(),
        ]


class TestUnguided(SamplerContract):
    config = TopNSigmaConfig(guidance_scale=1.0)
    max_examples = 10


def drawn(logits, plan, weights, count=200):
    n, G = count, len(weights)
    return set(
        TopNSigmaConfig()
        .build()
        .draw(
            torch.tensor(logits),
            torch.arange(G).expand(n, G),
            torch.tensor([weights]).expand(n, G),
            (plan,) * n,
            first_id=10,
            allowed_nR=None,
            seed_n=torch.arange(n),
            position_n=torch.zeros(n, dtype=torch.int64),
        )
        .tolist()
    )


def test_by_hand():
    """Logits 4, 2, 0, -2: mean 1, variance (9 + 1 + 1 + 9) / 4 = 5. 1 sigma is 2.24 and 2 are 4.47
    below the largest."""
    logits, all_legal = (
        torch.tensor([[4.0, 2.0, 0.0, -2.0]]).expand(4, 4),
        torch.ones(4, 4, dtype=torch.bool),
    )
    kept = near_the_top(logits, all_legal, torch.tensor([0.5, 1.0, 2.0, 0.0]))
    assert kept.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True] * 4,
    ]
    # 2, 0, -2: variance 8 / 3, and 1 sigma is 1.63
    legal = torch.tensor([[False, True, True, True]])
    assert near_the_top(logits[:1], legal, torch.tensor([1.0])).tolist() == [
        [False, True, False, False]
    ]


def test_no_temperature_lets_in_what_was_cut():
    plan = TopNSigmaConfig(n_sigma=1.0, temperature=50.0, guidance_scale=1.0).plan("image")
    assert drawn([[4.0, 2.0, 0.0, -2.0]], plan, [1.0]) == {10, 11}


def test_no_guidance_lifts_what_was_cut():
    """Id 12 is improbable with the text and even less probable without, so guidance would raise it."""
    plan = TopNSigmaConfig(n_sigma=1.0, temperature=0.0, guidance_scale=3.0).plan("image")
    logits = [[4.0, 2.0, 0.0, -2.0], [4.0, 2.0, -9.0, -2.0]]
    assert drawn(logits, plan, [3.0, -2.0]) == {10}
    cut_off = TopNSigmaConfig(n_sigma=0.0, temperature=0.0, guidance_scale=3.0).plan("image")
    assert drawn(logits, cut_off, [3.0, -2.0]) == {12}


def test_text_has_its_own_keys_and_the_same_streams():
    config = TopNSigmaConfig(text_n_sigma=2.0, text_temperature=0.1)
    text, image = config.plan("text"), config.plan("image")
    assert text.filters == SigmaFilters(n_sigma=2.0, temperature=0.1)
    assert [stream.weight for stream in text.streams] == [1.0, 0.0]
    assert [stream.weight for stream in image.streams] == [1.5, -0.5]


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_what_cannot_be_is_refused(value):
    with pytest.raises(RecipeError) as error:
        TopNSigmaConfig(n_sigma=value).check()
    assert str(error.value) == f"sampler.n_sigma: is {value}\n  next: use 0 or more"
