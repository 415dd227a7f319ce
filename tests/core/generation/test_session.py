"""Requests that join, leave and fail beside each other: what each of them draws is nobody else's
business."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import DocumentError, GenerationError
from cm3core.generation import prompts as prompts_module
from cm3core.generation.engine import (
    Cancelled,
    Engine,
    Failed,
    Finished,
    PictureGrown,
    Request,
    TextGrown,
    TokensDrawn,
    candidates,
)
from cm3core.sequence.serialize import Serializer
from cm3plugins.decoders.cm3leon import cache as cache_module
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3plugins.samplers.config import CFGSamplerConfig, TopPSamplerConfig
from engine_parts import (
    APPLE,
    GRID,
    PEAR,
    REQUESTS,
    SERIALIZER,
    VOCABULARY,
    make_decoder,
    make_engine,
)

WARM = CFGSamplerConfig(guidance_scale=2.0, temperature=0.9, text_temperature=1.3)
OTHERS = {
    "plain": TopPSamplerConfig(top_p=0.9, text_top_p=1.0).build(),
    "no retrieved": CFGSamplerConfig(
        guidance_scale=3.0, text_guidance_scale=1.5, null_prompt="mask_no_retrieved"
    ).build(),
    "greedy": CFGSamplerConfig(guidance_scale=1.5, temperature=0, text_temperature=0).build(),
}


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture
def everything_is_shared(monkeypatch):
    """Prefixes are shared however short, as they are at real sizes."""
    monkeypatch.setattr(cache_module, "SHARING_PAYS", 0)
    monkeypatch.setattr(prompts_module, "SHORTEST_COMMON", 2)


@st.composite
def requests(draw) -> Request:
    request = draw(st.sampled_from(REQUESTS))
    sampler = draw(st.sampled_from([None, *OTHERS.values()]))
    return replace(request, seed=draw(st.integers(0, 3)), sampler=sampler)


def results(session) -> dict[int, object]:
    """Run a session to its end: number -> completion, error or "cancelled"."""
    found: dict[int, object] = {}
    for event in session.events():
        if isinstance(event, Finished):
            found[event.request] = event.completion
        elif isinstance(event, Failed):
            found[event.request] = event.error
        elif isinstance(event, Cancelled):
            found[event.request] = "cancelled"
    return found


@settings(max_examples=25)
@given(data=st.data())
def test_late_joiners_cancelled_neighbours_and_mixed_samplers_change_nothing(decoder, data):
    """Requests of every kind, with different samplers, submitted and cancelled between steps: each
    draws what it draws alone."""
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


@settings(max_examples=15)
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
    """Both streams of guidance begin with the retrieved document: it is read in one row, then each
    stream's own rest."""
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
    """At scale 0 only the unconditional stream draws: a secret in the text changes nothing, nor
    does one that a neighbour keeps, though the conditional stream, which reads it, is in the same
    batch and both read the same retrieved document."""
    if shared:
        monkeypatch.setattr(cache_module, "SHARING_PAYS", 0)
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


# ---- events


def test_events_tell_the_whole_story(decoder):
    """Pieces of text make the text, tokens the contents; pictures in the making lose their missing
    codes row by row."""
    asked = [REQUESTS[0], REQUESTS[4], REQUESTS[5]]
    expected = make_engine(decoder, WARM).complete(asked)
    texts: dict[tuple[int, int], str] = {}
    tokens: dict[int, int] = {}
    pictures: dict[tuple[int, int], list[Codes]] = {}
    finished = {}
    for event in make_engine(decoder, WARM).stream(asked):
        assert event.request not in finished, "nothing comes after the end"
        if isinstance(event, TextGrown):
            assert event.text
            texts[event.request, event.segment] = (
                texts.get((event.request, event.segment), "") + event.text
            )
        elif isinstance(event, PictureGrown):
            pictures.setdefault((event.request, event.segment), []).append(event.codes)
        elif isinstance(event, TokensDrawn):
            tokens[event.request] = tokens.get(event.request, 0) + len(event.tokens)
        elif isinstance(event, Finished):
            finished[event.request] = event.completion
    assert [finished[place].document for place in range(3)] == [one.document for one in expected]
    assert [tokens[place] for place in range(3)] == [one.num_tokens for one in expected]
    assert texts[2, 0] == finished[2].document[0].text
    a, b = (
        finished[1].document[0].text[2:].split(" b", 1)
        if finished[1].document[0].text.count(" b") == 1
        else (None, None)
    )
    if a is not None:
        assert texts[1, 0] == a + b
    for (request, segment), grown in pictures.items():
        left = [int(codes.missing.sum()) for codes in grown]
        assert left == sorted(left, reverse=True)
        assert left[-1] == 0
        final = finished[request].document[segment].codes
        for codes in grown:
            assert np.array_equal(codes.codes[~codes.missing], final[~codes.missing])
    # two rows of three codes
    assert [int(codes.missing.sum()) for codes in pictures[0, 1]] == [3, 0]


def test_a_character_of_several_bytes_is_told_when_it_is_whole():
    """Two bytes a character, as a byte-level tokenizer has it: pieces never hold half of one, and
    together are the whole text."""

    class Greek(type(SERIALIZER.text_tokenizer)):
        def _decode(self, ids):
            return bytes(
                [206 if number % 2 == 0 else 177 + token for number, token in enumerate(ids)]
            ).decode(errors="replace")

    serializer = Serializer(VOCABULARY, Greek(), GRID)
    engine = Engine(
        make_decoder(), serializer, TopPSamplerConfig(text_temperature=2.0).build(), VOCABULARY
    )
    events = list(engine.stream([Request((TextHole(7, min_tokens=6), APPLE))]))
    pieces = [event.text for event in events if isinstance(event, TextGrown)]
    assert "".join(pieces) == events[-1].completion.document[0].text
    assert len(pieces) >= 3
    assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_leaving_the_stream_ends_the_work(decoder):
    for event in make_engine(decoder).stream(REQUESTS):
        assert event.request in range(len(REQUESTS))
        break


# ---- failures concern their request alone


class Failing:
    """A sampler that draws as another one does, but not for one seed."""

    def __init__(self, inner, fails):
        self.inner, self.fails = inner, fails

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def draws_with(self, other):
        return isinstance(other, Failing)

    def draw(self, *arguments, seed_n, **options):
        if 3 in seed_n.tolist():
            return self.fails(self.inner.draw(*arguments, seed_n=seed_n, **options), seed_n)
        return self.inner.draw(*arguments, seed_n=seed_n, **options)


def boom(tokens, seed_n):
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (boom, "request 1: RuntimeError: boom\n  next: see the traceback of its cause"),
        (
            lambda tokens, seed_n: tokens.float(),
            "request 1, sampler: drew torch.float32 [1], not int64 [1]\n"
            "  next: correct the sampler's `draw`",
        ),
        (
            lambda tokens, seed_n: None,
            "request 1, sampler: drew NoneType, not int64 [1]\n  next: correct the sampler's "
            "`draw`",
        ),
    ],
)
def test_a_sampler_that_fails_for_one_request_fails_that_one(decoder, fails, message):
    sampler = Failing(WARM.build(), fails)
    asked = [
        replace(REQUESTS[place], seed=seed) for place, seed in ((0, 1), (0, 3), (1, 2), (4, 5))
    ]
    found = make_engine(decoder, sampler).complete(asked, on_error="return")
    expected = make_engine(decoder, WARM).complete(asked)
    assert isinstance(found[1], GenerationError)
    assert str(found[1]) == message
    assert [found[place].document for place in (0, 2, 3)] == [
        expected[place].document for place in (0, 2, 3)
    ]
    with pytest.raises(GenerationError) as error:
        make_engine(decoder, sampler).complete(asked)
    assert str(error.value) == message
    assert error.value.__cause__ is not None


def test_an_illegal_id_fails_its_request_alone(decoder):
    def illegal(tokens, seed_n):
        return torch.where(seed_n == 3, 10**9, tokens)

    asked = [replace(REQUESTS[0], seed=seed) for seed in (1, 3, 2)]
    found = make_engine(decoder, Failing(WARM.build(), illegal)).complete(asked, on_error="return")
    expected = make_engine(decoder, WARM).complete([asked[0], asked[2]])
    assert [found[0].document, found[2].document] == [one.document for one in expected]
    assert str(found[1]) == (
        "request 1, sampler: drew <unused:1000000000> where image was due\n"
        "  next: correct the sampler: only ids that `allowed_nR` permits may be drawn"
    )


def test_requests_that_can_not_be_done_are_told_and_the_others_done(decoder):
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
    assert str(found[4]).startswith(
        "request 4, query document, segment 1: codes [4] of a 2 x 2 grid, pictures here are 2 x 3"
    )
    events = list(make_engine(decoder).stream(asked))
    assert [event.request for event in events if isinstance(event, Failed)] == [1, 2, 4]
    assert {event.request for event in events if isinstance(event, Finished)} == {0, 3}


def test_more_streams_than_rows_are_refused(decoder):
    with pytest.raises(GenerationError) as error:
        make_engine(decoder, max_rows=1).complete([REQUESTS[0]])
    assert str(error.value) == (
        "request 0: has 2 guidance streams, at most 1 rows may be in flight\n"
        "  next: raise max_rows, or use a sampler with fewer streams"
    )
    with pytest.raises(GenerationError, match="max_rows: is 0\n  next: use 1 or more"):
        make_engine(decoder, max_rows=0)


def test_keys_and_values_beyond_memory_are_refused_and_batches_are_cut_to_it(decoder, monkeypatch):
    engine = make_engine(decoder)
    needed = engine.inference.cache_bytes(64)
    assert needed == 2 * 64 * 2 * 32 * 4
    engine.preparer.cache_bytes = 1000
    with pytest.raises(GenerationError) as error:
        engine.complete([REQUESTS[0]])
    assert str(error.value).startswith(
        "request 0: its keys and values take 0.0 GB, they may take 0.0 GB\n  next: generate less"
    )
    engine.preparer.cache_bytes = 2 * engine.inference.cache_bytes(10)
    session = engine.open(details=False)
    for seed in range(3):
        session.submit(Request((Text("ab"), ImageHole()), seed=seed))
    while session.busy:
        session.step()
        assert session.num_rows <= 2


# ---- text holes


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
    assert str(error.value) == (
        "query document, segment 0: is a text hole of 4 to 3 tokens\n"
        "  next: give a max_tokens of at least 1, and a min_tokens from 1 to that"
    )


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


# ---- candidates, memory


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


def test_a_thousand_mixed_requests_leave_nothing_behind(decoder):
    """A session that serves requests for long holds no more memory, rows or objects than at its
    beginning."""
    session = make_engine(decoder, WARM, max_rows=12).open()
    rng = np.random.default_rng(0)
    done, sizes, pool = 0, [], []
    submitted = 0
    while done < 1000:
        while submitted < 1000 and len(session.waiting) < 4:
            request = replace(REQUESTS[int(rng.integers(len(REQUESTS)))], seed=submitted)
            number = session.submit(request)
            submitted += 1
            if rng.random() < 0.1:
                session.cancel(number)
        done += sum(isinstance(event, (Finished, Cancelled, Failed)) for event in session.step())
        cache = session._batch._cache
        pool.append(0 if cache is None else cache.keys_LKND.numel())
        if submitted % 100 == 0:
            gc.collect()
            sizes.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert not session.busy
    assert session.num_rows == 0
    assert max(pool) <= 12 * 66 * 2 * 2 * 16 * 2
    assert max(pool[len(pool) // 2 :]) <= max(pool[: len(pool) // 2]) * 1.5
    assert max(sizes[-20:]) <= max(sizes[:20]) + 50


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


# ---- captured steps


class ReplayedDecoder(CM3LeonDecoder):
    """Allows capturing on the CPU, where attention takes lengths from the host: a replay runs the
    whole step again."""

    def for_inference(self, precision: str = "auto"):
        arranged = super().for_inference(precision)
        arranged.on_cpu = False
        return arranged


def test_captured_steps_draw_the_same(decoder):
    """All that a step reads stays in the same tensors: run again on them it draws what a step not
    captured draws."""
    replayed = ReplayedDecoder(decoder.config, VOCABULARY.size, decoder.backend, GRID)
    replayed.load_state_dict(decoder.state_dict())
    captured = []

    def again(step):
        step()
        captured.append(step)
        return step

    engine = make_engine(
        replayed.eval(), CFGSamplerConfig(guidance_scale=2.0, guidance_ramp="up", temperature=0.9)
    )
    engine.capture = again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3core.generation.batch.FEWEST_STEPS", 1)
        asked = [
            replace(REQUESTS[place], seed=seed) for place, seed in ((0, 1), (0, 2), (1, 3))
        ] + [Request((Text("a"), Codes(APPLE.codes, GRID, np.arange(6) >= 2)), seed=4)]
        found = engine.complete(asked)
    plain = make_engine(
        decoder, CFGSamplerConfig(guidance_scale=2.0, guidance_ramp="up", temperature=0.9)
    ).complete(asked)
    assert len(captured) >= 2  # once for all four, again when one has left
    assert [one.document for one in found] == [one.document for one in plain]
    assert [one.log_probability for one in found] == pytest.approx(
        [one.log_probability for one in plain], abs=1e-3
    )


@pytest.mark.gpu
def test_cuda_graphs_draw_what_steps_draw(decoder):
    asked = [replace(request, seed=seed) for seed in range(2) for request in REQUESTS]
    engines = [make_engine(make_decoder().cuda(), WARM) for _ in range(2)]
    engines[1].capture = None
    graphs, plain = (engine.complete(asked) for engine in engines)
    assert [one.document for one in graphs] == [one.document for one in plain]
