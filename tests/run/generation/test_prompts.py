"""Prompts share their common prefix, and no stream sees another stream's tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import ImageHole, Text, TextHole
from cm3plugins.decoders import cache as pool_module
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation import prompts as prompts_module
from cm3run.generation.engine import Request
from engine_parts import APPLE, PEAR, VOCABULARY, WARM, make_engine, requests
from profiles import examples


@pytest.fixture
def everything_is_shared(monkeypatch):
    """Share prefixes of any length, as happens at real sizes."""
    monkeypatch.setattr(pool_module, "SHARING_PAYS", 0)
    monkeypatch.setattr(prompts_module, "SHORTEST_COMMON", 2)


@settings(max_examples=examples(6))
@given(data=st.data())
def test_sharing_prefixes_changes_nothing(decoder, data):
    some = data.draw(st.lists(requests(), min_size=2, max_size=6))
    some += [replace(some[0], seed=9), replace(some[0], seed=10)]
    apart = make_engine(decoder, WARM).complete(some)
    with pytest.MonkeyPatch.context() as patch:
        everything_is_shared.__wrapped__(patch)
        together = make_engine(decoder, WARM).complete(some)
    assert [one.document for one in together] == [one.document for one in apart]


def test_streams_that_see_the_same_documents_read_them_once(decoder, everything_is_shared):
    """Both guidance streams begin with the retrieved document.

    It is read in one row, then the rest of each stream.
    """
    engine = make_engine(decoder)
    shapes = []
    whole = engine.inference.hidden_states
    engine.inference.hidden_states = lambda tokens_BT, **options: (
        shapes.append(tuple(tokens_BT.shape)),
        whole(tokens_BT, **options),
    )[1]
    engine.complete(
        [
            Request((Text("ab"), ImageHole()), retrieved=((Text("bad"), PEAR),), seed=seed)
            for seed in range(2)
        ]
    )
    shared = 1 + 3 + 1 + 6 + 1  # <eos> bad <break> codes <break>
    assert shapes[:2] == [(1, shared), (2, 3)]  # then "ab<break>" and "<sentinel><break>"
    assert set(shapes[2:]) == {(4, 1)}


@pytest.mark.parametrize("shared", [False, True])
def test_no_stream_sees_what_another_one_reads(decoder, monkeypatch, shared):
    """At scale 0 only the unconditional stream counts, so a secret in the text changes nothing.

    Neither does a secret in a neighbour's text, though the conditional stream that reads it is in
    the same batch and both read the same retrieved document.
    """
    if shared:
        monkeypatch.setattr(pool_module, "SHARING_PAYS", 0)
        monkeypatch.setattr(prompts_module, "SHORTEST_COMMON", 2)
    asked = {
        secret: [
            Request((Text(secret), ImageHole()), retrieved=((Text("bad"), PEAR),), seed=seed)
            for seed in range(3)
        ]
        for secret in ("ab", "jj", "a bad head")
    }

    def drawn(scale: float, *requests: Request) -> list[list[int]]:
        sampler = CFGSamplerConfig(guidance_scale=scale, plausible_top_p=1.0, temperature=0.8)
        return [
            one.document[1].codes.tolist()
            for one in make_engine(decoder, sampler).complete(requests)
        ]

    blind = {secret: drawn(0.0, *requests) for secret, requests in asked.items()}
    assert blind["ab"] == blind["jj"] == blind["a bad head"]
    together = drawn(0.0, *asked["ab"], *asked["jj"])
    assert together == blind["ab"] * 2
    seeing = {secret: drawn(1.0, *requests) for secret, requests in asked.items()}
    assert seeing["ab"] != seeing["jj"]
    assert seeing["ab"] != blind["ab"]


class CountingDecoder:
    """A decoder that records the shape of each forward and the id range of each head."""

    def __init__(self, decoder):
        self.decoder, self.shapes, self.ranges = decoder, [], []
        self.module = decoder.module

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
