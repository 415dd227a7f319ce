"""Events: pieces of text, tokens and partial pictures add up to the finished result."""

from __future__ import annotations

import numpy as np

from cm3core.document import Codes, TextHole
from cm3core.sequence.serialize import Serializer
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3run.generation.engine import (
    Engine,
    Finished,
    PictureGrown,
    Request,
    TextGrown,
    TokensDrawn,
)
from engine_parts import (
    APPLE,
    GRID,
    REQUESTS,
    SERIALIZER,
    VOCABULARY,
    WARM,
    make_decoder,
    make_engine,
)


def test_events_tell_the_whole_story(decoder):
    """Text pieces join to the text, tokens to the contents; partial pictures fill row by row."""
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


def test_a_character_of_several_bytes_is_reported_when_complete():
    """Two bytes per character, as in a byte-level tokenizer.

    Pieces never hold half a character, and together are the whole text.
    """

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
