"""Requests refused before anything is generated, requests that just fit, and threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cm3core.document import ImageHole, MaskedText, Text, TextHole
from cm3core.errors import GenerationError
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3run.generation.engine import Request
from engine_parts import APPLE, REQUESTS, make_engine
from messages import tells


def test_a_prompt_longer_than_the_context_says_what_fits(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([REQUESTS[0], Request((Text("a" * 60), ImageHole()))])
    assert tells(error.value, "request 1: the prompt is 62 ... and 6 ... 3 ... of 64")
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([Request((Text("a" * 20), TextHole(60)))])
    assert tells(error.value, "request 0: the prompt is 22 ... and 60 ... 17 ... of 64")


def test_the_whole_context_can_be_used(decoder):
    # 59 tokens of prompt; 6 codes, the last of which is not fed
    full = Request((Text("a" * 57), ImageHole()))
    assert make_engine(decoder).complete([full, REQUESTS[5]])[0].document[1].codes.shape == (6,)


def test_a_document_without_holes_is_refused(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder).complete([Request((Text("a"), APPLE))])
    assert tells(error.value, "request 0: the document has no hole, so ... TextHole")


def test_a_bad_seed_is_refused(decoder):
    with pytest.raises(GenerationError, match=r"seed: is -1\n  next: use 0 to 2\*\*63 - 1"):
        make_engine(decoder).complete([replace(REQUESTS[0], seed=-1)])


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


def test_more_streams_than_rows_are_refused(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder, max_rows=1).complete([REQUESTS[0]])
    assert tells(error.value, "request 0: has 2 guidance ... most 1 ... max_rows")
    with pytest.raises(GenerationError, match="max_rows: is 0\n  next: use 1 or more"):
        make_engine(decoder, max_rows=0)


def test_keys_and_values_beyond_memory_are_refused_and_batches_are_cut_to_it(decoder, monkeypatch):
    engine = make_engine(decoder)
    needed = engine.inference.cache_bytes(64)
    assert needed == 2 * 64 * 2 * 32 * 4
    engine.preparer.cache_bytes = 1000
    with pytest.raises(GenerationError) as error:
        engine.complete([REQUESTS[0]])
    assert tells(error.value, "request 0: its keys and ... take 0.0 GB ... most 0.0")
    engine.preparer.cache_bytes = 2 * engine.inference.cache_bytes(10)
    session = engine.open(details=False)
    for seed in range(3):
        session.submit(Request((Text("ab"), ImageHole()), seed=seed))
    while session.busy:
        session.step()
        assert session.num_rows <= 2


def test_a_text_without_a_limit_has_what_the_context_has(decoder):
    never = TopPSamplerConfig(text_temperature=5.0, text_top_p=1.0)
    document = (
        MaskedText(("a", TextHole(None, min_tokens=2), "b", TextHole(None))),
        APPLE,
        TextHole(4),
    )
    [row] = [make_engine(decoder, never).preparer.prepare(0, Request(document))]
    first, second, last = row.grammar.holes
    assert (first.max_tokens - 2, last.max_tokens) == (second.max_tokens - 1, 4)
    assert 62 <= row.longest <= 64
    [completion] = make_engine(decoder, never).complete([Request(document)])
    assert len(completion.document) == 3
    with pytest.raises(
        GenerationError,
        match="request 0: the prompt is 73 tokens and 1 are to be generated, 9 more than",
    ):
        make_engine(decoder, never).complete([Request((Text("a" * 71), TextHole(None)))])
