"""Samplers that guide: plans and draws by hand, edits, and what other libraries' processors draw.

Legend: n requests, G guidance streams, R ids.
"""

from __future__ import annotations

import math
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
from cm3core.interfaces.sampler import (
    Filters,
    GuidanceSchedule,
    GuidanceStream,
    PromptVariant,
)
from cm3core.plugins import load_registry
from cm3core.sequence.serialize import Serializer
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig, EditCFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import (
    CDKSamplerConfig,
    ContrastiveSamplerConfig,
    MixtureSamplerConfig,
)
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from profiles import examples
from sampler_draws import SEES_ALL, draw, race, seeds, streams_of

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
@settings(max_examples=examples(50))
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
