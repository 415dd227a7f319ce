"""`Model.chat`: replies of text and pictures in a layout's turns, and by the task of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cm3core
from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3core.errors import GenerationError
from cm3run.generation.engine import Failed, PictureGrown, TextGrown
from cm3run.model import Conversation, Model, Reply, ReplyPart, ReplyPicture, ReplyReady, Turn
from messages import tells
from tiny_chameleon import BREAK, EOSS, GRID, TURN_END, write_cm3

GREEDY: dict[str, Any] = {"temperature": 0.0, "text_temperature": 0.0}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cm3(tmp_path_factory.mktemp("chameleon"))


@pytest.fixture
def model(converted: Path) -> Model:
    return cm3core.load(converted)


def pixels(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def liking(model: Model, **bias: float) -> Model:
    """The model with a constant added to the logits of tokens; it likes what it is told to."""
    ids = {"picture": BREAK, "end": TURN_END}
    inference = model.engine.inference
    plain = inference.logits

    def logits(hidden: torch.Tensor, part: range | None = None) -> torch.Tensor:
        result = plain(hidden, part)
        first = 0 if part is None else part.start
        for name, value in bias.items():
            place = ids[name] - first
            if 0 <= place < result.shape[-1]:
                result[..., place] += value
        return result

    inference.logits = logits  # type: ignore[method-assign]  # a stand-in
    return model


def ids(model: Model, *document: Any) -> list[int]:
    return model.components.serializer.prompt(document).tokens.tolist()


def test_turns_are_written_as_marked(model: Model) -> None:
    """By hand: <s> request <end> text and picture of one answer <end> request <end>."""
    codes = Codes(np.arange(16, dtype=np.int32), GRID)
    written = model.components.serializer.text_tokenizer.encode
    document = (
        Text("a red apple", starts_turn=True),
        Text("here", starts_turn=True),
        codes,
        Text("a", starts_turn=True),
        TextHole(4, starts_turn=True),
    )
    picture = [BREAK, *range(4, 20), EOSS]
    expected = [0, *written("a red apple"), TURN_END, *written("here"), *picture, TURN_END]
    assert ids(model, *document) == [*expected, *written("a"), TURN_END]
    again = (*document[:-1], Text("b", starts_turn=True))
    sequence = model.components.serializer.sequence(again).tokens.tolist()
    assert sequence == [*ids(model, *document), *written("b"), TURN_END]


def test_loss_on_answers_counts_what_the_model_decides(model: Model) -> None:
    """Of an answer: its text, what begins its picture, the codes, and the end of its turn."""
    from cm3core.sequence import only_responses

    codes = Codes(np.arange(16, dtype=np.int32), GRID, response=True)
    document = (
        Text("a", starts_turn=True),
        Text("b", ((0, 1),), starts_turn=True),
        codes,
        Text("c", starts_turn=True),
        Text("d", ((0, 1),), starts_turn=True),
    )
    sequence = model.components.serializer.sequence(document)
    weights = only_responses(np.ones(len(sequence), np.float32), sequence)
    counted = sequence.tokens[weights > 0].tolist()
    b, d = (model.components.serializer.text_tokenizer.encode(one)[0] for one in "bd")
    assert counted == [b, BREAK, *range(4, 20), TURN_END, d, TURN_END]


def test_a_model_decides_on_pictures(model: Model) -> None:
    """One that likes pictures draws one at once, then another, up to the number that is allowed."""
    reply = liking(model, picture=1000.0).chat("a red apple", max_pictures=2, max_tokens=3)
    kinds = [type(part).__name__ for part in reply.parts]
    assert kinds == ["ReplyPicture", "ReplyPicture", "str"]
    assert reply.finish == "length"
    first = reply.pictures[0]
    assert first.pixels.shape == (8, 8, 3)
    # its guidance streams are those of any picture behind this request
    hole = ImageHole(starts_turn=True)
    request = model.requests([(Text("a red apple", starts_turn=True), hole)], seed=0)
    [alone] = model.engine.complete(request)
    assert alone.document[-1] == first.codes


def test_a_model_ends_its_turn(model: Model) -> None:
    reply = liking(model, end=1000.0).chat("a red apple", max_tokens=5)
    [text] = reply.parts
    assert isinstance(text, str)
    assert reply.finish == "stop"
    assert reply.pictures == []


def test_what_was_said_is_read_in_turns(model: Model) -> None:
    """The reply to two turns before is the completion of their document, token for token."""
    picture = pixels()
    turns = [
        Turn("user", (picture, "what is it?")),
        Turn("assistant", ("a bell",)),
        Turn("user", ("red", "and blue")),
    ]
    reply = model.chat(turns, answer="text", max_tokens=6, **GREEDY)
    document = (
        *(Codes(model.encode([picture])[0].codes, GRID, starts_turn=True), Text("what is it?")),
        Text("a bell", starts_turn=True),
        Text("red\nand blue", starts_turn=True),
        TextHole(6, starts_turn=True),
    )
    [done] = model.complete([document], sampling=GREEDY)
    assert reply.text == done.document[-1].text
    assert (reply.turns_read, reply.turns_left_out) == (2, 0)


def test_a_picture_of_a_reply_is_read_with_its_codes(model: Model) -> None:
    talk = Conversation(model, seed=3, max_tokens=4)
    drawn = talk.say("a red apple", answer="image").pictures[0]
    reply = talk.say("what is it?", answer="text", **GREEDY)
    document = (
        Text("a red apple", starts_turn=True),
        Codes(drawn.codes.codes, GRID, starts_turn=True),
        Text("what is it?", starts_turn=True),
        TextHole(4, starts_turn=True),
    )
    [done] = model.complete([document], sampling=GREEDY)
    assert reply.text == done.document[-1].text
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2
    assert talk.undo() is not None
    assert len(talk.turns) == 2


def test_a_batch_is_what_each_is_alone(model: Model) -> None:
    liking(model, picture=2.0, end=2.0)
    talks: list[Any] = [
        "a red apple",
        [Turn("user", (pixels(1), "what is it?"))],
        [Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("draw it",))],
    ]
    together = model.chats(talks, max_tokens=12, max_pictures=2, seed=5)
    for one, reply in zip(talks, together, strict=True):
        alone = model.chat(one, max_tokens=12, max_pictures=2, seed=5)
        assert _told(alone) == _told(reply)


def _told(reply: Reply) -> list[Any]:
    parts = [p.codes.codes.tolist() if isinstance(p, ReplyPicture) else p for p in reply.parts]
    return [*parts, reply.finish]


def test_events_tell_the_reply(model: Model) -> None:
    liking(model, picture=3.0)
    events = list(model.chat_events(["a red apple", ""], max_tokens=8, max_pictures=1, seed=2))
    [failed] = [one for one in events if isinstance(one, Failed)]
    assert failed.request == 1
    assert failed.error.cause == "is empty"
    [ready] = [one for one in events if isinstance(one, ReplyReady)]
    parts = [one.part for one in events if isinstance(one, ReplyPart)]
    assert parts == list(ready.reply.parts)
    for number, part in enumerate(parts):
        if isinstance(part, str):
            pieces = [e.text for e in events if isinstance(e, TextGrown) and e.segment == number]
            assert "".join(pieces) == part
        else:
            grown = [e for e in events if isinstance(e, PictureGrown) and e.segment == number]
            assert grown[-1].codes == Codes(part.codes.codes, GRID, np.zeros(16, np.bool_))


def test_old_turns_are_left_out_if_asked(model: Model) -> None:
    """The context is 160: 18 tokens a picture, and a few for its words."""
    pair = [Turn("user", (pixels(), "what?")), Turn("assistant", ("a bell",))]
    turns = [*pair * 7, Turn("user", ("and now?",))]
    with pytest.raises(GenerationError) as caught:
        model.chat(turns, answer="text", max_tokens=4)
    assert tells(caught.value, "conversation: of 15 turns ... of 160")
    reply = model.chat(turns, answer="text", max_tokens=4, truncate=True, **GREEDY)
    assert 0 < reply.turns_left_out < 14
    assert reply.turns_left_out % 2 == 0
    kept = turns[reply.turns_left_out :]
    assert model.chat(kept, answer="text", max_tokens=4, **GREEDY).text == reply.text
    with pytest.raises(GenerationError, match="doesn't fit"):
        model.chat(turns[reply.turns_left_out - 2 :], answer="text", max_tokens=20)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "conversation: has no turn\n  next: add a turn of the user"),
        (
            [Turn("assistant", ("hi",))],
            "conversation: doesn't end with a turn of",
        ),
        (
            [Turn("user", ("  ",))],
            "conversation, turn 0: is empty",
        ),
        (
            [Turn("system", ("hi",))],  # type: ignore[arg-type]  # the test
            "conversation[0].role: is 'system'",
        ),
        (
            [Turn("user", (3,))],  # type: ignore[arg-type]  # the test
            "conversation[0].parts[0]: is 3, must ... RGB ... 3 ... ReplyPicture",
        ),
    ],
)
def test_a_conversation_that_is_none(model: Model, turns: list[Turn], message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        model.chat(turns)
    assert tells(caught.value, message)


def test_options_that_can_not_be(model: Model) -> None:
    with pytest.raises(GenerationError) as caught:
        model.chat("a", answer="song")
    assert str(caught.value) == "answer: is 'song'\n  next: use one of any, text, image"
    with pytest.raises(GenerationError, match="max_pictures: is -1"):
        model.chat("a", max_pictures=-1)
    with pytest.raises(GenerationError, match="num_retrieved"):
        model.chat("a", num_retrieved=2)
