"""OpenAI's own Python client, unchanged, against a server process."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.images import open_image, read_png_metadata
from messages import tells
from toy_model import picture, toy_model
from toy_server import choosing, mask, png, rewriting, served, with_fixtures

openai = pytest.importorskip("openai", reason="the package openai is not installed")


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "toy_server"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=with_fixtures(),
    ) as server:
        yield server
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def client(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("cm3 serve: http://127.0.0.1:"), line
    url = line.removeprefix("cm3 serve: ").strip()
    return openai.OpenAI(base_url=f"{url}v1", api_key="unused", max_retries=0)


def pixels_of(text: str | None) -> np.ndarray[Any, Any]:
    assert text is not None
    return open_image(base64.b64decode(text))


def test_models_are_listed(client):
    assert [one.id for one in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "cm3leon"


def test_pictures_are_those_of_the_python_api(client):
    answer = client.images.generate(model="toy", prompt="red", n=2, extra_body={"seed": 7})
    expected = toy_model().generate("red", 2, seed=7)
    for one, own in zip(answer.data, expected, strict=True):
        assert (pixels_of(one.b64_json) == own.pixels).all()
        assert one.seed == own.seed
    assert (answer.size, answer.output_format, answer.quality) == ("8x8", "png", "auto")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2 * 16)


def test_a_picture_carries_what_draws_it_again(client, tmp_path: Path):
    answer = client.images.generate(prompt="red", extra_body={"seed": 7, "guidance_scale": 2.0})
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
    facts = read_png_metadata(tmp_path / "a.png")
    assert (facts["prompt"], facts["seed"], facts["model"], facts["step"]) == (
        "red",
        "7",
        "toy",
        "3",
    )
    assert '"guidance_scale": 2.0' in facts["sampler"]
    assert facts["retrieved"] == '["red", "green"]'


def test_partial_images_are_finished_rows(client):
    events = list(
        client.images.generate(prompt="red", stream=True, partial_images=3, extra_body={"seed": 7})
    )
    whole = toy_model().generate("red", 1, seed=7)[0].pixels
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 3,
        "image_generation.completed",
    ]
    for number, event in enumerate(events[:-1]):
        shown = pixels_of(event.b64_json)
        rows = 2 * (number + 1)  # two pixels each
        assert (event.partial_image_index, event.rows, event.all_rows) == (number, number + 1, 4)
        assert (shown[:rows] == whole[:rows]).all()
        assert (shown[rows:] == 208).all()
    assert (pixels_of(events[-1].b64_json) == whole).all()
    assert events[-1].usage.output_tokens == 16


def test_the_transparent_part_of_a_mask_is_filled(client):
    whole = picture(8, 8)
    answer = client.images.edit(
        image=("a.png", png(whole)),
        mask=("m.png", mask(8, 8, (0, 4, 8, 8))),
        prompt="red",
        n=2,
        extra_body={"seed": 5, "sampling": {"temperature": 0.7}},
    )
    first = pixels_of(answer.data[0].b64_json)
    expected = toy_model().infill(whole, (0, 4, 8, 8), "red", seed=5, temperature=0.7)
    assert (first == expected.pixels).all()
    assert (first[:4] == whole[:4]).all()
    assert answer.data[1].seed != answer.data[0].seed


def test_a_picture_that_is_transparent_somewhere_is_its_own_mask(client):
    layers = np.concatenate([picture(8, 8), np.full((8, 8, 1), 255, np.uint8)], axis=2)
    layers[4:, :, 3] = 0
    answer = client.images.edit(image=("a.png", png(layers)), prompt="red")
    assert (pixels_of(answer.data[0].b64_json)[:4] == layers[:4, :, :3]).all()


def test_filling_streams_too(client):
    events = list(
        client.images.edit(
            image=("a.png", png(picture(8, 8))),
            mask=("m.png", mask(8, 8, (0, 4, 8, 8))),
            prompt="red",
            stream=True,
            partial_images=3,
        )
    )
    assert [event.type for event in events] == [
        "image_edit.partial_image",  # the upper half is finished from the start
        "image_edit.completed",
    ]


def test_a_high_quality_is_the_best_of_four(client):
    answer = client.images.generate(prompt="red", quality="high", extra_body={"seed": 7})
    own = choosing(toy_model()).generate("red", 1, seed=7, num_candidates=4)[0]
    assert (pixels_of(answer.data[0].b64_json) == own.pixels).all()
    assert own.choice is not None
    assert answer.data[0].choice == {
        "index": own.choice.index,
        "scores": list(own.choice.scores),
        "measure": "brightness",
        "copies": [False] * 4,
    }


def test_prepended_documents_come_back(client):
    answer = client.images.generate(
        prompt="red", extra_body={"return_documents": True, "num_retrieved": 1}
    )
    [document] = answer.data[0].documents
    assert (document["id"], document["score"], document["text"]) == ("red", 1.0, "red")
    assert pixels_of(document["b64_json"]).shape == (8, 8, 3)


def test_documents_tell_what_was_looked_for():
    with served({"toy": rewriting}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for prompt, looked_for in (("pink", "red"), ("red", None)):
            answer = client.images.generate(prompt=prompt, extra_body={"return_documents": True})
            for document in answer.data[0].documents:
                assert document.get("looked_for") == looked_for


def test_documents_are_given_by_hand(client):
    url = "data:image/png;base64," + base64.b64encode(png(picture(8, 8))).decode()
    answer = client.images.generate(
        prompt="red",
        extra_body={
            "seed": 3,
            "documents": [{"image_url": url, "text": "my red"}],
            "num_retrieved": 0,
            "return_documents": True,
        },
    )
    expected = toy_model().generate("red", 1, seed=3, context=[(picture(8, 8), "my red")])[0]
    assert (pixels_of(answer.data[0].b64_json) == expected.pixels).all()
    assert [one["text"] for one in answer.data[0].documents] == ["my red"]


@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
def test_formats_and_sizes(client, format):
    answer = client.images.generate(prompt="red", size="32x32", output_format=format)
    data = base64.b64decode(answer.data[0].b64_json)
    assert data[:2] == {"jpeg": b"\xff\xd8", "webp": b"RI", "png": b"\x89P"}[format]
    assert open_image(data).shape == (32, 32, 3)
    assert answer.size == "32x32"


def test_a_url_is_a_data_url(client):
    answer = client.images.generate(prompt="red", response_format="url")
    assert answer.data[0].url.startswith("data:image/png;base64,")


def test_chat_draws_for_a_text(client):
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "red"}], extra_body={"seed": 7}
    )
    [part] = answer.choices[0].message.content
    url = part["image_url"]["url"]
    expected = toy_model().generate("red", 1, seed=7)[0].pixels
    assert (pixels_of(url.removeprefix("data:image/png;base64,")) == expected).all()


@pytest.mark.parametrize("stream", [False, True])
def test_chat_captions_a_picture(client, stream):
    url = "data:image/png;base64," + base64.b64encode(png(picture(8, 8))).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = client.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": content}],
        stream=stream,
        extra_body={"seed": 7},
    )
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        if stream
        else answer.choices[0].message.content
    )
    assert text == toy_model().caption(picture(8, 8), seed=7).text


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(model="nope", prompt="red")
    assert missing.value.code == "model_not_found"
    assert tells(
        missing.value.body["message"],
        "the model 'nope' does not exist here; known: toy (the server",
    )
    with pytest.raises(openai.BadRequestError) as long:
        client.images.generate(prompt="a prompt that is too long")
    assert long.value.body == {
        "message": "prompt: is 25 tokens long; the model was trained on texts of at most 12, in a "
        "context of 128. Next: shorten it, or read only its beginning (truncate).",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "invalid_value",
    }
    with pytest.raises(openai.BadRequestError) as untuned:
        client.images.edit(image=("a.png", png(picture(8, 8))), prompt="make it blue")
    assert untuned.value.code == "not_supported_by_model"


def test_errors_before_a_stream_begins_have_their_status(client):
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="", stream=True)
