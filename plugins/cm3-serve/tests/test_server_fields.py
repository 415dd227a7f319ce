"""The fields of a request: wrong types and values, with their messages."""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from typing import Literal

import pytest

from cm3core.interfaces import SamplerConfig
from cm3core.plugins.registry import PluginInfo
from cm3icons.facets import FacetsRetrieverConfig
from cm3plugins.retrievers import HybridRetrieverConfig
from cm3run.prompting import AsItStands
from cm3serve import errors, facts, fields, guard
from cm3serve.errors import APIError
from cm3serve.facts import drawn_styles
from cm3serve.field_tables import chat_fields, edit_fields, generation_fields
from cm3serve.fields import Field, json_object, read
from cm3serve.images_api import check_sampling
from cm3serve.settings import Limits
from messages import tells
from toy_model import toy_model

TABLE = (
    Field(name="prompt", sort="text", most=5, required=True, help="x"),
    Field(name="n", sort="whole", least=1, most=10, help="x"),
    Field(name="scale", sort="number", least=0, most=2, help="x"),
    Field(name="stream", sort="flag", help="x"),
    Field(name="format", sort="choice", choices=("png", "webp"), help="x"),
    Field(name="sampling", sort="object", help="x"),
    Field(name="documents", sort="list", most=2, help="x"),
)


@pytest.mark.parametrize("module", [errors, fields, facts, guard])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_values_are_read():
    body = {"prompt": "red", "n": 2.0, "scale": 1, "stream": False, "format": None}
    assert read(TABLE, body) == {"prompt": "red", "n": 2, "scale": 1, "stream": False}


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ({}, "prompt: is missing", "missing_required_parameter"),
        ({"prompt": None}, "prompt: is missing", "missing_required_parameter"),
        ({"prompt": 3}, "prompt: is 3, must be a string", "invalid_value"),
        ({"prompt": "abcdef"}, "prompt: has 6 characters, at most 5 are allowed", "invalid_value"),
        (
            {"prompt": "a\ud800"},
            "prompt: has half a character at 1 (a lone surrogate)",
            "invalid_value",
        ),
        ({"prompt": "a\0"}, "prompt: has a NUL character at 1", "invalid_value"),
        ({"prompt": "a", "n": 0}, "n: is 0, must be a whole number from 1 to 10", "invalid_value"),
        (
            {"prompt": "a", "n": True},
            "n: is true, must be a whole number from 1 to 10",
            "invalid_value",
        ),
        (
            {"prompt": "a", "n": 1.5},
            "n: is 1.5, must be a whole number from 1 to 10",
            "invalid_value",
        ),
        (
            {"prompt": "a", "n": "2"},
            "n: is '2', must be a whole number from 1 to 10",
            "invalid_value",
        ),
        ({"prompt": "a", "scale": 3}, "scale: is 3, must be a number from 0 to 2", "invalid_value"),
        (
            {"prompt": "a", "scale": []},
            "scale: is a list, must be a number from 0 to 2",
            "invalid_value",
        ),
        ({"prompt": "a", "stream": 1}, "stream: is 1, must be true or false", "invalid_value"),
        (
            {"prompt": "a", "format": "gif"},
            "format: is 'gif', must be one of png, webp",
            "invalid_value",
        ),
        (
            {"prompt": "a", "format": {}},
            "format: is an object, must be one of png, webp",
            "invalid_value",
        ),
        ({"prompt": "a", "sampling": 1}, "sampling: is 1, must be an object", "invalid_value"),
        (
            {"prompt": "a", "documents": [1, 2, 3]},
            "documents: has 3 items, at most 2 are allowed",
            "invalid_value",
        ),
        (
            {"prompt": "a", "nn": 1},
            "unknown parameter: 'nn'; known: documents, format, n, prompt, sampling, scale, stream",
            "unknown_parameter",
        ),
    ],
)
def test_wrong_values(body, message, code):
    with pytest.raises(APIError) as caught:
        read(TABLE, body)
    assert (caught.value.message, caught.value.code) == (message, code)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON (Expecting value: line 1 column 1"),
        (b"[1]", "the body must be a JSON object"),
        (b'{"n": NaN}', "the body is not JSON (NaN is not JSON)"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "the body is not JSON (Exceeds the limit"),
        (b"[" * 100_000, "the body is not JSON (it is nested too deeply)"),
        (b"\xff\xfe", "the body is not JSON ("),
        (
            b'{"n": 1, "prompt": "a", "n": 2}',
            "the body has the key 'n' twice in one object. Next: keep one of the two",
        ),
        (b'{"sampling": [{"\\n": 1, "\\n": 1}]}', "the body has the key '\\n' twice in one object"),
    ],
)
def test_bodies_that_are_no_object(body, message):
    with pytest.raises(APIError) as caught:
        json_object(body)
    assert tells(caught.value.message, message)


@pytest.mark.parametrize("table", [generation_fields, edit_fields, chat_fields])
def test_fields_are_named_once(table):
    names = [field.name for field in table(Limits())]
    assert len(names) == len(set(names))
    assert all(field.help for field in table(Limits()))


@dataclass(kw_only=True)
class NeedyConfig(SamplerConfig):
    """A sampler with a key that has no default, a choice, and a file."""

    heat: float
    way: Literal["up", "down"] = "up"
    file: str = ""


def test_choices_of_a_sampler_with_a_key_without_default():
    model = toy_model()
    here = PluginInfo("here", "cm3-here", "1", "here")
    model.components.registry.add(here, {"sampler": {"needy": NeedyConfig}}, {})
    check_sampling(model, {"sampler": "needy", "sampling": {"heat": 2.0, "way": "down"}})
    with pytest.raises(APIError) as caught:
        check_sampling(model, {"sampler": "needy", "sampling": {"heat": 2.0, "file": "/etc"}})
    assert str(caught.value).startswith("sampling: 'file' is '/etc', only numbers, flags and")


def test_styles_that_the_recipe_ranks_last_are_not_offered():
    model = toy_model()
    styles = ["filled, mdi", "colour, noto", "full colour", "outline"]
    assert drawn_styles(styles, model) == styles
    own = HybridRetrieverConfig(only_if_asked=["colour"])
    model.recipe.retriever = own
    assert drawn_styles(styles, model) == ["filled, mdi", "outline"]
    model.recipe.retriever = FacetsRetrieverConfig(meanings=own)
    assert drawn_styles(styles, model) == ["filled, mdi", "outline"]

    class NoOutlines(AsItStands):
        def avoids(self, text):
            return "outline" in text

    model.components.prompt_rewriter = NoOutlines()
    assert drawn_styles(styles, model) == ["filled, mdi"]


@pytest.mark.parametrize("text", ["é", "\U0001f34e", "日本語", '\\"\\u00e9é\\\\'])
def test_large_bodies_are_read_as_small_ones(monkeypatch, text):
    """Letters beyond ASCII, also where pieces end inside of one."""
    body = f'{{"prompt": "{text * 50}", "{text}": ["{text}"]}}'.encode()
    expected = fields.json_object(body)
    for piece in (1, 2, 3, 5, 7):
        monkeypatch.setattr(fields, "_LARGE", 0)
        monkeypatch.setattr(fields, "_PIECE", piece)
        assert fields.json_object(bytearray(body)) == expected
        for wrong in (
            body[:13] + b"\xff" + body[13:],
            body[:-1] + "é}".encode(),
            b'{"a": "\xf0\x9f',
        ):
            with pytest.raises(APIError, match="the body is not JSON"):
                fields.json_object(wrong)
