"""Contrastive decoding and its mixture with guidance: plans and draws by hand, the paper's equation 3, shares.

Legend: n requests, G guidance streams, R ids.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3core.interfaces.sampler import (
    Filters,
    GuidanceStream,
)
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3plugins.samplers.contrastive import (
    CDKSamplerConfig,
    ContrastiveSamplerConfig,
    MixtureSamplerConfig,
)
from profiles import examples
from sampler_draws import MASK, SEES_ALL, draw, race, seeds, streams_of

# ---- contrastive decoding


def test_plans_of_contrastive_decoding_by_hand():
    config = CDKSamplerConfig(
        alpha=0.25, k=3, expert_temperature=0.5, amateur_temperature=2.0, temperature=0.7
    )
    image, text = config.plan("image"), config.plan("text")
    assert image.streams == (GuidanceStream(SEES_ALL, 2.0), GuidanceStream(MASK, -0.5))
    assert image.filters == Filters(
        temperature=0.7, plausible_alpha=0.5, plausible_k=3, plausible_top_p=0.8
    )
    assert text.streams == (GuidanceStream(SEES_ALL, 1.0), GuidanceStream(MASK, 0.0))
    assert text.filters == Filters(temperature=0.7, top_p=0.9)
    original = ContrastiveSamplerConfig().plan("image")
    assert original.streams == (GuidanceStream(SEES_ALL, 1.0), GuidanceStream(MASK, -1.0))
    assert original.filters == Filters(plausible_alpha=0.1, plausible_k=1)


def test_the_plausible_set_is_the_experts_at_its_temperature():
    """p_expert (.4, .3, .2, .1) at temperature 1/2 is (16, 9, 4, 1) / 30: half of the largest is 8,
    half of the second 4.5."""
    expert, amateur = [0.4, 0.3, 0.2, 0.1], [0.25] * 4

    def drawn(k: int, temperature: float, alpha: float = 0.5) -> set[int]:
        config = CDKSamplerConfig(
            alpha=alpha, k=k, expert_temperature=temperature, temperature=8.0, expert_top_p=1.0
        )
        return set(draw(config, expert, amateur, seeds=300))

    assert drawn(1, 0.5) == {0, 1}
    assert drawn(2, 0.5) == {0, 1}
    assert drawn(3, 0.5) == {0, 1, 2}
    assert drawn(1, 1.0, alpha=0.49) == {0, 1, 2}
    assert drawn(2, 1.0, alpha=0.3) == {0, 1, 2, 3}
    assert drawn(3, 1.0, alpha=1.0) == {0, 1, 2}
    assert drawn(9, 1.0, alpha=1.0) == {0, 1, 2, 3}  # a k past the ids means the smallest of them


def test_contrast_by_hand():
    """Expert (.5, .3, .15, .05), amateur (.6, .2, .05, .15): ratios .83, 1.5, 3, .33. Half of the
    largest is .25: ids 0 and 1; half of the third .075: all but the last."""
    streams = [0.5, 0.3, 0.15, 0.05], [0.6, 0.2, 0.05, 0.15]
    assert draw(ContrastiveSamplerConfig(alpha=0.5, temperature=0.0), *streams) == [1]
    assert draw(CDKSamplerConfig(alpha=0.5, k=1, temperature=0.0, expert_top_p=1.0), *streams) == [
        1
    ]
    assert draw(CDKSamplerConfig(alpha=0.5, k=3, temperature=0.0, expert_top_p=1.0), *streams) == [
        2
    ]
    assert draw(CDKSamplerConfig(alpha=0.5, k=3, temperature=0.0, expert_top_p=0.75), *streams) == [
        1
    ]
    counts = np.bincount(
        draw(CDKSamplerConfig(alpha=0.5, k=3, expert_top_p=1.0), *streams, seeds=4000), minlength=4
    )
    expected = np.array([5 / 6, 1.5, 3.0]) / (5 / 6 + 1.5 + 3.0) * 4000
    assert counts[3] == 0
    # the 0.1% point of two degrees of freedom
    assert float(((counts[:3] - expected) ** 2 / expected).sum()) < 13.8


def equation_3(expert_R: np.ndarray, amateur_R: np.ndarray, alpha: float, k: int) -> np.ndarray:
    """The paper's CD-K score of each id, read off equation 3: probabilities in, log ratio out, -inf
    outside the set."""
    kth = sorted(expert_R, reverse=True)[min(k, len(expert_R)) - 1]
    # rounding decides nothing
    assume(not any(abs(p / (alpha * kth) - 1) < 1e-5 and p != kth for p in expert_R))
    return np.array(
        [
            math.log(p / q) if p >= alpha * kth else -math.inf
            for p, q in zip(expert_R, amateur_R, strict=True)
        ]
    )


def softmax(logits_R: Tensor, temperature: float) -> np.ndarray:
    powers_R = np.exp((logits_R.double().numpy() - float(logits_R.max())) / temperature)
    return powers_R / powers_R.sum()


@given(
    streams=streams_of(2),
    alpha=st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0]),
    k=st.integers(1, 14),
    seed=seeds,
    expert_temperature=st.floats(0.3, 3),
    amateur_temperature=st.floats(0.3, 3),
    temperature=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
)
@settings(max_examples=examples(50))
def test_cd_k_is_equation_3_of_the_paper(
    streams, alpha, k, seed, expert_temperature, amateur_temperature, temperature
):
    # Logits that differ by less than probabilities can show are ties for the oracle alone.
    streams = [(logits_R * 1024).round() / 1024 for logits_R in streams]
    scores_R = equation_3(
        softmax(streams[0], expert_temperature), softmax(streams[1], amateur_temperature), alpha, k
    )
    options = {
        "alpha": alpha,
        "expert_temperature": expert_temperature,
        "amateur_temperature": amateur_temperature,
        "temperature": temperature,
        "expert_top_p": 1.0,
    }
    configs = [
        CDKSamplerConfig(k=k, **options),
        MixtureSamplerConfig(k=k, cd_k_share=1.0, **options),
    ]
    for config in [*configs, ContrastiveSamplerConfig(**options)] if k == 1 else configs:
        drawn = draw(config, *streams, first_seed=seed, position=3, first_id=20)
        if temperature > 0:
            assert drawn == [race(scores_R / temperature, seed, 3, 20)]
        else:
            assert scores_R[drawn[0] - 20] >= scores_R.max() - 1e-4


# ---- mixtures of candidates


def test_half_of_the_candidates_are_cd_k():
    config = MixtureSamplerConfig(
        guidance_scale=3.0,
        temperature=0.9,
        negative_prompt="grey",
        guidance_stop=0.5,
        k=5,
        plausible_top_k=7,
        expert_top_p=0.7,
    )
    sampler = config.build()
    shared = {"temperature": 0.9, "negative_prompt": "grey", "guidance_stop": 0.5}
    cfg = CFGSamplerConfig(guidance_scale=3.0, plausible_top_k=7, **shared)
    cd_k = CDKSamplerConfig(k=5, expert_top_p=0.7, **shared)
    for modality in ("text", "image"):
        expected = [config.plan(modality) for config in (cfg, cd_k)] * 3
        assert [sampler.for_candidate(index).plan(modality) for index in range(6)] == expected
        assert sampler.plan(modality) == cfg.plan(modality)


def test_a_mixture_without_guidance_has_both_streams():
    sampler = MixtureSamplerConfig(guidance_scale=1.0).build()
    assert sampler.plan("image").streams == (
        GuidanceStream(SEES_ALL, 1.0),
        GuidanceStream(MASK, 0.0),
    )
    assert sampler.for_candidate(1).plan("image").streams == (
        GuidanceStream(SEES_ALL, 1.0),
        GuidanceStream(MASK, -1.0),
    )


@given(hundredths=st.integers(0, 100), number=st.integers(0, 300))
def test_the_share_of_cd_k_holds_for_any_number_of_candidates(hundredths, number):
    sampler = MixtureSamplerConfig(cd_k_share=hundredths / 100).build()
    chosen = [
        sampler.for_candidate(index).plan("image").filters.plausible_alpha > 0
        for index in range(number)
    ]
    assert sum(chosen) == math.floor(number * Fraction(hundredths, 100))
    assert sampler.plan("image") == sampler.for_candidate(0).plan("image")
