"""Coroutines share one batch: equal results, cancellation, failures reported to the right caller."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from cm3core.document import ImageHole, Text
from cm3core.errors import GenerationError
from cm3core.interfaces import Sampler
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Finished, PictureGrown, Request, candidate_seed
from cm3run.model import AsyncEngine, AsyncModel, ImageReady, InfillReady, Scored
from cm3run.model.searching import SearchCache
from engine_parts import APPLE, REQUESTS, make_decoder, make_engine
from messages import tells
from toy_model import picture, toy_model

WARM = CFGSamplerConfig(guidance_scale=2.0, temperature=0.9, text_temperature=1.3)


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


def test_many_callers_get_what_they_get_alone(decoder):
    asked = [replace(request, seed=seed) for seed in range(3) for request in REQUESTS]

    async def main():
        async with AsyncEngine(make_engine(decoder, WARM, max_rows=9)) as engine:
            return await asyncio.gather(*(engine.complete(request) for request in asked))

    expected = make_engine(decoder, WARM).complete(asked)
    assert [one.document for one in asyncio.run(main())] == [one.document for one in expected]


def test_events_of_one_request(decoder):
    async def main():
        async with AsyncEngine(make_engine(decoder, WARM)) as engine:
            return [event async for event in engine.stream(REQUESTS[0])]

    events = asyncio.run(main())
    assert {event.request for event in events} == {0}
    assert sum(isinstance(event, PictureGrown) for event in events) == 2
    assert isinstance(events[-1], Finished)


def test_a_cancelled_caller_frees_its_rows_and_harms_nobody(decoder):
    engine = make_engine(decoder, WARM, max_rows=2)  # one request at a time

    async def main():
        async with AsyncEngine(engine) as shared:
            first = asyncio.create_task(shared.complete(REQUESTS[5]))
            second = asyncio.create_task(shared.complete(REQUESTS[5]))
            third = asyncio.create_task(shared.complete(REQUESTS[0]))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            return (await third).document

    assert asyncio.run(main()) == make_engine(decoder, WARM).complete([REQUESTS[0]])[0].document


def test_sessions_side_by_side_change_no_result(decoder):
    """Two batches at once: each request gets what it gets alone, and equal documents stay together."""
    same = [replace(REQUESTS[0], seed=seed) for seed in range(4)]
    alone = make_engine(decoder, WARM).complete([*REQUESTS, *same])

    async def main():
        async with AsyncEngine(make_engine(decoder, WARM, max_rows=40), num_sessions=2) as engine:
            tasks = [asyncio.create_task(engine.complete(one)) for one in [*REQUESTS, *same]]
            await asyncio.sleep(0)
            workers = {id(engine._worker_of[ticket]) for ticket in range(len(tasks))}
            of_same = {id(engine._worker_of[len(REQUESTS) + place]) for place in range(4)}
            done = await asyncio.gather(*tasks)
            assert engine._worker_of == {}
            assert engine._document_of == {}
            return done, workers, of_same

    done, workers, of_same = asyncio.run(main())
    assert [one.document for one in done] == [one.document for one in alone]
    assert len(workers) == 2
    assert len(of_same) == 1


def test_without_details_only_the_end_is_told(decoder):
    async def main():
        async with AsyncEngine(make_engine(decoder, WARM)) as engine:
            return [event async for event in engine.stream(REQUESTS[0], details=False)]

    [event] = asyncio.run(main())
    assert isinstance(event, Finished)


def test_a_session_that_breaks_ends_its_neighbour(decoder):
    engine = make_engine(decoder, WARM)
    whole = engine.inference.hidden_states

    def broken(*arguments, **options):
        if threading.current_thread() is shared._workers[0].thread:
            raise RuntimeError("out of order")
        return whole(*arguments, **options)

    engine.inference.hidden_states = broken
    shared = AsyncEngine(engine, num_sessions=2)

    async def main():
        try:
            return await asyncio.gather(
                *(shared.complete(one) for one in REQUESTS[:2]), return_exceptions=True
            )
        finally:
            shared.close()

    first, second = asyncio.run(main())
    assert str(first).startswith("engine: stopped with RuntimeError: out of order")
    assert not isinstance(second, GenerationError) or str(second) == str(first)
    with pytest.raises(GenerationError, match="out of order"):
        asyncio.run(shared.complete(REQUESTS[0]))


def test_leaving_a_stream_cancels_its_request(decoder):
    async def main():
        async with AsyncEngine(make_engine(decoder, WARM, max_rows=2)) as engine:
            stream = engine.stream(REQUESTS[5])
            async for _ in stream:
                break
            await stream.aclose()
            return await engine.complete(REQUESTS[0])

    assert asyncio.run(main()).num_tokens == 6


def test_an_invalid_request_is_reported_to_its_caller(decoder):
    async def main():
        async with AsyncEngine(make_engine(decoder, WARM), num_sessions=1) as engine:
            return await asyncio.gather(
                engine.complete(REQUESTS[0]),
                engine.complete(Request((Text("a"), APPLE))),
                return_exceptions=True,
            )

    done, refused = asyncio.run(main())
    assert done.num_tokens == 6
    assert isinstance(refused, GenerationError)
    assert str(refused).startswith("request 1: the document has no hole")


class BrokenPlan(Sampler):
    def plan(self, modality):
        raise ZeroDivisionError("no plan")

    def draw(self, *_, **__):
        raise AssertionError("there is no plan to draw by")


@pytest.mark.parametrize(
    ("request_", "cause"),
    [
        (Request((Text(5), ImageHole())), "TypeError"),
        (Request((Text("ab"), ImageHole()), seed="abc"), "TypeError"),
        (Request((Text("ab"), ImageHole()), sampler=BrokenPlan()), "ZeroDivisionError: no plan"),
    ],
)
def test_a_request_of_wrong_values_fails_alone(decoder, request_, cause):
    """Its caller is answered, and the engine serves the next one."""

    async def main():
        engine = AsyncEngine(make_engine(decoder, WARM))
        try:
            return await asyncio.wait_for(
                asyncio.gather(
                    engine.complete(request_), engine.complete(REQUESTS[0]), return_exceptions=True
                ),
                timeout=60,
            )
        finally:
            engine.close()

    error, completion = asyncio.run(main())
    assert isinstance(error, GenerationError)
    assert re.fullmatch(
        rf"request \d+: can't be prepared \(({cause}).*\)\n"
        r"  next: see `Request` for what it holds, and the sampler's plan",
        str(error),
        re.DOTALL,
    )
    assert completion.num_tokens > 0


def test_a_closed_engine_says_so(decoder):
    async def main():
        engine = AsyncEngine(make_engine(decoder, WARM))
        waiting = asyncio.create_task(engine.complete(REQUESTS[5]))
        await asyncio.sleep(0)
        engine.close()
        return await asyncio.gather(waiting, engine.complete(REQUESTS[0]), return_exceptions=True)

    for error in asyncio.run(main()):
        if isinstance(error, GenerationError):
            assert tells(error, "engine: is closed")
        else:
            assert error.num_tokens > 0  # it finished before the engine closed


def test_a_decoder_that_breaks_is_reported_to_all(decoder):
    engine = make_engine(decoder, WARM)

    def broken(*_, **__):
        raise RuntimeError("out of order")

    engine.inference.hidden_states = broken

    async def main():
        shared = AsyncEngine(engine)
        try:
            return await asyncio.gather(
                shared.complete(REQUESTS[0]), shared.complete(REQUESTS[1]), return_exceptions=True
            )
        finally:
            shared.close()

    for error in asyncio.run(main()):
        assert tells(error, "engine: stopped with RuntimeError")
        assert isinstance(error.__cause__, RuntimeError)


def exits(*_, **__):
    raise SystemExit(0)


def test_a_sampler_that_exits_ends_no_thread(decoder):
    """Its request fails with an error; the next one is completed, by the same threads."""

    class Exiting(BrokenPlan):
        def plan(self, modality):
            return WARM.build().plan(modality)

        draw = exits

    async def main():
        async with AsyncEngine(make_engine(decoder, WARM)) as engine:
            wrong = replace(REQUESTS[0], sampler=Exiting())
            found = await asyncio.gather(
                *(engine.complete(one) for one in (wrong, REQUESTS[0], wrong)),
                return_exceptions=True,
            )
            assert engine.trouble(60) is None
            return [*found, await engine.complete(REQUESTS[1])]

    first, done, third, after = asyncio.run(main())
    for error in (first, third):
        assert error.cause == "SystemExit: 0"
        assert error.next_step == "see the traceback of its cause: cm3 -v, or CM3_TRACEBACK=1"
    alone = make_engine(decoder, WARM).complete(REQUESTS[:2])
    assert [done.document, after.document] == [one.document for one in alone]


def leaves(*_, **__):
    raise asyncio.CancelledError


def ends_early(*_, **__):
    raise StopIteration


@pytest.mark.parametrize("raising", [exits, leaves, ends_early])
@pytest.mark.parametrize("where", ["reranker", "image_tokenizer", "upscaler", "retriever"])
def test_what_a_component_beside_the_engine_raises_reaches_its_caller(raising, where, ranked):
    """In a coroutine SystemExit would end the event loop, and CancelledError look like a caller that has left."""
    model, whole = ranked, toy_model()
    model.searches = SearchCache()  # or nothing is searched for
    asked = {"reranker": {"num_candidates": 2}, "upscaler": {"upscale": True}}.get(where, {})
    parts = model.components
    component = parts.image_tokenizer if where == "image_tokenizer" else getattr(parts, where, None)
    names = {
        "reranker": "score",
        "image_tokenizer": "decode",
        "upscaler": "upscale",
        "retriever": "retrieve",
    }
    if component is None:
        component = type("Stand", (), {names[where]: raising})()
        setattr(parts, where, component)

    async def main(monkeypatch):
        async with AsyncModel(model) as shared:
            with monkeypatch.context() as patched:
                patched.setattr(component, names[where], raising, raising=False)
                with pytest.raises(GenerationError) as caught:
                    await asyncio.wait_for(shared.generate("red", 1, seed=3, **asked), 60)
            assert caught.value.place == "component"
            assert shared.trouble(60) is None
            return await shared.generate("red", 1, seed=3, num_candidates=1)

    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            [drawn] = asyncio.run(main(monkeypatch))
        finally:
            if where == "upscaler":
                parts.upscaler = None
    assert (drawn.pixels == whole.generate("red", 1, seed=3)[0].pixels).all()


def test_an_engine_whose_step_does_not_end_says_so(decoder):
    engine = make_engine(decoder, WARM)
    whole, goes_on, began = engine.inference.hidden_states, threading.Event(), threading.Event()

    def waits(*arguments, **options):
        began.set()
        assert goes_on.wait(60)
        return whole(*arguments, **options)

    engine.inference.hidden_states = waits

    async def main():
        async with AsyncEngine(engine, num_sessions=1) as shared:
            assert shared.trouble(0.0) is None  # nothing is asked of it
            asked = asyncio.create_task(shared.complete(REQUESTS[0]))
            await asyncio.to_thread(began.wait, 60)
            assert shared.trouble(60) is None
            stuck, where = shared.trouble(0.0), shared.stacks()
            goes_on.set()
            await asked
            while shared.trouble(0.0) is not None:  # until the thread waits again
                await asyncio.sleep(0.001)
            return stuck, where

    stuck, where = asyncio.run(main())
    assert stuck == "a step has taken 0 s so far; waiting requests: 1"
    assert "in waits" in where


def test_coroutines_get_what_methods_return(ranked):
    async def main():
        async with AsyncModel(ranked) as shared:
            pictures, text, filled = await asyncio.gather(
                shared.generate("red", 2, seed=3, num_candidates=2),
                shared.caption(picture(8, 8), seed=1),
                shared.infill(picture(8, 8), (0, 0, 4, 4), "red"),
            )
            reported = [event async for event in shared.events("red", 2, seed=3, num_candidates=2)]
            with pytest.raises(GenerationError):
                await shared.generate("", 1)
        return pictures, text, filled, reported

    pictures, text, filled, reported = asyncio.run(main())
    expected = ranked.generate("red", 2, seed=3, num_candidates=2)
    assert all(
        np.array_equal(one.pixels, other.pixels)
        for one, other in zip(pictures, expected, strict=True)
    )
    assert text.text == ranked.caption(picture(8, 8), seed=1).text
    assert np.array_equal(filled.pixels, ranked.infill(picture(8, 8), (0, 0, 4, 4), "red").pixels)
    assert sum(isinstance(event, ImageReady) for event in reported) == 2
    assert sum(isinstance(event, Scored) for event in reported) == 4


def test_edits_and_fills_have_events_that_end_with_their_pictures():
    whole, fresh = picture(8, 8), toy_model()
    how = {"seed": 3, "sampler": "cfg", "task_text": "edit"}

    async def main():
        async with AsyncModel(toy_model()) as model:
            edits = [e async for e in model.edit_events(whole, "blue", 2, **how)]
            fills = [
                e
                async for e in model.infill_events(whole, (0, 4, 8, 8), "red", num_images=2, seed=3)
            ]
            grown = next(event.codes for event in fills if isinstance(event, PictureGrown))
            return edits, fills, await model.preview(grown), grown

    edits, fills, shown, grown = asyncio.run(main())
    drawn = {e.request: e.image.pixels for e in edits if isinstance(e, ImageReady)}
    own = fresh.edit(whole, "blue", 2, **how)
    assert [drawn[place].tolist() for place in (0, 1)] == [one.pixels.tolist() for one in own]
    filled = {e.request: e.image for e in fills if isinstance(e, InfillReady)}
    for place in (0, 1):
        alone = fresh.infill(whole, (0, 4, 8, 8), "red", seed=candidate_seed(3, place))
        assert (filled[place].pixels == alone.pixels).all()
        assert filled[place].seed == alone.seed
    assert (shown == fresh.preview(grown)).all()


def test_leaving_the_events_of_a_fill_frees_its_rows():
    async def main():
        async with AsyncModel(toy_model()) as model:
            events = model.infill_events(picture(8, 8), (0, 0, 8, 8), "red", num_images=3)
            async for _ in events:
                break
            await events.aclose()
            for _ in range(200):
                if model.engine.num_requests == 0:
                    return True
                await asyncio.sleep(0.01)
            return False

    assert asyncio.run(main())
