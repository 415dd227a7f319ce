"""The engine, with a real tiny decoder: guidance against recomputation without a cache, independent
rows, all kinds of holes.

Legend: S streams, T tokens, V ids.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import GenerationError
from cm3core.generation.engine import Engine, Request, candidate_seed
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import HoleGrammar
from cm3plugins.samplers.config import NULL_PROMPTS, CFGSamplerConfig, TopPSamplerConfig
from engine_parts import APPLE, LETTERS, REQUESTS, SERIALIZER, VOCABULARY, make_decoder, make_engine


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@torch.inference_mode()
def recomputed(
    decoder, request: Request, scale: float, text_scale: float, null: PromptVariant, top_p: float
) -> tuple[Document, float, int]:
    """Greedy completion with guidance, each token from the whole sequences again: no cache, no
    batch, no padding."""
    prompts = [
        SERIALIZER.prompt(request.document, request.retrieved, variant)
        for variant in (PromptVariant(), null)
    ]
    sequences = [(prompt.tokens.tolist(), prompt.cells.tolist()) for prompt in prompts]
    grammar, log_probability, num_tokens = (
        HoleGrammar(prompts[0].holes, VOCABULARY, len(LETTERS)),
        0.0,
        0,
    )
    while not grammar.done:
        conditional, unconditional = (
            decoder.logits(
                decoder.hidden_states(torch.tensor([tokens]), cells_BT=torch.tensor([cells]))[0, -1]
            )
            for tokens, cells in sequences
        )
        own_scale = scale if grammar.modality == "image" else text_scale
        legal = torch.tensor([token for ids in grammar.legal for token in ids])
        mixed = (unconditional + own_scale * (conditional - unconditional))[legal]
        if own_scale != 1:
            probability, order = conditional[legal].softmax(-1).sort(descending=True)
            mixed[order[probability.cumsum(-1) - probability >= top_p]] = -torch.inf
        token, cell = int(legal[mixed.argmax()]), int(grammar.cells(1)[0])
        log_probability += float(conditional[legal].log_softmax(-1)[mixed.argmax()])
        num_tokens += 1
        forced = grammar.take(np.array([token], np.int32)).tolist()
        for tokens, cells in sequences:
            tokens += [token, *forced]
            cells += [cell, *[-1] * len(forced)]
    return SERIALIZER.fill(request.document, grammar.contents), log_probability, num_tokens


@pytest.mark.parametrize(
    ("scale", "text_scale", "null"),
    [(3.0, 1.0, "mask"), (1.7, 2.0, "mask_no_retrieved"), (1.0, 1.0, "mask")],
)
def test_greedy_tokens_equal_recomputation_without_cache(decoder, scale, text_scale, null):
    sampler = CFGSamplerConfig(
        guidance_scale=scale,
        text_guidance_scale=text_scale,
        null_prompt=null,
        plausible_top_p=0.8,
        temperature=0,
        text_temperature=0,
    )
    for request, completion in zip(
        REQUESTS, make_engine(decoder, sampler).complete(REQUESTS), strict=True
    ):
        document, log_probability, num_tokens = recomputed(
            decoder, request, scale, text_scale, NULL_PROMPTS[null], 0.8
        )
        assert completion.document == document
        assert completion.num_tokens == num_tokens
        assert completion.log_probability == pytest.approx(log_probability, abs=1e-3)


def test_documents_are_filled_and_nothing_else_changes(decoder):
    for request, completion in zip(REQUESTS, make_engine(decoder).complete(REQUESTS), strict=True):
        assert len(completion.document) == len(request.document)
        for asked, filled in zip(request.document, completion.document, strict=True):
            if isinstance(asked, ImageHole):
                assert isinstance(filled, Codes)
                assert filled.codes.shape == (6,)
                assert filled.missing is None
                assert filled.codes.min() >= 0
                assert filled.codes.max() < 16
            elif isinstance(asked, Codes) and asked.missing is not None:
                assert np.array_equal(filled.codes[~asked.missing], asked.codes[~asked.missing])
            elif isinstance(asked, TextHole):
                assert 1 <= len(filled.text) <= asked.max_tokens
            elif isinstance(asked, MaskedText):
                assert filled.text.startswith("a ")
                assert " b" in filled.text
            else:
                assert filled == asked


@settings(max_examples=15)
@given(data=st.data())
def test_a_result_does_not_depend_on_what_else_is_in_the_batch(decoder, data):
    sampler = CFGSamplerConfig(guidance_scale=2.0, temperature=0.9, text_temperature=1.3)
    requests = [
        replace(request, seed=data.draw(st.integers(0, 3)))
        for request in data.draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5))
    ]
    together = make_engine(
        decoder, sampler, max_rows=data.draw(st.sampled_from([2, 5, 64]))
    ).complete(requests)
    for request, completion in zip(requests, together, strict=True):
        alone = make_engine(decoder, sampler).complete([request])[0]
        assert alone.document == completion.document
        assert alone.num_tokens == completion.num_tokens


def test_seeds_decide_the_draws(decoder):
    request = REQUESTS[0]
    asked = [
        replace(request, seed=candidate_seed(seed, index)) for seed in (0, 1) for index in range(3)
    ]
    completions = make_engine(decoder, TopPSamplerConfig(top_p=1.0)).complete(asked)
    pictures = [completion.document[1].codes.tolist() for completion in completions]
    assert len({tuple(picture) for picture in pictures}) == 6
    again = make_engine(decoder, TopPSamplerConfig(top_p=1.0)).complete(
        [replace(request, seed=candidate_seed(1, 1))]
    )
    assert again[0].document[1].codes.tolist() == pictures[4]


def test_scale_one_is_the_conditional_stream_and_runs_nothing_else(decoder):
    plain = make_engine(decoder, TopPSamplerConfig(top_p=0.9)).complete(REQUESTS)
    guided = make_engine(decoder, CFGSamplerConfig(guidance_scale=1.0, top_p=0.9)).complete(
        REQUESTS
    )
    assert [one.document for one in plain] == [one.document for one in guided]
    assert len(CFGSamplerConfig(guidance_scale=1.0).plan("image").streams) == 1


class CountingDecoder:
    """A decoder that notes the shape of every forward and the range of every head."""

    def __init__(self, decoder):
        self.decoder, self.shapes, self.ranges = decoder, [], []

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def for_inference(self, precision):
        self.decoder = self.decoder.for_inference(precision)
        return self

    def hidden_states(self, tokens_BT, **options):
        self.shapes.append(tuple(tokens_BT.shape))
        return self.decoder.hidden_states(tokens_BT, **options)

    def logits(self, hidden, ids):
        self.ranges.append(ids)
        return self.decoder.logits(hidden, ids)


def test_equal_prompts_are_read_once_and_the_head_runs_over_image_codes_only(decoder):
    counting = CountingDecoder(decoder)
    requests = [Request((Text("ab"), ImageHole()), seed=seed) for seed in range(3)]
    make_engine(counting).complete(requests)
    # one conditional and one unconditional prompt; then 3 x 2 streams
    assert counting.shapes == [(2, 4), *[(6, 1)] * 5]
    assert set(counting.ranges) == {VOCABULARY.image}


def test_captions_at_text_scale_one_run_one_stream(decoder):
    counting = CountingDecoder(decoder)
    make_engine(counting).complete([Request((TextHole(4), APPLE))])
    assert {rows for rows, _ in counting.shapes} == {1}


def test_progress_ends_at_what_was_drawn(decoder):
    seen = []
    completions = make_engine(decoder).complete(
        REQUESTS, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == sum(one.num_tokens for one in completions) <= seen[-1][1]


def test_texts_are_cut_as_in_training(decoder):
    long, short = (Request((Text(text), ImageHole())) for text in ("abcabc", "abc"))
    cut = make_engine(decoder, max_text_tokens=3).complete([long])[0]
    whole = make_engine(decoder).complete([short])[0]
    assert cut.document[1] == whole.document[1]
    assert cut.document[0] == Text("abcabc")


def test_a_prompt_longer_than_the_context_says_what_fits(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([REQUESTS[0], Request((Text("a" * 60), ImageHole()))])
    assert str(error.value) == (
        "request 1: the prompt is 62 tokens and 6 are to be generated, 3 more than the decoder's "
        "context of 64 holds\n"
        "  next: shorten the text or retrieve fewer documents (a prompt of 59 tokens fits)"
    )
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([Request((Text("a" * 20), TextHole(60)))])
    assert str(error.value) == (
        "request 0: the prompt is 22 tokens and 60 are to be generated, 17 more than the "
        "decoder's context of 64 holds\n"
        "  next: shorten the text or retrieve fewer documents (a prompt of 5 tokens fits), "
        "or write at most 43 text tokens instead of 60"
    )


def test_the_whole_context_can_be_used(decoder):
    # 59 tokens of prompt; 6 codes, the last of which is not read
    full = Request((Text("a" * 57), ImageHole()))
    assert make_engine(decoder).complete([full, REQUESTS[5]])[0].document[1].codes.shape == (6,)


def test_small_decoders_use_one_thread_and_leave_the_number_as_it_was(decoder):
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for number in (None, 2):
            own = make_engine(decoder, num_threads=number)
            own.complete(REQUESTS[:1], progress=lambda *_: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen[: len(seen) // 2]) == {1}
    assert set(seen[len(seen) // 2 :]) == {2}


def test_a_document_without_holes_is_refused(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([Request((Text("a"), APPLE))])
    assert str(error.value) == (
        "request 0: the document has no hole, there is nothing to complete\n"
        "  next: put a TextHole, an ImageHole or missing codes where something is to be generated"
    )


def test_a_bad_seed_is_refused(decoder):
    with pytest.raises(GenerationError, match=r"seed: is -1\n  next: use 0 to 2\*\*63 - 1"):
        make_engine(decoder).complete([replace(REQUESTS[0], seed=-1)])


def test_a_sampler_that_draws_an_illegal_id_is_named(decoder):
    bad = TopPSamplerConfig().build()
    bad.draw = lambda logits_SR, rows, *_, **__: torch.full((len(rows),), VOCABULARY.break_)
    with pytest.raises(GenerationError, match="sampler: drew <break> where image was due"):
        Engine(decoder, SERIALIZER, bad, VOCABULARY).complete([REQUESTS[0]])
