"""The engine with a tiny real decoder: guidance without a cache, independent rows, all holes.

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
from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import HoleGrammar
from cm3core.sequence.serialize import Serializer
from cm3plugins.samplers.cfg import NULL_PROMPTS, CFGSamplerConfig, TopPSamplerConfig
from cm3run.generation.engine import Engine, Request, candidate_seed, candidates
from engine_parts import (
    APPLE,
    GRID,
    LETTERS,
    PEAR,
    REQUESTS,
    SERIALIZER,
    VOCABULARY,
    WARM,
    Failing,
    LetterTokenizer,
    boom,
    make_engine,
)
from messages import tells
from profiles import examples


@torch.inference_mode()
def recomputed(
    decoder, request: Request, scale: float, text_scale: float, null: PromptVariant, top_p: float
) -> tuple[Document, float, int]:
    """Greedy completion with guidance, recomputing whole sequences: no cache, batch or padding."""
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


@settings(max_examples=examples(6))
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


def test_progress_ends_at_what_was_drawn(decoder):
    seen = []
    completions = make_engine(decoder).complete(
        REQUESTS, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == sum(one.num_tokens for one in completions) <= seen[-1][1]


def test_texts_are_cut_as_in_training(decoder):
    """Retrieved texts always, the document's own where it is asked for, never in silence."""
    long, short = (
        Request((Text(text), ImageHole()), [(Text(text), PEAR)], truncate=True)
        for text in ("abcabc", "abc")
    )
    cut = make_engine(decoder, max_text_tokens=3).complete([long])[0]
    whole = make_engine(decoder).complete([short])[0]
    assert cut.document[1] == whole.document[1]
    assert cut.document[0] == Text("abcabc")
    allowed = replace(long, document=short.document, truncate=False)
    [same] = make_engine(decoder, max_text_tokens=3).complete([allowed])
    assert same.document[1] == whole.document[1]


@pytest.mark.parametrize(
    ("request_", "negative", "place", "length", "next_step"),
    [
        (
            Request((Text("abcd"), ImageHole())),
            None,
            "segment 0",
            "4 tokens long",
            "shorten it, or read only its beginning (truncate)",
        ),
        (
            Request((Text("abc"), ImageHole())),
            "abcde",
            "negative prompt",
            "5 tokens long",
            "shorten it, or read only its beginning (truncate)",
        ),
        # what follows a hole would be lost, so it is refused even then
        (
            Request((APPLE, MaskedText(("ab", TextHole(2), "c")), PEAR), truncate=True),
            None,
            "segment 1",
            "3 tokens long, not counting its holes",
            "shorten it",
        ),
    ],
)
def test_a_text_that_would_be_cut_is_refused(decoder, request_, negative, place, length, next_step):
    sampler = CFGSamplerConfig(negative_prompt=negative)
    with pytest.raises(GenerationError) as error:
        make_engine(decoder, sampler, max_text_tokens=3).complete([request_])
    assert tells(
        error.value, f"request 0, {place}: is {length}; the ... most 3 ... of 64 ... {next_step}"
    )


@torch.inference_mode()
def test_joined_holes_keep_known_codes_and_equal_recomputation(decoder):
    """Two spans for three holes: the code between two of them is fed, not drawn."""
    serializer = Serializer(VOCABULARY, LetterTokenizer(), GRID, max_spans=2)
    sampler = TopPSamplerConfig(temperature=0)
    picture = Codes(PEAR.codes, GRID, np.array([True, False, True, False, False, True]))
    [done] = Engine(decoder, serializer, sampler.build(), VOCABULARY).complete(
        [Request((picture,))]
    )
    known = ~picture.missing
    assert np.array_equal(done.document[0].codes[known], PEAR.codes[known])
    prompt = serializer.prompt((picture,))
    tokens, cells = prompt.tokens.tolist(), prompt.cells.tolist()
    first, code = VOCABULARY.image.start, int(PEAR.codes[1])
    after = [
        [(first + code, 1)],
        [(VOCABULARY.end_of_infill, -1), (VOCABULARY.sentinel(1), -1)],
        [],
    ]
    for cell, forced in zip((0, 2, 5), after, strict=True):
        hidden = decoder.hidden_states(torch.tensor([tokens]), cells_BT=torch.tensor([cells]))
        drawn = int(decoder.logits(hidden[0, -1], VOCABULARY.image).argmax())
        assert drawn == done.document[0].codes[cell]
        for token, at in [(first + drawn, cell), *forced]:
            tokens.append(token)
            cells.append(at)


def test_a_text_ends_with_a_string_that_stops_it(decoder):
    hole = TextHole(12)
    greedy = TopPSamplerConfig(text_temperature=0)
    [whole] = make_engine(decoder, greedy).complete([Request((hole, APPLE))])
    text = whole.document[0].text
    assert len(text) > 2
    [stopped] = make_engine(decoder, greedy).complete(
        [Request((TextHole(12, stop=(text[1],)), APPLE, TextHole(3)))]
    )
    beginning = stopped.document[0].text
    assert text[1] in beginning or len(beginning) == 12
    assert text[1] not in beginning[:-1]


def test_a_text_is_as_long_as_asked_for_at_least(decoder):
    warm = TopPSamplerConfig(text_temperature=3.0, text_top_p=1.0)
    for seed in range(12):
        [short] = make_engine(decoder, warm).complete(
            [Request((TextHole(9, min_tokens=5), APPLE), seed=seed)]
        )
        assert 5 <= len(short.document[0].text) <= 9
    with pytest.raises(DocumentError) as error:
        make_engine(decoder).complete([Request((TextHole(3, min_tokens=4), APPLE))])
    assert tells(error.value, "query document, segment 0: is a text ... of 4 to 3")


def test_candidates_have_their_own_seeds_and_samplers(decoder):
    class Alternating(Failing):
        def for_candidate(self, index):
            return self.inner if index % 2 else self

    sampler = Alternating(WARM.build(), boom)
    some = candidates(replace(REQUESTS[0], seed=5), 4, sampler)
    assert [one.sampler for one in some] == [sampler, sampler.inner, sampler, sampler.inner]
    assert some[0].seed == 5
    assert len({one.seed for one in some}) == 4
    assert candidates(REQUESTS[0], 2)[0].sampler is None


def test_precisions_are_near_each_other_and_unknown_ones_are_refused(decoder):
    request = Request((Text("ab"), ImageHole()))
    exact = make_engine(decoder, CFGSamplerConfig(temperature=0)).inference
    tokens_BT = torch.tensor(SERIALIZER.prompt(request.document).tokens[None].astype(np.int64))
    states = {}
    for precision in ("auto", "fp32", "bf16", "int8"):
        arranged = decoder.for_inference(precision)
        cache = arranged.allocate_cache(1, 10)
        with torch.inference_mode():
            hidden = arranged.hidden_states(tokens_BT, cache=cache)[0, -1:]
            states[precision] = arranged.logits(hidden, VOCABULARY.image).float()
    assert exact.precision == "auto"
    spread = float(states["fp32"].std())
    assert torch.allclose(states["auto"], states["fp32"], atol=1e-4)
    for precision in ("bf16", "int8"):
        error = float((states[precision] - states["fp32"]).std())
        assert 0 < error < 0.15 * spread, f"{precision}: {error} beside {spread}"
        [completion] = make_engine(decoder, precision=precision).complete([request])
        assert completion.document[1].codes.shape == (GRID[0] * GRID[1],)
    with pytest.raises(GenerationError) as caught:
        make_engine(decoder, precision="int9")
    assert str(caught.value) == "precision: 'int9' is not known\n  next: did you mean 'int8'?"
