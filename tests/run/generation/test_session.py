"""Requests that join, leave and fail side by side: none changes the tokens of another."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, ImageHole, Text
from cm3run.generation.engine import Cancelled, Failed, Finished, Request
from engine_parts import REQUESTS, WARM, make_engine, requests
from messages import tells
from profiles import examples


@settings(max_examples=examples(6))
@given(data=st.data())
def test_late_joiners_cancelled_neighbours_and_mixed_samplers_change_nothing(decoder, data):
    """Each request draws the same tokens as when it is alone.

    Requests are of every kind, with different samplers, submitted and cancelled between steps.
    """
    engine = make_engine(
        decoder, WARM, max_rows=data.draw(st.sampled_from([2, 5, 64]), label="max_rows")
    )
    session = engine.open(details=False)
    submitted: dict[int, Request] = {}
    cancelled: set[int] = set()
    found: dict[int, object] = {}
    waiting = data.draw(st.lists(requests(), min_size=1, max_size=7), label="requests")
    while waiting or session.busy:
        for _ in range(data.draw(st.integers(0, 2), label="joining") if session.busy else 1):
            if waiting:
                request = waiting.pop()
                submitted[session.submit(request)] = request
        assert session.num_rows <= engine.max_rows
        if submitted and data.draw(st.integers(0, 5), label="cancel?") == 0:
            victim = data.draw(st.sampled_from(sorted(submitted)), label="victim")
            if session.cancel(victim):
                cancelled.add(victim)
                assert not session.cancel(victim)
        for event in session.step():
            if isinstance(event, Finished):
                found[event.request] = event.completion
            else:
                assert isinstance(event, Cancelled)
                found[event.request] = "cancelled"
    assert set(found) == set(submitted)
    assert {number for number, result in found.items() if result == "cancelled"} == cancelled
    for number in set(submitted) - cancelled:
        alone = make_engine(decoder, WARM).complete([submitted[number]])[0]
        assert found[number].document == alone.document
        assert found[number].num_tokens == alone.num_tokens
        assert found[number].log_probability == pytest.approx(alone.log_probability, abs=1e-3)


def test_leaving_the_stream_ends_the_work(decoder):
    for event in make_engine(decoder).stream(REQUESTS):
        assert event.request in range(len(REQUESTS))
        break


def test_invalid_requests_are_reported_and_the_others_completed(decoder):
    asked = [
        REQUESTS[0],
        Request((Text("a"),)),
        Request((Text("a" * 70), ImageHole())),
        REQUESTS[1],
        Request((Text("a"), Codes(np.zeros(4, np.int32), (2, 2), np.ones(4, np.bool_)))),
    ]
    found = make_engine(decoder).complete(asked, on_error="return")
    assert [type(one).__name__ for one in found] == [
        "Completion",
        "GenerationError",
        "GenerationError",
        "Completion",
        "GenerationError",
    ]
    assert str(found[1]).startswith("request 1: the document has no hole")
    assert tells(found[4], "request 4, query document, segment 1: codes [4] of a 2 x 2")
    events = list(make_engine(decoder).stream(asked))
    assert [event.request for event in events if isinstance(event, Failed)] == [1, 2, 4]
    assert {event.request for event in events if isinstance(event, Finished)} == {0, 3}


@pytest.mark.slow
def test_many_mixed_requests_leave_nothing_behind(decoder):
    """A long-running session holds no more memory, rows or objects than at its start."""
    session = make_engine(decoder, WARM, max_rows=12).open()
    rng = np.random.default_rng(0)
    done, sizes, pool = 0, [], []
    submitted = 0
    while done < 144:
        while submitted < 144 and len(session.waiting) < 4:
            request = replace(REQUESTS[int(rng.integers(len(REQUESTS)))], seed=submitted)
            number = session.submit(request)
            submitted += 1
            if rng.random() < 0.1:
                session.cancel(number)
        done += sum(isinstance(event, (Finished, Cancelled, Failed)) for event in session.step())
        cache = session._batch._cache
        pool.append(0 if cache is None else cache.keys_LKND.numel())
        if len(pool) % 12 == 0 or done >= 144:
            gc.collect()
            alive = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
            sizes.append((submitted, alive))
    assert not session.busy
    assert session.num_rows == 0
    assert max(pool) <= 12 * 66 * 2 * 2 * 16 * 2
    assert max(pool[len(pool) // 2 :]) <= max(pool[: len(pool) // 2]) * 1.5
    first = max(alive for after, alive in sizes if after <= 60)
    assert sizes[-1][1] <= max(alive for after, alive in sizes if after > 120) <= first + 50
