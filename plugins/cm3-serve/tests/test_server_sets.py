"""Sets: several things in one style, as pictures, a grid and a zip."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cm3core.images import open_alpha, open_image
from cm3serve import facts, sets_api
from cm3serve.settings import Limits
from messages import tells
from toy_model import toy_model
from toy_server import Served, served

SETS = "/v1/sets"
THINGS = ["red", "green", "Red"]
needs_tracer = pytest.mark.skipif(
    importlib.util.find_spec("vtracer") is None, reason="the package vtracer is not installed"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(limits=Limits(at_once=4, prompt_characters=40)) as running:
        yield running


def files_of(answer: dict[str, Any]) -> dict[str, bytes]:
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["zip"])))
    return {name: archive.read(name) for name in archive.namelist()}


def pixels_of(text: str) -> np.ndarray[Any, Any]:
    return open_image(base64.b64decode(text))


def test_examples_of_things_are_those_with_most_texts():
    styles = ["filled", "line"]
    twice = [f"{thing}, {style}" for style in styles for thing in "abcdefghijklm"]
    texts = ["rare, line", "m, other", *twice]
    assert facts.things_of(texts, styles) == list("abcdefghijkl")
    # where few have several, some of all, evenly spread
    few = [f"{number}, line" for number in range(24)] + ["5, filled"]
    assert facts.things_of(few, styles) == [str(number) for number in range(0, 24, 2)]


@needs_tracer
def test_a_set_is_pictures_a_grid_and_a_zip(server):
    formats = ["svg", "png", "transparent"]
    body = {"things": THINGS, "style": "line", "formats": formats, "seed": 3}
    answer = server.post(SETS, **body).json()
    prompts = [f"{thing}, line" for thing in THINGS]
    own = toy_model().generate(prompts, 1, seed=3)
    for one, picture in zip(answer["data"], own, strict=True):
        assert (pixels_of(one["b64_json"]) == picture.pixels).all()
        assert (one["prompt"], one["seed"]) == (picture.prompt, 3)
    assert [one["file"] for one in answer["data"]] == ["red", "green", "Red-2"]
    files = files_of(answer)
    ends = (".png", "-transparent.png", ".svg")
    assert list(files) == [
        *(name + end for name in ("red", "green", "Red-2") for end in ends),
        "grid.png",
        "LICENSES",
    ]
    assert (open_image(files["green.png"]) == own[1].pixels).all()
    assert open_alpha(files["green-transparent.png"]) is not None
    assert files["green.svg"].startswith(b"<?xml")
    assert files["grid.png"] == base64.b64decode(answer["grid"])
    assert answer["usage"]["output_tokens"] == 3 * 16
    assert server.post(SETS, **body).json()["zip"] == answer["zip"]


def test_a_set_grows(server):
    body = {"things": THINGS, "stream": True, "partial_images": 3, "seed": 3, "size": "16x16"}
    events = [
        json.loads(line[6:])
        for line in server.post(SETS, **body).text.splitlines()
        if line.startswith("data: ")
    ]
    kinds = [one["type"] for one in events]
    assert kinds.count("set.partial_image") == 9
    assert kinds[-1] == "set.completed"
    finished = [one for one in events if one["type"] == "set.picture"]
    assert {one["thing"] for one in finished} == set(THINGS)
    assert pixels_of(finished[0]["b64_json"]).shape == (16, 16, 3)
    assert set(files_of(events[-1])) == {
        "red.png",
        "green.png",
        "Red-2.png",
        "grid.png",
        "LICENSES",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "things: is missing"),
        ({"things": "red"}, "things: is 'red', must be a list"),
        ({"things": []}, "things: is empty; name some"),
        ({"things": ["red", " "]}, "things[1]: is empty"),
        ({"things": ["red", 3]}, "things[1]: is 3, must be a string"),
        ({"things": ["x" * 41]}, "things[0]: has 41 characters, at most 40 are allowed"),
        ({"things": ["x"] * 5}, "things: has 5 items, at most 4 are allowed"),
        (
            {"things": ["a", "b", "c"], "candidates": 2},
            "n: 3 results of 2 ... are 6 ... most 4",
        ),
        (
            {"things": ["red"], "formats": ["gif"]},
            "formats: has 'gif', must be some of png, transparent, svg",
        ),
        (
            {"things": ["red"], "formats": [[]]},
            "formats: has a list, must be some of png, transparent, svg",
        ),
        ({"things": ["red"], "partial_images": 2}, "partial_images: needs stream"),
        ({"things": ["red"], "n": 2}, "unknown parameter: 'n'"),
        ({"things": ["red"], "style": "a style that is long"}, "prompt: is 25 tokens long"),
    ],
)
def test_sets_that_are_wrong(server, body, message):
    refused = server.post(SETS, **body)
    assert refused.status_code == 400, refused.text
    assert tells(refused.json()["error"]["message"], message)


def test_svg_without_the_tracer_is_refused(server, monkeypatch):
    monkeypatch.setattr(sets_api, "can_trace", lambda: False)
    refused = server.post(SETS, things=["red"], formats=["svg"])
    assert tells(refused.json()["error"]["message"], "formats: svg needs the ... 'cm3leon[svg]'")
