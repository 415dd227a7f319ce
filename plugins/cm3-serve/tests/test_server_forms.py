"""Bodies of `multipart/form-data` that are not whole, or say a thing twice. What is in them is tried in
`test_server_limits`."""

from __future__ import annotations

import asyncio

import pytest
from starlette.datastructures import Headers

from cm3serve.errors import APIError
from cm3serve.field_tables import edit_fields
from cm3serve.fields import form_values
from cm3serve.settings import Limits

HEADERS = Headers({"content-type": "multipart/form-data; boundary=edge"})
CUT_OFF = "the body is truncated: the line that ends the form is missing. Next: send the whole form"


def part(name: str, value: bytes, file: str = "") -> bytes:
    also = f'; filename="{file}"' if file else ""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{also}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def values_of(body: bytes):
    return asyncio.run(form_values(HEADERS, body, edit_fields(Limits()), Limits()))


WHOLE = part("prompt", b"red") + part("image", b"\x89PNG\r\n--edg\r\n", "a.png") + b"--edge--"


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nwhat follows is no part of it"])
def test_a_whole_form(end):
    values, uploads = values_of(WHOLE + end)
    assert values == {"prompt": "red"}
    assert [one.data for one in uploads["image"]] == [b"\x89PNG\r\n--edg\r\n"]


def test_a_form_that_is_cut_off_anywhere():
    for length in range(len(WHOLE)):
        with pytest.raises(APIError) as caught:
            values_of(WHOLE[:length])
        error = caught.value
        assert (error.status, error.message, error.code) == (400, CUT_OFF, "incomplete_body"), (
            length
        )


@pytest.mark.parametrize(
    ("parts", "message", "param"),
    [
        ([("n", b"1"), ("n", b"2")], "n: is given twice. Next: keep one of the two", "n"),
        (
            [("sampling[top_p]", b"1"), ("prompt", b"x"), ("sampling[top_p]", b"1")],
            "sampling[top_p]: is given twice. Next: keep one of the two",
            "sampling[top_p]",
        ),
        (
            [("sampling", b'{"top_p": 1}'), ("sampling[top_p]", b"1")],
            "sampling[top_p]: is given twice. Next: keep one of the two",
            "sampling[top_p]",
        ),
        (
            [("sampling[top_p]", b"1"), ("sampling", b'{"top_k": 1}')],
            "sampling: is given twice. Next: keep one of the two",
            "sampling",
        ),
        (
            [("sampling", b'{"top_p": 1, "top_p": 2}')],
            "sampling: has the key 'top_p' twice in one object",
            "sampling",
        ),
        ([("x" * 99, b""), ("x" * 99, b"")], "x" * 60 + ": is given twice. Next: ", "x" * 60),
    ],
)
def test_a_field_that_is_given_twice(parts, message, param):
    with pytest.raises(APIError) as caught:
        values_of(b"".join(part(name, value) for name, value in parts) + b"--edge--")
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(message)


def test_objects_field_by_field():
    parts = part("sampling", b'{"top_k": 1}') + part("sampling[top_p]", b"0.5")
    assert values_of(parts + b"--edge--")[0] == {"sampling": {"top_k": 1, "top_p": 0.5}}


def test_pictures_may_be_several():
    body = part("image[]", b"1", "a.png") + part("image[]", b"2", "b.png") + b"--edge--"
    assert [one.place for one in values_of(body)[1]["image"]] == ["image", "image[1]"]
