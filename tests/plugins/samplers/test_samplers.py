"""The bundled samplers: the conformance kit, plans and draws by hand, the paper's equation, other
libraries, wrong values.

Legend: n requests, G guidance streams, R ids.
"""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    ClassifierFreeGuidanceLogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from cm3core.document import Codes, ImageHole, Text
from cm3core.errors import RecipeError
from cm3core.interfaces.sampler import (
    Filters,
    GuidanceSchedule,
    GuidanceStream,
    PromptVariant,
)
from cm3core.plugins import load_registry
from cm3core.recipe import compose, recipe_from_yaml
from cm3core.sequence.serialize import Serializer
from cm3core.testing.sampler import SamplerContract
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.config import CFGSamplerConfig, EditCFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import (
    CDKSamplerConfig,
    ContrastiveSamplerConfig,
    MixtureSamplerConfig,
)
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from sampler_draws import draw, race, seeds, streams_of

SEES_ALL, MASK = PromptVariant(), PromptVariant(hide_text="all")


class BundledContract(SamplerContract):
    """All bundled samplers share calls, so each is tried beside requests with one, two and three
    streams. Few examples: eight classes have the same laws."""

    max_examples = 10

    def companions(self):
        configs = (
            TopPSamplerConfig(top_k=3, text_typical_p=0.5),
            CFGSamplerConfig(guidance_scale=4.0),
            EditCFGSamplerConfig(text_guidance_scale=2.0, min_p=0.2),
            CDKSamplerConfig(k=2),
        )
        return [config.build() for config in configs]


class TestTopPSampler(BundledContract):
    config = TopPSamplerConfig(top_p=0.7, top_k=5)


class TestTypicalSampler(BundledContract):
    config = TopPSamplerConfig(top_p=1.0, typical_p=0.4, text_top_p=0.8, text_min_p=0.1)


class TestCFGSampler(BundledContract):
    config = CFGSamplerConfig(
        guidance_scale=3.0,
        text_guidance_scale=1.5,
        plausible_top_p=0.6,
        negative_prompt="grey",
        guidance_stop=0.5,
        guidance_ramp="down",
    )


class TestCFGSamplerWithCDKSet(BundledContract):
    config = CFGSamplerConfig(
        guidance_scale=2.0,
        null_prompt="mask_no_retrieved",
        plausible_top_p=1.0,
        plausible_alpha=0.3,
        plausible_k=2,
        plausible_top_k=4,
    )


class TestEditCFGSampler(BundledContract):
    config = EditCFGSamplerConfig(guidance_start=0.1, guidance_ramp="up")


class TestContrastiveSampler(BundledContract):
    config = ContrastiveSamplerConfig(temperature=0.0)


class TestCDKSampler(BundledContract):
    config = CDKSamplerConfig(
        alpha=0.7, k=3, expert_temperature=0.8, amateur_temperature=2.0, expert_top_p=1.0
    )


class TestMixtureSampler(BundledContract):
    config = MixtureSamplerConfig(guidance_scale=2.0, cd_k_share=0.4, k=2)


# ---- drawing from streams that are given as probabilities or logits


def test_draws_follow_the_distribution():
    """Chi-square of 4,000 draws from (.5, .3, .2) at temperature 1: below 13.8, the 0.1% point of
    two degrees of freedom."""
    drawn = torch.tensor(
        draw(TopPSamplerConfig(top_p=1.0), [0.5, 0.3, 0.2], seeds=4000, position=7)
    )
    expected = torch.tensor([0.5, 0.3, 0.2]) * 4000
    assert float(((drawn.bincount(minlength=3) - expected) ** 2 / expected).sum()) < 13.8


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.8}, {0, 1}),
        ({"min_p": 0.25}, {0, 1}),  # .48 * .25 = .12
        ({"min_p": 0.2}, {0, 1, 2}),  # .48 * .2 = .096
        # Entropy 1.17 nats, surprises .73, 1.05, 2.30, 2.81: the nearest is id 1, then id 0, which
        # makes .83.
        ({"typical_p": 0.3}, {1}),
        ({"typical_p": 0.4}, {0, 1}),
        ({"typical_p": 0.9}, {0, 1, 2}),
        ({"typical_p": 0.3, "temperature": 0.0}, {0}),
    ],
)
def test_filters_by_hand(options, kept):
    probability = [0.48, 0.35, 0.1, 0.07]
    assert set(draw(TopPSamplerConfig(**{"top_p": 1.0} | options), probability, seeds=300)) == kept
    text = {
        f"text_{key}": value
        for key, value in ({"temperature": 1.0, "top_p": 1.0} | options).items()
    }
    assert set(draw(TopPSamplerConfig(**text), probability, seeds=300, modality="text")) == kept


# ---- guidance


def test_plans_of_guidance_by_hand():
    config = CFGSamplerConfig(
        guidance_scale=3.0,
        null_prompt="mask_no_retrieved",
        plausible_top_p=0.9,
        temperature=0.8,
        text_temperature=0,
        min_p=0.1,
        text_typical_p=0.7,
    )
    image, text = config.plan("image"), config.plan("text")
    null = PromptVariant(hide_text="all", drop_retrieved=True)
    assert image.streams == (GuidanceStream(SEES_ALL, 3.0), GuidanceStream(null, -2.0))
    assert image.filters == Filters(temperature=0.8, plausible_top_p=0.9, min_p=0.1)
    assert text.streams == (GuidanceStream(SEES_ALL, 1.0), GuidanceStream(null, 0.0))
    # no guidance, no plausibility set
    assert text.filters == Filters(temperature=0, top_p=0.9, typical_p=0.7)


@pytest.mark.parametrize(
    "config",
    [
        CFGSamplerConfig(guidance_scale=1.0),
        EditCFGSamplerConfig(guidance_scale=1.0, picture_guidance_scale=1.0),
    ],
)
def test_scale_one_everywhere_plans_one_stream(config):
    assert (
        config.plan("image").streams
        == config.plan("text").streams
        == (GuidanceStream(SEES_ALL, 1.0),)
    )
    assert config.plan("image").filters == Filters()


def test_a_schedule_is_of_pictures_and_only_where_there_is_one():
    config = CFGSamplerConfig(
        guidance_start=0.2, guidance_stop=0.7, guidance_ramp="up", text_guidance_scale=2.0
    )
    assert config.plan("image").schedule == GuidanceSchedule(0.2, 0.7, "up")
    assert config.plan("text").schedule is None
    assert CFGSamplerConfig().plan("image").schedule is None
    assert CDKSamplerConfig(guidance_stop=0.5).plan("image").schedule == GuidanceSchedule(0.0, 0.5)


@pytest.mark.parametrize(
    ("null_prompt", "variant"),
    [
        ("mask", PromptVariant(hide_text="all", replace_text="grey")),
        (
            "mask_no_retrieved",
            PromptVariant(hide_text="all", replace_text="grey", drop_retrieved=True),
        ),
    ],
)
@pytest.mark.parametrize(
    "config_class",
    [CFGSamplerConfig, ContrastiveSamplerConfig, CDKSamplerConfig, MixtureSamplerConfig],
)
def test_the_null_stream_reads_a_negative_prompt(config_class, null_prompt, variant):
    assert (
        config_class(negative_prompt="grey", null_prompt=null_prompt)
        .plan("image")
        .streams[1]
        .variant
        == variant
    )


def test_guidance_and_plausibility_by_hand():
    """c = log(.6, .3, .1), u = log(.8, .1, .1): at s = 2 the mix c^2/u prefers id 1 (.9) to id 0
    (.45) and id 2 (.1).

    With a set of probability .5 only id 0 is plausible, whatever the mix says."""

    def take(**options: float) -> int:
        config = CFGSamplerConfig(guidance_scale=2.0, temperature=0.0, **options)
        return draw(config, [0.6, 0.3, 0.1], [0.8, 0.1, 0.1], first_id=100)[0]

    assert take(plausible_top_p=1.0) == 101
    assert take(plausible_top_p=0.5) == 100
    assert take(plausible_top_p=1.0, plausible_alpha=0.6) == 100
    assert take(plausible_top_p=1.0, plausible_top_k=1) == 100


def test_plausibility_is_on_unless_switched_off():
    for name in (
        "cfg",
        "edit_cfg",
        "structure_cfg",
        "retrieval_cfg",
        "cd_k",
        "contrastive",
        "mixture",
    ):
        filters = load_registry().config_class("sampler", name)().build().plan("image").filters
        assert filters.plausible_top_p < 1 or filters.plausible_alpha > 0, name


@given(streams=streams_of(2), seed=seeds, text_scale=st.sampled_from([1.0, 3.0]))
def test_scale_one_draws_what_the_conditional_stream_alone_draws(streams, seed, text_scale):
    conditional, other = streams
    alone = draw(TopPSamplerConfig(top_p=0.8), conditional, first_seed=seed)
    config = CFGSamplerConfig(guidance_scale=1.0, text_guidance_scale=text_scale, top_p=0.8)
    assert (
        draw(config, *([conditional, other] if text_scale != 1 else [conditional]), first_seed=seed)
        == alone
    )
    edit = EditCFGSamplerConfig(
        guidance_scale=1.0, picture_guidance_scale=1.0, text_guidance_scale=text_scale, top_p=0.8
    )
    assert (
        draw(
            edit,
            *([conditional, other, other] if text_scale != 1 else [conditional]),
            first_seed=seed,
        )
        == alone
    )


# ---- guidance as in transformers


@given(
    streams=streams_of(2),
    scale=st.floats(1.01, 8),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([1.0, 0.9, 0.6]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    typical_p=st.sampled_from([1.0, 0.8, 0.3]),
    seed=seeds,
)
@settings(max_examples=200)
def test_draws_as_after_the_processors_of_janus(
    streams, scale, temperature, top_k, top_p, min_p, typical_p, seed
):
    """`JanusForConditionalGeneration.generate` guides with ClassifierFreeGuidanceLogitsProcessor;
    `generate` then filters."""
    # conditional first, then unconditional, as Janus batches them
    stacked_GR = torch.stack(streams).double()
    scores_1R = ClassifierFreeGuidanceLogitsProcessor(scale)(
        torch.zeros(1, 1, dtype=torch.int64), stacked_GR
    )
    warpers = [
        (TemperatureLogitsWarper, temperature, 1.0),
        (TopKLogitsWarper, top_k, 0),
        (TopPLogitsWarper, top_p, 1.0),
        # in the order of `generate`
        (MinPLogitsWarper, min_p, 0.0),
        (TypicalLogitsWarper, typical_p, 1.0),
    ]
    for warper in [kind(value) for kind, value, off in warpers if value != off]:
        before, scores_1R = scores_1R, warper(None, scores_1R)
        assume(not _at_the_edge(before[0], scores_1R[0]))
    config = CFGSamplerConfig(
        guidance_scale=scale,
        plausible_top_p=1.0,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
    )
    assert draw(config, *streams, first_seed=seed, position=5, first_id=9) == [
        race(scores_1R[0].numpy(), seed, 5, 9)
    ]


def _at_the_edge(before_R: Tensor, after_R: Tensor) -> bool:
    """Whether a filter parts ids whose scores are equal but for rounding, or might: which of them goes is
    chance in transformers, and they may be equal in float32 and not in float64."""
    there = before_R[before_R > -torch.inf].sort().values.diff()
    if ((there > 0) & (there < 1e-6)).any():
        return True
    gone, left = (
        before_R[(after_R == -torch.inf) & (before_R > -torch.inf)],
        after_R[after_R > -torch.inf],
    )
    return bool(len(gone) and (gone[:, None] - left[None]).abs().min() < 1e-4)


@given(streams=streams_of(2), scale=st.floats(0, 8), seed=seeds)
def test_draws_as_after_the_processor_of_emu3(streams, scale, seed):
    """`Emu3ForConditionalGeneration.generate` with negative prompt ids guides with the unbatched
    processor."""
    conditional, negative = (stream.double() for stream in streams)
    answer = SimpleNamespace(logits=negative[None, None], get=lambda key, default: default)
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, lambda *_, **__: answer)
    scores_1R = processor(torch.zeros(1, 1, dtype=torch.int64), conditional[None])
    # two streams also at scale 1
    config = CFGSamplerConfig(guidance_scale=scale, text_guidance_scale=2.0, plausible_top_p=1.0)
    assert draw(config, *streams, first_seed=seed) == [race(scores_1R[0].numpy(), seed, 0, 0)]


# ---- editing


def test_plans_of_editing_by_hand():
    config = EditCFGSamplerConfig(text_guidance_scale=2.0)
    image, text = config.plan("image"), config.plan("text")
    variants = [
        SEES_ALL,
        PromptVariant(hide_text="last"),
        PromptVariant(hide_text="all", hide_images=True),
    ]
    assert (
        [stream.variant for stream in image.streams]
        == [stream.variant for stream in text.streams]
        == variants
    )
    assert [stream.weight for stream in image.streams] == [7.5, -6.0, -0.5]
    assert [stream.weight for stream in text.streams] == [2.0, -1.0, 0.0]
    assert image.filters == text_filters_of_images(text.filters) == Filters(plausible_top_p=0.95)
    other = (
        EditCFGSamplerConfig(null_prompt="mask_no_retrieved", negative_prompt="a dog")
        .plan("image")
        .streams
    )
    assert [stream.variant for stream in other[1:]] == [
        PromptVariant(hide_text="last", replace_text="a dog"),
        PromptVariant(hide_text="all", hide_images=True, drop_retrieved=True),
    ]
    assert [stream.weight for stream in EditCFGSamplerConfig().plan("text").streams] == [
        1.0,
        0.0,
        0.0,
    ]


def text_filters_of_images(filters: Filters) -> Filters:
    """Text filters, except where their defaults differ from those of images."""
    assert (filters.temperature, filters.top_p) == (0.7, 0.9)
    return Filters(plausible_top_p=filters.plausible_top_p)


def test_the_streams_of_editing_read_what_the_reference_has():
    """full, without the edit text, and `<eos> <sentinel:0> <break>`; with a retrieved document in
    front and without."""
    vocabulary = CM3LeonVocabulary(num_text=260, num_image=16)
    serializer = Serializer(vocabulary, ByteTokenizer(), (1, 2))
    eos, stop, mask = vocabulary.eos, vocabulary.break_, vocabulary.sentinel(0)
    a, b, c, picture = (
        4 + ord("a"),
        4 + ord("b"),
        4 + ord("c"),
        Codes(np.array([5, 6], np.int32), (1, 2)),
    )
    codes = [vocabulary.image.start + 5, vocabulary.image.start + 6]

    def prompts(**options: str) -> list[list[int]]:
        return [
            serializer.prompt(
                (Text("a"), picture, Text("b"), ImageHole()), [(Text("c"),)], stream.variant
            ).tokens.tolist()
            for stream in EditCFGSamplerConfig(**options).plan("image").streams
        ]

    front = [eos, c, stop]
    full = [*front, a, stop, *codes, stop, b, stop]
    assert prompts() == [full, [*front, a, stop, *codes, stop, mask, stop], [*front, mask, stop]]
    assert prompts(null_prompt="mask_no_retrieved")[2] == [eos, mask, stop]
    assert prompts(negative_prompt="c")[1] == [*front, a, stop, *codes, stop, c, stop]


@given(streams=streams_of(3), scale=st.floats(0, 8), picture_scale=st.floats(0, 3), seed=seeds)
def test_editing_is_the_formula_of_chameleon(streams, scale, picture_scale, seed):
    """Chameleon's processor: u + s_img (i - u) + s_txt (f - i), written from the formula."""
    assume((scale, picture_scale) != (1, 1))
    full, without_edit, nothing = (stream.double().numpy() for stream in streams)
    scores_R = nothing + picture_scale * (without_edit - nothing) + scale * (full - without_edit)
    config = EditCFGSamplerConfig(
        guidance_scale=scale, picture_guidance_scale=picture_scale, plausible_top_p=1.0
    )
    assert draw(config, *streams, first_seed=seed) == [race(scores_R, seed, 0, 0)]


def test_editing_by_hand():
    """log2 of f, i, u = (0, 1, -5), (0, 0, 0), (0, 1, -3) at s = 3, s_picture = 2: u + 2 (i - u) +
    3 (f - i) = (0, 2, -12).

    At s = 0.5 it is (0, -0.5, 0.5), of which the plausible set forbids the last."""
    streams = [
        torch.tensor(stream) * math.log(2)
        for stream in ([0.0, 1.0, -5.0], [0.0, 0.0, 0.0], [0.0, 1.0, -3.0])
    ]

    def take(**options: float) -> int:
        return draw(
            EditCFGSamplerConfig(picture_guidance_scale=2.0, temperature=0.0, **options), *streams
        )[0]

    assert take(guidance_scale=3.0) == 1
    assert take(guidance_scale=0.5, plausible_top_p=1.0) == 2
    assert take(guidance_scale=0.5) == 0


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
@settings(max_examples=200)
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


# ---- recipes


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_every_key_is_documented(name):
    config_class = load_registry().config_class("sampler", name)
    text = "".join(base.__doc__ or "" for base in config_class.__mro__)
    assert [
        item.name for item in fields(config_class) if f"\n        {item.name}: " not in text
    ] == []


ZERO, ONE_TO_ZERO = "use 0 or more", "use more than 0 and at most 1 (1 is off)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TopPSamplerConfig(temperature=-0.1),
            "temperature: is -0.1, must be at least 0\n  next: correct the value",
        ),
        (
            TopPSamplerConfig(text_temperature=math.inf),
            "text_temperature: is inf, must be finite\n  next: correct the value",
        ),
        (
            TopPSamplerConfig(top_k=-1),
            "top_k: is -1, must be at least 0\n  next: correct the value",
        ),
        (
            TopPSamplerConfig(text_top_k=-2),
            "text_top_k: is -2, must be at least 0\n  next: correct the value",
        ),
        (TopPSamplerConfig(top_p=0.0), f"top_p: is 0.0\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(text_top_p=1.5), f"text_top_p: is 1.5\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(min_p=1.1), "min_p: is 1.1\n  next: use 0 (off) to 1"),
        (
            TopPSamplerConfig(text_min_p=math.nan),
            "text_min_p: is nan, must be finite\n  next: correct the value",
        ),
        (TopPSamplerConfig(typical_p=0.0), f"typical_p: is 0.0\n  next: {ONE_TO_ZERO}"),
        (TopPSamplerConfig(text_typical_p=-1.0), f"text_typical_p: is -1.0\n  next: {ONE_TO_ZERO}"),
        (
            CFGSamplerConfig(guidance_scale=math.inf),
            "guidance_scale: is inf, must be finite\n  next: correct the value",
        ),
        (
            CFGSamplerConfig(text_guidance_scale=-1.0),
            "text_guidance_scale: is -1.0, must be at least 0\n  next: correct the value",
        ),
        (
            CFGSamplerConfig(plausible_top_p=math.nan),
            "plausible_top_p: is nan, must be finite\n  next: correct the value",
        ),
        (
            CFGSamplerConfig(plausible_top_k=-1),
            "plausible_top_k: is -1, must be at least 0\n  next: correct the value",
        ),
        (
            CFGSamplerConfig(plausible_k=0),
            "plausible_k: is 0, must be at least 1\n  next: correct the value",
        ),
        (
            CFGSamplerConfig(plausible_alpha=2.0),
            "plausible_alpha: is 2.0\n  next: use 0 (off) to 1",
        ),
        (
            CFGSamplerConfig(negative_prompt=""),
            "negative_prompt: is an empty text\n  next: write what the picture should not be, or "
            "null",
        ),
        (CFGSamplerConfig(guidance_stop=1.2), "guidance_stop: is 1.2\n  next: use 0 to 1"),
        (
            CFGSamplerConfig(guidance_start=0.6, guidance_stop=0.5),
            "guidance_start: is 0.6\n  next: use 0 to sampler.guidance_stop, which is 0.5",
        ),
        (
            EditCFGSamplerConfig(picture_guidance_scale=-1.0),
            "picture_guidance_scale: is -1.0, must be at least 0\n  next: correct the value",
        ),
        (
            ContrastiveSamplerConfig(alpha=0.0),
            "alpha: is 0.0\n  next: use more than 0 and at most 1",
        ),
        (
            ContrastiveSamplerConfig(expert_top_p=0.0),
            f"expert_top_p: is 0.0\n  next: {ONE_TO_ZERO}",
        ),
        (CDKSamplerConfig(k=0), "k: is 0, must be at least 1\n  next: correct the value"),
        (
            CDKSamplerConfig(expert_temperature=0.0),
            "expert_temperature: is 0.0\n  next: use more than 0",
        ),
        (
            CDKSamplerConfig(amateur_temperature=math.nan),
            "amateur_temperature: is nan, must be finite\n  next: correct the value",
        ),
        (MixtureSamplerConfig(cd_k_share=1.5), "cd_k_share: is 1.5\n  next: use 0 to 1"),
        (MixtureSamplerConfig(alpha=1.5), "alpha: is 1.5\n  next: use more than 0 and at most 1"),
        (MixtureSamplerConfig(k=0), "k: is 0, must be at least 1\n  next: correct the value"),
    ],
)
def test_values_out_of_range_are_named(config, message):
    with pytest.raises(RecipeError) as error:
        config.check()
    assert str(error.value) == "sampler." + message


def test_another_samplers_keys_and_unknown_choices_are_refused():
    for override, message in [
        (
            "sampler.cd_k_share=0.5",
            "command line: sampler.cd_k_share: the sampler 'cfg' has no key 'cd_k_share'\n"
            "  next: known: guidance_ramp, guidance_scale, guidance_start, guidance_stop, min_p, "
            "negative_prompt, null_prompt, plausible_alpha, plausible_k, plausible_top_k, "
            "plausible_top_p, temperature, text_guidance_scale, text_min_p, text_temperature, "
            "text_top_k, "
            "text_top_p, text_typical_p, top_k, top_p, typical_p",
        ),
        (
            "sampler.guidance_ramp=sideways",
            "command line: sampler.guidance_ramp: is 'sideways', expected 'constant' or 'up' or "
            "'down'\n  next: correct the value",
        ),
    ]:
        with pytest.raises(RecipeError) as error:
            compose("quickstart", [override], registry=load_registry())
        assert str(error.value) == message


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_every_sampler_stands_in_a_recipe_and_comes_back(name):
    registry = load_registry()
    recipe = compose("tiny", [f"sampler={name}"], registry=registry)
    assert (
        recipe_from_yaml(recipe.to_yaml(), registry, label="again.yaml").sampler == recipe.sampler
    )
    assert type(recipe.sampler) is registry.config_class("sampler", name)


def test_the_null_prompt_needs_no_quotes_and_its_old_name_is_unknown():
    registry = load_registry()
    plain = compose(
        "quickstart", ["sampler.null_prompt=mask_no_retrieved"], registry=registry
    ).to_yaml()
    assert "\n  null_prompt: mask_no_retrieved\n" in plain
    old = plain.replace("null_prompt", "'null'")
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml(old, registry, label="old.yaml")
    assert str(error.value).startswith(
        "old.yaml: sampler.null: the sampler 'cfg' has no key 'null'\n  next: known: "
        "guidance_ramp, guidance_scale, "
    )
