"""Models that were tuned: conversations, pictures at boxes and by a structure, words never seen."""

from __future__ import annotations

import base64
import doctest
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cm3core.errors import GenerationError
from cm3core.images import open_image
from cm3run.model import Conversation
from cm3serve import chat_api
from cm3serve.settings import Limits
from cm3serve.tasks import able, task_of
from messages import tells
from toy_model import model_of_sequences, picture, toy_model
from toy_server import CHAT, EDIT, GENERATE, Served, mask, png, served, toy, tuned, tuned_model

URL = "data:image/png;base64," + base64.b64encode(png(picture(8, 8))).decode()
URL_OF_MASK = "data:image/png;base64," + base64.b64encode(mask(8, 8, (0, 0, 4, 4))).decode()
PICTURE = {"type": "image_url", "image_url": {"url": URL}}
BELL = {"label": "bell", "box": [0, 0.25, 0.5, 1]}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = {"tuned": tuned(), "answers": tuned({"answer": "vqa"}), "plain": toy()}
    models["sequences"] = model_of_sequences
    with served(models, limits=Limits(prompt_characters=400), most_models=4) as running:
        yield running


def message_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()["choices"][0]["message"]
    return message


def pixels_of(url: str) -> np.ndarray[Any, Any]:
    return open_image(base64.b64decode(url.removeprefix("data:image/png;base64,")))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_examples():
    assert doctest.testmod(chat_api).failed == 0


def test_what_models_can_do_is_what_they_were_tuned_for():
    everything = ["draw", "fill", "caption", "ask", "edit", "chat", "boxes", "structure"]
    assert able(tuned_model(), ()) == everything
    assert able(tuned_model({"answer": "vqa"}), ()) == ["fill", "ask"]
    assert able(tuned_model({"answer": "vqa"}), {"edit"}) == ["fill", "ask", "edit"]
    assert able(toy_model(), ()) == ["draw", "fill", "caption"]
    assert task_of(tuned_model(), "boxes") == "place"
    assert task_of(tuned_model({"answer": "vqa"}), "chat") is None


def test_parts_of_a_sequence_are_not_offered(server):
    assert able(model_of_sequences(), ()) == ["draw", "caption"]
    facts = server.post("/studio/facts", model="sequences").json()
    assert facts["tasks"] == ["draw", "caption"]
    marked = {"images": [{"image_url": URL}], "mask": {"image_url": URL_OF_MASK}}
    answer = server.post(EDIT, model="sequences", prompt="red", num_retrieved=0, **marked)
    assert answer.status_code == 400
    assert tells(
        answer.json()["error"]["message"], "box: marks places ... sequence of at most 61 ..."
    )


@pytest.mark.parametrize(("asked", "lengths"), [(3, [16, 32]), (64, [16, 32, 48])])
def test_a_sequence_grows(server, asked, lengths):
    """Of the last image, all its codes are known."""
    body = {"prompt": "red", "seed": 5, "stream": True, "partial_images": asked, "num_retrieved": 0}
    lines = server.post(GENERATE, model="sequences", **body).text.splitlines()
    *partial, whole = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert whole["type"] == "image_generation.completed"
    assert {one["all_rows"] for one in partial} == {61}
    shown = [one["rows"] for one in partial]
    assert shown[: len(lengths)] == lengths[: len(shown)]
    assert len(shown) >= 1


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    user(PICTURE, text("What is it?")),
    {"role": "assistant", "content": "a bell"},
    user(text("Which colour?")),
]


def test_a_conversation_is_read_whole(server):
    message = message_of(server.post(CHAT, model="tuned", messages=CONVERSATION, seed=3))
    whole = "What is it? Assistant: a bell User: Which colour?"
    own = tuned_model().ask(picture(8, 8), whole, task="talk", seed=3)
    assert message["content"] == own.text
    assert (message["turns_read"], message["turns_left_out"]) == (2, 0)


def test_a_first_question_is_put_as_ask_puts_it(server):
    """Alone, in a stream, after a system message, and where no earlier turn fits."""
    model, question = tuned_model(), "Is it filled?"
    own = model.ask(picture(8, 8), question, seed=3).text
    assert own != model.ask(picture(8, 8), question, task="talk", seed=3).text
    messages = [CONVERSATION[0], user(PICTURE, text(question))]
    message = message_of(server.post(CHAT, model="tuned", messages=messages, seed=3))
    assert (message["content"], message["turns_read"]) == (own, 0)
    long = [user(text("what? " * 30)), {"role": "assistant", "content": "no"}, messages[1]]
    cut = message_of(server.post(CHAT, model="tuned", messages=long, truncate=True, seed=3))
    assert (cut["content"], cut["turns_left_out"]) == (own, 2)
    lines = server.post(CHAT, model="tuned", messages=messages, seed=3, stream=True).text
    chunks = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
    deltas = [one["choices"][0]["delta"] for one in chunks if one["choices"]]
    assert "".join(one.get("content", "") for one in deltas).strip() == own
    assert Conversation(model, seed=3).say(question, picture(8, 8)).text == own


def test_penalties_may_be_sent_as_long_as_they_are_none(server):
    """Chat programs send their defaults with every request."""
    asked = {"model": "tuned", "messages": CONVERSATION, "seed": 3}
    plain = message_of(server.post(CHAT, **asked))
    zero = {"frequency_penalty": 0, "presence_penalty": 0.0}
    assert message_of(server.post(CHAT, **asked, **zero))["content"] == plain["content"]
    refused = server.post(CHAT, **asked, presence_penalty=0.5)
    assert refused.json()["error"]["message"] == (
        "presence_penalty: is 0.5, must be a number from 0 to 0"
    )


@pytest.mark.parametrize("wrap", [lambda words: words, lambda words: [text(words)]])
def test_what_a_model_wrote_is_taken_back(server, wrap):
    """Tokens may make NUL characters; what people write may not have them."""
    wrote, said = {"role": "assistant", "content": wrap("a\0 bell")}, user(text("why?"))
    messages = [CONVERSATION[0], wrote, said]
    clean = [CONVERSATION[0], wrote | {"content": wrap("a bell")}, said]
    assert (
        message_of(server.post(CHAT, model="tuned", messages=messages, seed=3))["content"]
        == message_of(server.post(CHAT, model="tuned", messages=clean, seed=3))["content"]
    )
    refused = server.post(CHAT, model="tuned", messages=[*messages[:2], user(text("w\0y?"))])
    assert refused.json()["error"]["message"] == "messages[2].content: has a NUL character at 1"


def test_a_model_without_conversations_answers_the_last_question(server):
    message = message_of(server.post(CHAT, model="answers", messages=CONVERSATION, seed=3))
    own = tuned_model({"answer": "vqa"}).ask(picture(8, 8), "Which colour?", seed=3)
    assert message["content"] == own.text
    assert (message["turns_read"], message["turns_left_out"]) == (0, 2)


def test_one_that_was_not_tuned_refuses_in_words(server):
    refused = server.post(CHAT, model="plain", messages=CONVERSATION)
    assert refused.status_code == 400
    assert tells(
        refused.json()["error"]["message"],
        "the model is not known to be tuned to answer questions, so its results",
    )


def test_a_long_conversation_is_refused_or_loses_its_oldest_turns(server):
    turns = []
    for number in range(20):
        turns += [user(text(f"is it {number}?")), {"role": "assistant", "content": "no"}]
    messages = [user(PICTURE), *turns, user(text("why?"))]
    refused = server.post(CHAT, model="tuned", messages=messages)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert re.fullmatch(
        r"messages: is \d+ tokens long; the model was trained on texts of at most 150, in a context of "
        r"128\. Next: shorten them, or drop the oldest turns \(truncate\)\.",
        error["message"],
    )
    assert error["param"] == "messages"
    message = message_of(server.post(CHAT, model="tuned", messages=messages, truncate=True, seed=1))
    read = message["turns_read"]
    assert 0 < read < 40
    assert read % 2 == 0  # what is left begins with a question
    assert message["turns_left_out"] == 40 - read
    said = [f"User: is it {place}? Assistant: no" for place in range(20)]
    kept = said[20 - read // 2 :]
    whole = " ".join([*kept, "User: why?"]).removeprefix("User: ")
    assert message["content"] == tuned_model().ask(picture(8, 8), whole, task="talk", seed=1).text
    longer = " ".join([said[20 - read // 2 - 1], *kept, "User: why?"]).removeprefix("User: ")
    with pytest.raises(GenerationError, match="more than the decoder's context"):
        tuned_model().ask(picture(8, 8), longer, task="talk")


def test_one_turn_that_is_too_long_is_not_told_to_leave_out_others(server):
    messages = [user(PICTURE, text("is it?")), {"role": "assistant", "content": "no"}]
    messages += [user(text("why?" * 50))]
    refused = server.post(CHAT, model="tuned", messages=messages, truncate=True)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith("question in its template: is ")
    assert message.endswith("in a context of 128. Next: shorten it.")


def test_a_picture_in_a_conversation_is_what_the_next_turn_edits(server):
    drawn = message_of(server.post(CHAT, model="tuned", messages=[user(text("red bell"))], seed=4))
    assert drawn["unknown_words"] == {}
    first = tuned_model().generate("red bell", 1, seed=4)[0]
    assert (pixels_of(drawn["content"][0]["image_url"]["url"]) == first.pixels).all()
    messages = [
        user(text("red bell")),
        {"role": "assistant", "content": drawn["content"]},
        user(text("make it blue")),
    ]
    edited = message_of(
        server.post(CHAT, model="tuned", messages=messages, modalities=["image"], seed=5)
    )
    own = tuned_model().edit(first.pixels, "make it blue", 1, seed=5)[0]
    assert (pixels_of(edited["content"][0]["image_url"]["url"]) == own.pixels).all()
    messages += [{"role": "assistant", "content": edited["content"]}, user(text("hue?"))]
    answer = message_of(server.post(CHAT, model="tuned", messages=messages, seed=6))
    whole = "red bell User: make it blue User: hue?"
    assert answer["content"] == tuned_model().ask(own.pixels, whole, task="talk", seed=6).text


def test_objects_are_drawn_at_boxes(server):
    answer = server.post(model="tuned", prompt="a bell", boxes=[BELL], seed=7, n=2)
    record = {"caption": "a bell", "objects": "bell at (0, 64) -> (128, 255)"}
    own = tuned_model().do("place", record, seed=7)["image"]
    first, second = answer.json()["data"]
    assert (pixels_of(first["b64_json"]) == own).all()
    assert first["seed"] != second["seed"]


def test_a_structure_is_followed(server):
    answer = server.post(model="tuned", prompt="red", condition={"image_url": URL}, seed=7)
    record = {"feature": "edges", "condition": picture(8, 8), "caption": "red"}
    own = tuned_model().do("follow", record, seed=7)["image"]
    assert (pixels_of(answer.json()["data"][0]["b64_json"]) == own).all()
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"boxes": [{"label": "a"}]},
            'boxes[0]: must be {"label": "bell", "box": [x0, y0, x1, y1]}',
        ),
        ({"boxes": [BELL, "bell"]}, 'boxes[1]: must be {"label": "bell", "box": [x0, y0, x1, y1]}'),
        ({"boxes": [BELL | {"box": [0, 0, 1]}]}, "boxes[0]: must be"),
        (
            {"boxes": [BELL | {"box": [0, 0, 1, 1.5]}]},
            "boxes[0]: its box is '[0, 0, 1, 1.5]', must be numbers from",
        ),
        (
            {"boxes": [BELL | {"box": [0, 0, 1, True]}]},
            "boxes[0]: its box is '[0, 0, 1, True]', must be",
        ),
        (
            {"boxes": [BELL | {"box": [0.5, 0, 0.5, 1]}]},
            "boxes[0]: its box is empty: x0 must be less than x1",
        ),
        (
            {"boxes": [BELL | {"box": [0, 0, 0.0001, 1]}]},
            "boxes: are too small for the model; draw them larger",
        ),
        ({"boxes": [BELL | {"label": " "}]}, "boxes[0].label: is empty; name the object"),
        ({"boxes": [BELL | {"label": 3}]}, "boxes[0].label: is 3, must be a string"),
        ({"boxes": [BELL] * 33}, "boxes: has 33 items, at most 32 are allowed"),
        ({"boxes": [BELL], "condition": {"image_url": URL}}, "condition: boxes are also given"),
        ({"condition": {}}, 'condition: must be {"image_url": "data:..." ... "feature"'),
        ({"condition": {"image_url": URL, "file": "/etc"}}, "condition: must be"),
        ({"condition": {"image_url": URL, "feature": ""}}, "condition.feature: is empty; name the"),
        (
            {"condition": {"image_url": "http://x.example/a.png"}},
            "condition.image_url: is not a data: URL",
        ),
        (
            {"condition": {"image_url": "data:image/png;base64,AAAA"}},
            "condition.image_url: is not a picture",
        ),
        ({"boxes": [BELL | {"label": "x" * 200}]}, "task place: is "),
    ],
)
def test_conditions_that_are_wrong(server, body, message):
    refused = server.post(model="tuned", prompt="red", **body)
    assert refused.status_code == 400, refused.text
    assert tells(refused.json()["error"]["message"], message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"boxes": [BELL]},
            "draw objects at boxes, so its results would be meaningless; leave out boxes, or "
            "serve a model that was tuned for object_to_image",
        ),
        (
            {"condition": {"image_url": URL}},
            "draw by a picture of a structure, so its results would be "
            "meaningless; leave out condition, or serve a model that was tuned for structure",
        ),
    ],
)
def test_conditions_need_a_model_that_was_tuned_for_them(server, body, message):
    refused = server.post(model="plain", prompt="red", **body)
    assert refused.json()["error"] == {
        "message": f"the model is not known to be tuned to {message}",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_supported_by_model",
    }


def test_words_that_the_model_never_saw_are_told(server):
    answer = server.post(model="tuned", prompt="a bel, zebra, BLUE").json()
    assert answer["unknown_words"] == {"a": None, "bel": "bell", "zebra": None}
    many = " ".join(f"w{number}" for number in range(12))
    assert len(server.post(model="tuned", prompt=many).json()["unknown_words"]) == 8
    # a model without a list of its words can't tell
    assert server.post(model="plain", prompt="zebra").json()["unknown_words"] is None


def test_a_stream_tells_them_with_its_first_event(server):
    body = {"model": "tuned", "prompt": "zebra", "stream": True, "partial_images": 1}
    first = server.post(**body).text.splitlines()[1]
    assert '"unknown_words": {"zebra": null}' in first
