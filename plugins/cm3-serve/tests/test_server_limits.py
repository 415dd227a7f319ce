"""Safe by default: every limit, and who may ask."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from cm3serve.settings import Limits
from messages import tells
from toy_model import picture
from toy_server import CHAT, EDIT, GENERATE, Served, mask, png, served, toy

PICTURE = png(picture(8, 8))
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(
        body_bytes=300_000,
        body_seconds=0.5,
        picture_pixels=10_000,
        pictures=3,
        side=64,
        prompt_characters=40,
        number=4,
        candidates=3,
        at_once=6,
    )
    with served(limits=limits) as running:
        yield running


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes, cut short."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error, whose shape is checked."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "x" * 41}, "prompt: has 41 characters, at most 40 are allowed"),
        ({"prompt": "x", "n": 5}, "n: is 5, must be a whole number from 1 to 4"),
        ({"prompt": "x", "candidates": 4}, "candidates: is 4, must be a whole number from 1 to 3"),
        (
            {"prompt": "x", "n": 4, "candidates": 2},
            "n: 4 results of 2 candidates are 8, at most 6 are generated for one request",
        ),
        (
            {"prompt": "x", "size": "128x128"},
            "size: is '128x128', must be auto, 8x8 (the model's own), or another size in this aspect ratio "
            "with sides of at most 64",
        ),
        (
            {"prompt": "x", "size": "8x16"},
            "size: is '8x16', must be auto, 8x8 (the model's own), or another size in this aspect ratio "
            "with sides of at most 64",
        ),
        ({"prompt": "x", "partial_images": 2}, "partial_images: needs stream"),
        (
            {"prompt": "x", "background": "transparent", "output_format": "jpeg"},
            "background: JPEG can't be transparent; use png or webp",
        ),
        (
            {"prompt": "x", "sampling": {"negative_prompt": "y"}, "negative_prompt": "z"},
            "sampling: negative_prompt is also given as a field of its own",
        ),
        (
            {"prompt": "x", "sampling": {"null_prompt": "/etc/passwd"}},
            "sampler.null_prompt: is '/etc/passwd', must be mask or mask_no_retrieved",
        ),
        (
            {"prompt": "x", "sampling": {"bank": "/etc"}},
            "sampling: 'bank' is '/etc', only numbers, flags and choices can be set in a request",
        ),
        (
            {"prompt": "x", "sampling": {"inner": {"bank": "/etc"}}},
            "sampling: 'inner' is an object, only numbers, flags and choices can be set in a request",
        ),
        (
            {"prompt": "x", "documents": [{"text": "red"}]},
            'documents[0]: must be {"image_url": "data:...", "text": "..."}',
        ),
        (
            {"prompt": "x", "documents": [{"text": "red", "image_url": "http://127.0.0.1/a.png"}]},
            "documents[0].image_url: is not a data: URL; this server never fetches addresses. Next: send the "
            "picture itself, as data:image/png;base64,...",
        ),
        (
            {"prompt": "x", "documents": [{"text": "red", "image_url": "file:///etc/passwd"}]},
            "documents[0].image_url: is not a data: URL; this server never fetches addresses. Next: send the "
            "picture itself, as data:image/png;base64,...",
        ),
    ],
)
def test_a_generation_beyond_the_limits(server, body, message):
    error = error_of(server.post(**body), 400)
    assert error["message"].startswith(message[:150])
    assert error["type"] == "invalid_request_error"


def test_strings_are_set_only_where_they_are_choices(server):
    body = {"prompt": "red", "sampling": {"null_prompt": "mask_no_retrieved"}}
    assert server.post(**body).status_code == 200


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "image: 0 pictures were sent, this model edits exactly one"),
        ([("image", b"GIF89a, or not")], "image: is not a picture"),
        ([("image", PICTURE[:60])], "image: can't be read as a picture"),
        ([("image", bomb())], "image: has more than 10,000 pixels"),
        (
            [("image", png(np.zeros((101, 100, 3), np.uint8)))],
            "image: 100 x 101 pixels, more than 10,000",
        ),
        ([("image", PICTURE), ("mask", bomb())], "mask: has more than 10,000 pixels"),
        ([("image", PICTURE), ("mask", PICTURE)], "mask: has no transparency (alpha)"),
        (
            [("image", PICTURE), ("mask", mask(8, 4, (0, 0, 2, 2)))],
            "mask: is 4x8, the picture 8x8; make them equal",
        ),
        (
            [("image", PICTURE), ("mask", mask(8, 8, (0, 0, 0, 0)))],
            "mask: has no fully transparent pixel",
        ),
        ([("image[]", PICTURE), ("image[]", PICTURE)], "image: 2 pictures were sent"),
        ([("image", PICTURE)] * 5, "the body is not a form (Too many files"),
        ([("prompt", PICTURE)], "prompt: a file is not accepted here"),
        ([("evil", PICTURE)], "evil: a file is not accepted here"),
    ],
)
def test_pictures_that_are_refused(server, files, message):
    sent = [(name, (f"../../{name}.png", data)) for name, data in files]
    form = {"prompt": "red"} if sent else {}
    response = httpx.post(server.url + EDIT, data=form, files=sent or [("n", (None, "1"))])
    assert error_of(response, 400)["message"].startswith(message)


def test_forms_are_read_as_json_is(server):
    files = [("image", ("a.png", PICTURE)), ("mask", ("m.png", mask(8, 8, (0, 0, 8, 4))))]
    form = {"prompt": "red", "n": "2", "sampling[temperature]": "0.5", "seed": "3"}
    answer = httpx.post(server.url + EDIT, data=form, files=files, timeout=30)
    assert len(answer.json()["data"]) == 2
    for name, value, message in (
        ("n", "two", "n: is 'two', must be a whole number"),
        ("image", "text", "image: is a text, must be a file"),
        ("stream", "yes", "stream: is 'yes', must be true or false"),
        ("sampling", "x", "sampling: is 'x', must be an object"),
    ):
        refused = httpx.post(server.url + EDIT, data={name: value}, files=files[1:])
        assert error_of(refused, 400)["message"].startswith(message)


def test_json_edits_and_their_references(server):
    def edit(**body: Any) -> httpx.Response:
        return server.post(EDIT, **body)

    marked = "data:image/png;base64," + base64.b64encode(mask(8, 8, (0, 0, 4, 4))).decode()
    body = {"images": [{"image_url": URL}], "mask": {"image_url": marked}, "prompt": "red"}
    assert edit(**body).status_code == 200
    for change, message in (
        ({"images": [{"file_id": "file-1"}]}, "images[0]: file_id names a stored file"),
        ({"images": [{"image_url": "https://x.example/a.png"}]}, "images[0]: is not a data: URL"),
        ({"images": [{"image_url": "data:image/png,abc"}]}, "images[0]: is not base64"),
        ({"images": [{"image_url": "data:image/png;base64,@@@"}]}, "images[0]: is not base64"),
        ({"images": [7]}, "images[0]: is not a data: URL"),
        ({"mask": {"image_url": 3}}, "mask: is not a data: URL"),
        ({"image": "x"}, "image: is not a data: URL"),
    ):
        assert error_of(edit(**(body | change)), 400)["message"].startswith(message)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: there is no user message"),
        (["x"], "messages[0]: must be an object whose role is one of"),
        ([{"role": "king", "content": "x"}], "messages[0]: must be an object whose role is one of"),
        ([{"role": "user", "content": ""}], "messages: the user's last message is empty"),
        (
            [{"role": "user", "content": 3}],
            "messages[0].content: must be a string or a list of parts",
        ),
        ([{"role": "user", "content": "x" * 41}], "messages[0].content: has 41 characters"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "messages[0].content[0]: must be"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "messages[0].content: is 3"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}],
                }
            ],
            "messages[0].content[0].image_url: is not a data: URL",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}] * 4}],
            "messages[0]: more than 3 pictures were sent",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "why?"},
                        {"type": "image_url", "image_url": {"url": URL}},
                    ],
                }
            ],
            "the model is not known to be tuned to answer questions",
        ),
    ],
)
def test_chats_that_are_refused(server, messages, message):
    response = server.post(CHAT, messages=messages)
    assert error_of(response, 400)["message"].startswith(message)


def test_modalities(server):
    body = {"messages": [{"role": "user", "content": "red"}]}
    for modalities, message in (
        (["text"], "messages: there is no picture"),
        (["audio"], "modalities: must be"),
        ([], "modalities: must be"),
    ):
        refused = server.post(CHAT, modalities=modalities, **body)
        assert error_of(refused, 400)["message"].startswith(message)
    assert server.post(CHAT, modalities=["text", "image"], **body).status_code == 200


def test_a_body_that_is_too_long_is_not_read(server):
    long = json.dumps({"prompt": "x" * 400_000})
    head = {"content-type": "application/json"}
    assert error_of(httpx.post(server.url + GENERATE, content=long, headers=head), 413)[
        "message"
    ] == ("the body has more than 300,000 bytes")

    def pieces() -> Iterator[bytes]:  # no length is announced
        for _ in range(40):
            yield b"x" * 10_000

    response = httpx.post(server.url + GENERATE, content=pieces(), headers=head)
    assert error_of(response, 413)["code"] == "body_too_large"


def test_a_body_that_does_not_arrive_is_given_up(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as wire:
        wire.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
        )
        wire.settimeout(5)
        assert b" 408 " in wire.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize("sort", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_media_types_are_refused(server, sort):
    response = httpx.post(
        server.url + GENERATE, content=b'{"prompt": "red"}', headers={"content-type": sort}
    )
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "gzip, gzip", "br"])
def test_compressed_bodies_are_refused_in_words(server, coding):
    head = {"content-type": "application/json", "content-encoding": coding}
    body = gzip.compress(b'{"prompt": "red"}')
    response = httpx.post(server.url + GENERATE, content=body, headers=head)
    error = error_of(response, 415)
    assert tells(
        error["message"], f"the body is compressed (Content-Encoding: {coding!r}), which this"
    )
    assert error["code"] == "unsupported_content_encoding"
    assert response.headers["accept-encoding"] == "identity"


def test_a_body_that_says_that_it_is_not_compressed_is_read(server):
    head = {"content-type": "application/json", "content-encoding": "identity"}
    assert httpx.post(server.url + GENERATE, content=b'{"prompt": "red"}', headers=head).is_success


def test_a_request_that_takes_too_long_ends():
    with served({"toy": toy(0.5)}, limits=Limits(seconds=1.5)) as server:
        error = error_of(server.post(prompt="red"), 504)
        assert (error["message"], error["code"]) == ("the response took more than 1.5 s", "timeout")
        server.until(lambda: server.workshop.queue.in_flight == 0)
        with httpx.stream(
            "POST",
            server.url + GENERATE,
            json={"prompt": "red", "stream": True, "partial_images": 3},
        ) as stream:
            assert stream.status_code == 200
            lines = list(stream.iter_lines())
        assert lines[0] == "event: image_generation.partial_image"
        assert "event: error" in lines
        assert "the response took more than 1.5 s" in lines[lines.index("event: error") + 1]


def test_unknown_paths_and_methods(server):
    assert error_of(httpx.get(server.url + "/v1/nothing"), 404)["code"] == "unknown_path"
    assert error_of(httpx.get(server.url + GENERATE), 405)["code"] == "method_not_allowed"
    assert error_of(httpx.get(server.url + "/v1/models/nope"), 404)["code"] == "model_not_found"
    for path in ("/../pyproject.toml", "/%2e%2e/command.py", "/page/index.html"):
        error_of(httpx.get(server.url + path), 404)


# ---- who may ask


def test_pages_of_other_sites_may_not_ask(server):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        refused = httpx.post(
            server.url + GENERATE, json={"prompt": "red"}, headers={"origin": origin}
        )
        assert error_of(refused, 403)["code"] == "foreign_origin"
        assert "access-control-allow-origin" not in refused.headers
    own = httpx.post(server.url + GENERATE, json={"prompt": "red"}, headers={"origin": server.url})
    assert own.status_code == 200


def test_other_names_for_this_machine_are_refused(server):
    port = server.url.rpartition(":")[2]
    for name, status in (
        ("evil.example", 403),
        (f"evil.example:{port}", 403),
        ("", 403),
        (f"localhost:{port}", 200),
        ("[::1]", 200),
    ):
        response = httpx.get(server.url + "/v1/models", headers={"host": name})
        assert response.status_code == status, name
    with served(allowed_hosts=("Studio.example",)) as named:
        answer = httpx.get(named.url + "/v1/models", headers={"host": "studio.example"})
        assert answer.status_code == 200


def test_a_token_is_asked_for_everywhere_but_the_page():
    with served(token="a-long-enough-token") as server:
        for path in ("/", "/docs", "/healthz", "/studio.css"):
            assert httpx.get(server.url + path).status_code == 200
        server.load()
        for path in ("/v1/models", "/metrics", "/studio/facts"):
            for given in ("", "Bearer wrong", "Basic a-long-enough-token", "Bearer ä"):
                head = {"authorization": given.encode()}
                refused = httpx.get(server.url + path, headers=head)
                assert error_of(refused, 401)["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
            head = {"authorization": "Bearer a-long-enough-token"}
            assert httpx.get(server.url + path, headers=head).status_code == 200
        assert error_of(server.post(prompt="red"), 401)


def test_every_answer_is_protected(server):
    for response in (
        httpx.get(server.url + "/"),
        httpx.get(server.url + "/nothing"),
        server.post(prompt="red"),
        httpx.get(server.url + "/", headers={"host": "evil.example"}),
    ):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "server" not in response.headers


def test_what_a_user_writes_is_never_html(server):
    evil = "<script>x"
    for response in (
        server.post(prompt="red", model=evil),
        server.post(prompt="red", **{evil: 1}),
        httpx.get(f"{server.url}/v1/models/{evil}"),
    ):
        assert response.headers["content-type"] == "application/json"


def test_the_api_is_described(server):
    description = httpx.get(server.url + "/openapi.json").json()
    fields = description["paths"][GENERATE]["post"]["requestBody"]["content"]["application/json"]
    assert fields["schema"]["properties"]["n"] == {
        "description": "number of pictures; 1 by default",
        "type": "integer",
        "minimum": 1,
        "maximum": 4,
    }
    assert fields["schema"]["required"] == ["prompt"]
    page = httpx.get(server.url + "/docs").text
    assert "<code>num_retrieved</code>" in page
    assert "<script" not in page


def test_metrics_and_health(server):
    server.post(prompt="red", n=2)
    server.post(prompt="")
    text = httpx.get(server.url + "/metrics").text
    assert 'cm3_requests_total{route="/v1/images/generations",status="400"}' in text
    assert 'cm3_results_total{sort="draw"}' in text
    assert "cm3_waiting_requests 0.0" in text
    assert "cm3_models_loaded 1.0" in text
    state = httpx.get(server.url + "/healthz").json()
    assert state == {"status": "ok"}
