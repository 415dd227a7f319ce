"""`retrieval_cfg`: the conformance kit, its streams and draws by hand, its formula, wrong values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cm3core.config.overrides import in_place_of
from cm3core.document import ImageHole, Text
from cm3core.errors import RecipeError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.serialize import Serializer
from cm3kits.sampler import SamplerContract
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig, RetrievalCFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import CDKSamplerConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from messages import tells
from sampler_draws import draw, race, seeds, streams_of


class TestRetrievalCFGSampler(SamplerContract):
    config = RetrievalCFGSamplerConfig(
        retrieved_guidance_scale=3.0, text_guidance_scale=1.5, negative_prompt="grey"
    )

    def companions(self):
        return [TopPSamplerConfig(top_k=3).build(), CFGSamplerConfig(guidance_scale=4.0).build()]


def test_plans_by_hand():
    config = RetrievalCFGSamplerConfig(
        guidance_scale=2.5, retrieved_guidance_scale=4.0, text_guidance_scale=3.0
    )
    image, text = config.plan("image"), config.plan("text")
    variants = [
        PromptVariant(),
        PromptVariant(drop_retrieved=True),
        PromptVariant(hide_text="all", drop_retrieved=True),
    ]
    assert [stream.variant for stream in image.streams] == variants
    assert [stream.variant for stream in text.streams] == variants
    assert [stream.weight for stream in image.streams] == [4.0, -1.5, -1.5]
    assert [stream.weight for stream in text.streams] == [3.0, 0.0, -2.0]
    assert image.filters.plausible_top_p == 0.95
    off = RetrievalCFGSamplerConfig(guidance_scale=1.0, retrieved_guidance_scale=1.0)
    assert [stream.variant for stream in off.plan("image").streams] == [PromptVariant()]
    negative = RetrievalCFGSamplerConfig(negative_prompt="grey").plan("image").streams[2].variant
    assert negative == PromptVariant(hide_text="all", drop_retrieved=True, replace_text="grey")


def test_what_its_streams_read():
    """With a retrieved document in front; without one, two of the three are one."""
    vocabulary = CM3LeonVocabulary(num_text=260, num_image=16)
    serializer = Serializer(vocabulary, ByteTokenizer(), (1, 2))
    eos, stop, mask = vocabulary.eos, vocabulary.break_, vocabulary.sentinel(0)
    a, c = 4 + ord("a"), 4 + ord("c")

    def prompts(retrieved: list[tuple[Text, ...]]) -> list[list[int]]:
        return [
            serializer.prompt((Text("a"), ImageHole()), retrieved, stream.variant).tokens.tolist()
            for stream in RetrievalCFGSamplerConfig().plan("image").streams
        ]

    alone = [[eos, a, stop], [eos, mask, stop]]
    assert prompts([(Text("c"),)]) == [[eos, c, stop, a, stop], *alone]
    assert prompts([]) == [alone[0], *alone]


@given(streams=streams_of(3), scale=st.floats(0, 8), retrieved=st.floats(0, 8), seed=seeds)
def test_its_formula(streams, scale, retrieved, seed):
    assume((scale, retrieved) != (1, 1))
    full, text, nothing = (stream.double().numpy() for stream in streams)
    scores_R = nothing + scale * (text - nothing) + retrieved * (full - text)
    config = RetrievalCFGSamplerConfig(
        guidance_scale=scale, retrieved_guidance_scale=retrieved, plausible_top_p=1.0
    )
    assert draw(config, *streams, first_seed=seed) == [race(scores_R, seed, 0, 0)]


@given(streams=streams_of(3), scale=st.sampled_from([0.0, 1.5, 2.0, 6.0]), seed=seeds)
def test_with_equal_scales_it_is_cfg_against_nothing(streams, scale, seed):
    full, _, nothing = streams
    cfg = CFGSamplerConfig(guidance_scale=scale, null_prompt="mask_no_retrieved")
    own = RetrievalCFGSamplerConfig(guidance_scale=scale, retrieved_guidance_scale=scale)
    assert draw(own, *streams, first_seed=seed) == draw(cfg, full, nothing, first_seed=seed)


def test_a_draw_by_hand():
    """log2 of f, t, n = (0, 1, -5), (0, 0, 0), (0, 1, -3): n + 2 (t - n) + 3 (f - t) = (0, 2, -12)."""
    streams = [
        torch.tensor(stream) * math.log(2)
        for stream in ([0.0, 1.0, -5.0], [0.0, 0.0, 0.0], [0.0, 1.0, -3.0])
    ]
    config = RetrievalCFGSamplerConfig(retrieved_guidance_scale=3.0, temperature=0.0)
    assert draw(config, *streams) == [1]
    # n alone would be likeliest at id 1, too; t decides where the documents don't count
    off = RetrievalCFGSamplerConfig(
        guidance_scale=1.0, retrieved_guidance_scale=0.0, temperature=0.0, plausible_top_p=1.0
    )
    assert draw(off, *streams) == [0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            RetrievalCFGSamplerConfig(retrieved_guidance_scale=-1.0),
            "sampler.retrieved_guidance_scale: is -1.0, must ... least 0",
        ),
        (
            RetrievalCFGSamplerConfig(null_prompt="mask"),
            "sampler.null_prompt: is 'mask' ... mask_no_retrieved",
        ),
    ],
)
def test_wrong_values(config, message):
    with pytest.raises(RecipeError) as error:
        config.check()
    assert tells(error.value, message)


def test_what_the_second_stream_sees_carries_over_where_it_can():
    """With the filters; not to a sampler that must not see documents."""
    shown, hidden = (
        CFGSamplerConfig(null_prompt=one, guidance_scale=5.0, top_k=7)
        for one in ("mask", "mask_no_retrieved")
    )
    carried = in_place_of(hidden, CDKSamplerConfig)
    assert (carried.null_prompt, carried.top_k) == ("mask_no_retrieved", 7)
    assert in_place_of(shown, CDKSamplerConfig).null_prompt == "mask"
    retrieval = in_place_of(shown, RetrievalCFGSamplerConfig)
    assert (retrieval.null_prompt, retrieval.top_k) == ("mask_no_retrieved", 7)
    assert retrieval.guidance_scale == RetrievalCFGSamplerConfig().guidance_scale
    assert in_place_of(None, CFGSamplerConfig).null_prompt == "mask"
