"""Answers and files of the server name the documents that were in front, with their licences."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import cm3serve
from cm3core.document import Image, Text
from cm3core.images import open_image, png_bytes
from cm3run.attribution import facts_in
from cm3run.model.model import Model
from messages import tells
from toy_model import MEMORY, Colours
from toy_server import CHAT, Served, served, toy, tuned

SETS = "/v1/sets"


def square() -> np.ndarray:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[2:6, 2:6] = 0
    return pixels


def bar() -> np.ndarray:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[3:5] = 0
    return pixels


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server of models that draw what the first document shows."""

    def document(self, index, rng):
        pixels = square() if index == 0 else bar()
        return (Text(MEMORY[index]), Image(f"shown {index}", lambda: pixels))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Colours, "_document", document)
        patch.setattr(Model, "drawn", lambda *_: square())
        with served({"toy": toy(), "tuned": tuned()}) as running:
            yield running


RED = {
    "id": "red",
    "score": 1.0,
    "text": "red",
    "licence": "CC-BY-4.0",
    "source": "npm colours 1.2.0",
    "attribution": "Ann Colour",
    "collection": "colours",
    "title": "red",
    "link": "https://example.org/colours",
    "licence_link": "https://creativecommons.org/licenses/by/4.0/",
    "nearness": 1.0,
    "original": "/v1/originals?model=toy&id=red",
}


def test_pictures_name_their_documents_unasked(server):
    [one] = server.post(prompt="red", seed=1).json()["data"]
    assert one["documents"][0] == RED
    assert [document["id"] for document in one["documents"]] == ["red", "green"]
    assert (one["nearest"], one["nearness"]) == ("red", 1.0)
    assert one["copy_of"] == "nearly a copy of red (CC-BY-4.0)"
    [one] = server.post(prompt="red", seed=1, num_retrieved=0).json()["data"]
    assert (one["documents"], one["nearest"], one["nearness"], one["copy_of"]) == ([], *[None] * 3)
    [one] = server.post(prompt="red", return_documents=True).json()["data"]
    shown = base64.b64decode(one["documents"][0]["b64_json"])
    assert (open_image(shown) == square()).all()
    assert b"Ann Colour" in shown


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("extra", [{}, {"background": "transparent"}, {"size": "16x16"}])
def test_files_of_every_format_name_them(server, format, extra):
    if format == "jpeg" and "background" in extra:
        pytest.skip("JPEG can't be transparent")
    answer = server.post(prompt="red", output_format=format, **extra).json()
    content = base64.b64decode(answer["data"][0]["b64_json"])
    found = facts_in(content, format)
    assert found.texts["prompt"] == "red"
    assert [one.provenance.attribution for one in found.credits] == ["Ann Colour"] * 2
    assert found.credits[0].nearness == 1.0


def test_svgs_name_them(server):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    [one] = server.post(prompt="red", return_svg=True).json()["data"]
    found = facts_in(one["svg"].encode(), "svg")
    assert found.credits[0].provenance.attribution == "Ann Colour"
    assert "svg" not in server.post(prompt="red").json()["data"][0]


def test_svgs_need_a_tracer(server, monkeypatch):
    monkeypatch.setattr("cm3serve.images_api.can_trace", lambda: False)
    answer = server.post(prompt="red", return_svg=True)
    assert answer.status_code == 400
    assert tells(
        answer.json()["error"]["message"], "return_svg: needs the package ... 'cm3leon[svg]'"
    )


def test_streams_sets_and_chats_name_them(server):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    streamed = server.post(prompt="red", stream=True).text
    assert '"copy_of": "nearly a copy of red (CC-BY-4.0)"' in streamed
    answer = server.post(SETS, things=["red", "blue"], formats=["png", "svg"]).json()
    assert all(one["documents"][0] == RED for one in answer["data"])
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["zip"]))) as archive:
        licences = archive.read("LICENSES").decode()
        files = {name: archive.read(name) for name in archive.namelist() if name != "LICENSES"}
    assert (
        'red: nearly a copy of red (CC-BY-4.0)\n  red: "red" by Ann Colour, of colours' in licences
    )
    assert set(files) == {"red.png", "red.svg", "blue.png", "blue.svg", "grid.png"}
    for name, content in files.items():
        assert facts_in(content, name).credits[0].provenance.attribution == "Ann Colour"
    message = {"role": "user", "content": "red"}
    answer = server.post(CHAT, messages=[message]).json()["choices"][0]["message"]
    assert answer["documents"][0] == RED
    assert answer["copy_of"] == "nearly a copy of red (CC-BY-4.0)"
    url = answer["content"][0]["image_url"]["url"]
    content = base64.b64decode(url.partition(",")[2])
    assert facts_in(content, "chat").credits[0].provenance.attribution == "Ann Colour"


def test_a_document_that_is_sent_back_is_still_named(server):
    """The page does that, to leave some out."""
    [one] = server.post(prompt="red", return_documents=True).json()["data"]
    sent = {
        "image_url": f"data:image/png;base64,{one['documents'][0]['b64_json']}",
        "text": "anything",
    }
    own = {
        "image_url": f"data:image/png;base64,{base64.b64encode(png_bytes(255 - bar())).decode()}"
    }
    given = [sent, own | {"text": "mine"}]
    [two] = server.post(prompt="red", documents=given, num_retrieved=0).json()["data"]
    assert [(each["id"], each["licence"]) for each in two["documents"]] == [
        ("red", "CC-BY-4.0"),
        ("context 1", "unknown"),
    ]
    found = facts_in(base64.b64decode(two["b64_json"]), "png")
    assert [each.id for each in found.credits] == ["red", "context 1"]


def test_the_original_comes_with_its_licence(server):
    [one] = server.post(prompt="red").json()["data"]
    answer = httpx.get(server.url + one["documents"][0]["original"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="red.zip"'
    assert "script-src 'self'" in answer.headers["content-security-policy"]  # nothing inline runs
    assert answer.headers["x-content-type-options"] == "nosniff"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["red.png", "red.png.license"]
        assert (open_image(archive.read("red.png")) == square()).all()
        assert b"SPDX-FileCopyrightText: Ann Colour\n" in archive.read("red.png.license")
    for id in ("blue", "nothing", "", "../red", "x\ny"):
        answer = httpx.get(f"{server.url}/v1/originals", params={"model": "toy", "id": id})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "no_original"
    assert tells(answer.json()["error"]["message"], "id: was not prepended for a recent result")
    answer = httpx.get(f"{server.url}/v1/originals", params={"model": "other", "id": "red"})
    assert answer.status_code == 404


def test_an_svg_is_sent_as_such(server, monkeypatch):
    from cm3core.interfaces.dataset import Original

    text = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    monkeypatch.setattr(Colours, "original", lambda *_: Original(".svg", text))
    [one] = server.post(prompt="red").json()["data"]
    answer = httpx.get(server.url + one["documents"][0]["original"])
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.headers["content-disposition"] == 'attachment; filename="red.svg"'
    assert facts_in(answer.content, "svg").credits[0].provenance.attribution == "Ann Colour"
    monkeypatch.setattr(Colours, "original", lambda *_: None)
    answer = httpx.get(server.url + one["documents"][0]["original"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "id: the memory has no file of this document",
    )


def test_texts_name_their_documents_where_it_is_asked_for(server):
    url = f"data:image/png;base64,{base64.b64encode(png_bytes(square())).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    asked = {"model": "tuned", "messages": messages, "num_retrieved": 1, "seed": 1}
    message = server.post(CHAT, **asked, return_documents=True).json()["choices"][0]["message"]
    [one] = message["documents"]
    assert one["attribution"] == "Ann Colour"
    assert "nearness" not in one


def test_no_module_of_the_server_writes_a_picture_but_with_facts() -> None:
    folder = Path(cm3serve.__file__).parent
    words = ("save_png", "png_bytes", ".save(")
    found = {
        path.name for path in folder.glob("*.py") if any(one in path.read_text() for one in words)
    }
    assert found == {"pictures.py"}  # `Output.preview`, of pictures that grow and of structures
