"""Rows that are kept: a prompt that begins like one of them reads only what is behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import NO_CELL, ImageHole, Text, TextHole
from cm3core.sequence.prompt_writer import Prompt
from cm3run.generation.engine import Engine, Request
from cm3run.generation.prompts import SHORTEST_KEPT, KeptPrefixes
from engine_parts import APPLE, OTHERS, PEAR, make_engine
from profiles import examples

START = (Text("a bad cab"), APPLE, Text("had"), PEAR)


def prompt(*tokens: int) -> Prompt:
    ids = np.array(tokens, np.int32)
    return Prompt(ids, np.full(len(ids), NO_CELL, np.int32), ())


def fed(engine: Engine) -> list[int]:
    """Numbers of tokens of the engine's forward passes from now on, padding included."""
    counts: list[int] = []
    plain = engine.inference.hidden_states

    def hidden_states(tokens_BT, **options):
        counts.append(tokens_BT.numel())
        return plain(tokens_BT, **options)

    engine.inference.hidden_states = hidden_states
    return counts


def follow_ups(seed: int, sampler=None) -> list[Request]:
    """A text, then a picture behind it, then a text behind that: each asked when the last is known."""
    return [
        Request((*START, hole), seed=seed, keep=True, sampler=sampler)
        for hole in (TextHole(3), ImageHole(), TextHole(4))
    ]


def replies(engine: Engine, requests: list[Request]) -> list[Request]:
    """The requests' documents, each behind what the one before it filled."""
    done: list[Request] = []
    for request in requests:
        before = done[-1].document if done else START
        document = (*before, *request.document[len(START) :])
        [completion] = engine.complete([replace(request, document=document)])
        done.append(replace(request, document=completion.document))
    return done


@pytest.mark.parametrize("name", [None, *OTHERS])
def test_parts_are_the_same_as_read_anew(decoder, name: str | None) -> None:
    """Same draws, with far fewer tokens read."""
    sampler = None if name is None else OTHERS[name]
    for seed in range(4):
        results, counts = [], []
        for keep in (True, False):
            engine = make_engine(decoder)
            counts.append(fed(engine))
            asked = [replace(one, keep=keep) for one in follow_ups(seed, sampler)]
            results.append(replies(engine, asked)[-1].document)
        assert results[0] == results[1]
        assert sum(counts[0]) < 0.7 * sum(counts[1])


def test_a_part_costs_its_own_tokens(decoder) -> None:
    """By hand: a picture of six codes behind a prompt that was read, then a text behind both."""
    engine = make_engine(decoder, OTHERS["greedy"])
    [first] = engine.complete([Request((*START, TextHole(3)), keep=True)])
    counts = fed(engine)
    [second] = engine.complete([Request((*first.document, TextHole(2)), keep=True)])
    read = engine.preparer.serializer.prompt((*first.document, TextHole(2)))
    before = engine.preparer.serializer.prompt((*START, TextHole(3)))
    # what is read first: all but what the first request had read
    assert counts[0] < len(read) - len(before)
    assert len(second.document) == len(first.document) + 1


def test_without_keep_nothing_is_kept_or_used(decoder) -> None:
    engine = make_engine(decoder)
    engine.complete([Request((*START, TextHole(3)))])
    assert len(engine.preparer.kept) == 0
    engine.complete([Request((*START, TextHole(3)), keep=True)])
    kept = len(engine.preparer.kept)
    assert kept > 0
    counts = fed(engine)
    engine.complete([Request((*START, TextHole(3)))])
    assert counts[0] >= len(engine.preparer.serializer.prompt((*START, TextHole(3))))


def test_memory_of_rows_comes_first(decoder) -> None:
    """Kept rows are dropped where rows in flight need their memory, the oldest first."""
    engine = make_engine(decoder)
    preparer = engine.preparer
    engine.complete([Request((*START, TextHole(3)), keep=True)])
    held = preparer.kept.num_bytes
    assert held > 0
    request = Request((Text("ab"), ImageHole()))
    row = preparer.prepare(0, request)
    preparer.cache_bytes = len(row.prompts) * engine.inference.cache_bytes(row.longest) + held // 2
    engine.complete([request])
    assert preparer.kept.num_bytes <= held // 2


def test_an_extension_takes_the_place_of_what_it_extends() -> None:
    kept = KeptPrefixes(lambda number: number, 4000)
    tokens = np.arange(40, dtype=np.int32)
    cells = np.full(40, NO_CELL, np.int32)
    caches = ["short", "long", "other"]
    kept.put(tokens[:20], cells[:20], caches[0])  # type: ignore[arg-type]  # only carried
    kept.put(tokens, cells, caches[1])  # type: ignore[arg-type]  # only carried
    assert (len(kept), kept.num_bytes) == (1, 40)
    kept.put(tokens + 100, cells, caches[2])  # type: ignore[arg-type]  # only carried
    assert kept.longest(prompt(*range(30), 99)) == ("long", 30)
    # the last token's state is needed, so that it is always read
    assert kept.longest(prompt(*range(40))) == ("long", 39)
    assert kept.longest(prompt(*range(SHORTEST_KEPT))) is None
    assert kept.longest(prompt(7, 8, 9)) is None


def test_the_least_recently_used_is_dropped() -> None:
    kept = KeptPrefixes(lambda number: number, 400)  # a quarter: 100
    cells = np.full(40, NO_CELL, np.int32)
    for number in range(3):
        tokens = np.arange(40, dtype=np.int32) + 1000 * number
        kept.put(tokens, cells, number)  # type: ignore[arg-type]  # only carried
        if number == 1:
            assert kept.longest(prompt(*range(40))) == (0, 39)
    assert kept.longest(prompt(*range(1000, 1040))) is None
    assert kept.longest(prompt(*range(40))) == (0, 39)
    assert kept.longest(prompt(*range(2000, 2040))) == (2, 39)
    assert not kept.room_for(101)
    assert kept.room_for(100)


@settings(max_examples=examples(6), deadline=None)
@given(st.data())
def test_other_requests_in_the_batch_change_nothing(decoder, data: st.DataObject) -> None:
    """Conversations side by side, each as alone."""
    seeds = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=3, unique=True))
    engine = make_engine(decoder)
    starts = [
        Request((Text("ab" * (number + 1)), *START, TextHole(3)), seed=seed, keep=True)
        for number, seed in enumerate(seeds)
    ]
    with torch.inference_mode():
        first = engine.complete(starts)
        more = [
            replace(start, document=(*done.document, ImageHole()))
            for start, done in zip(starts, first, strict=True)
        ]
        together = engine.complete([*more, Request((Text("dig"), ImageHole()))])
    for request, found in zip(more, together, strict=False):
        [alone] = make_engine(decoder).complete([replace(request, keep=False)])
        assert alone.document == found.document
