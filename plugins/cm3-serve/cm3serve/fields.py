"""The fields of a request: each route has one table, by which values are checked and documented."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cm3run.json_text import KeyTwiceError, object_of
from cm3serve.errors import APIError, invalid_value
from cm3serve.pictures import Upload

if TYPE_CHECKING:
    from cm3serve.settings import Limits


Sort: TypeAlias = Literal["text", "whole", "number", "flag", "choice", "object", "list", "picture"]
#: Bytes from which a JSON body counts as large, and bytes to scan at a time.
_LARGE, _PIECE = 1 << 20, 256 << 10
_BEYOND = re.compile(r"[^\x00-\x7f]+")
#: Maximum characters of a wrong value that a message repeats.
_SHOWN = 60
_NAMES = {
    "text": "a string",
    "whole": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "object": "an object",
    "list": "a list",
    "picture": "a picture",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a request's body.

    Args:
        name: its key.
        sort: the type of its value.
        help: one line for the documentation.
        least, most: the range of a number; the maximum characters of a text or items of a list.
        choices: the values of a choice.
        required: whether it must be given.
        ours: whether OpenAI's API has no such field.
        ignored: whether it is accepted and has no effect.
    """

    name: str
    sort: Sort
    help: str
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    required: bool = False
    ours: bool = False
    ignored: bool = False

    def read(self, value: Any) -> Any:
        """Return the value, checked; raises `APIError`."""
        if self.sort == "text":
            return _text(self.name, value, self.most)
        if self.sort == "choice":
            if not isinstance(value, str) or value not in self.choices:
                raise self._wrong(value, f"one of {', '.join(self.choices)}")
            return value
        if self.sort in ("whole", "number"):
            return self._number(value)
        wanted = {"flag": bool, "object": dict, "list": list}.get(self.sort)
        if wanted is not None and not isinstance(value, wanted):
            raise self._wrong(value, _NAMES[self.sort])
        if self.sort == "list" and len(value) > self.most:
            raise invalid_value(
                self.name, f"has {len(value)} items, at most {self.most:.0f} are allowed"
            )
        return value

    def _number(self, value: Any) -> int | float:
        wanted = f"{_NAMES[self.sort]} from {_limit(self.least)} to {_limit(self.most)}"
        if self.sort == "whole" and isinstance(value, float) and value.is_integer():
            value = int(value)
        is_number = isinstance(value, int if self.sort == "whole" else (int, float))
        if isinstance(value, bool) or not is_number or not self.least <= value <= self.most:
            raise self._wrong(value, wanted)
        number: int | float = value
        return number

    def _wrong(self, value: Any, wanted: str) -> APIError:
        return invalid_value(self.name, f"is {shown(value)}, must be {wanted}")

    def from_form(self, value: str) -> Any:
        """Convert the value of a form's field, which is always a text, to its JSON value."""
        if self.sort in ("whole", "number", "flag", "object", "list"):
            try:
                return _loads(value)
            except KeyTwiceError as error:
                raise invalid_value(
                    self.name, f"has the key {shown(error.key)} twice in one object"
                ) from None
            except (ValueError, RecursionError):
                return value  # `read` reports the error
        return value


def _limit(value: float) -> str:
    """A limit in a message; a float has too few digits for the largest seed.

    >>> _limit(2**63 - 1), _limit(0.5), _limit(100.0)
    ('9,223,372,036,854,775,807', '0.5', '100')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def _text(name: str, value: Any, most: float) -> str:
    if not isinstance(value, str):
        raise invalid_value(name, f"is {shown(value)}, must be a string")
    if len(value) > most:
        raise invalid_value(name, f"has {len(value):,} characters, at most {most:,.0f} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid_value(
            name, f"has half a character at {error.start} (a lone surrogate)"
        ) from None
    if "\0" in value:
        raise invalid_value(name, f"has a NUL character at {value.index(chr(0))}")
    return value


def shown(value: Any) -> str:
    """A wrong value in a form for messages: short, and on one line.

    >>> shown({"a": 1}), shown("x" * 100)[-6:]
    ('an object', "xx'...")
    """
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bytes):
        return "a file"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        text = ascii(value[: _SHOWN + 1] if isinstance(value, str) else value)
    except ValueError:  # more digits than Python converts
        return "a number with thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}'..."


def read(fields: Sequence[Field], body: Mapping[str, Any]) -> dict[str, Any]:
    """The given values of a body; null counts as absent.

    Raises:
        APIError: a field is unknown, missing, or has a wrong value.
    """
    known = {field.name: field for field in fields}
    for name in body:
        if name not in known:
            raise APIError(
                400,
                f"unknown parameter: {shown(name)}; known: {', '.join(sorted(known))}",
                param=name if len(name) <= _SHOWN else name[:_SHOWN],
                code="unknown_parameter",
            )
    values = {
        name: field.read(body[name]) for name, field in known.items() if body.get(name) is not None
    }
    for name, field in known.items():
        if field.required and name not in values:
            raise APIError(
                400, f"{name}: is missing", param=name, code="missing_required_parameter"
            )
    return values


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON body; raises `APIError` unless it is an object without duplicate keys."""
    try:
        value = _loads(body if len(body) < _LARGE or body.isascii() else in_ascii(body))
    except KeyTwiceError as error:
        raise APIError(
            400,
            f"the body has the key {shown(error.key)} twice in one object. Next: keep one of the two",
            param=error.key[:_SHOWN],
            code="invalid_json",
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise APIError(400, f"the body is not JSON ({reason[:120]})", code="invalid_json") from None
    if not isinstance(value, dict):
        raise APIError(400, "the body must be a JSON object", code="invalid_json")
    return value


def in_ascii(body: bytes | bytearray) -> str:
    r"""A JSON body with non-ASCII letters as escapes. A single four-byte letter makes Python store the whole body with four
    bytes a letter, which takes a second for 32 MiB and blocks all other threads.

    >>> in_ascii('{"prompt": "\u00e9\U0001f34e"}'.encode())
    '{"prompt": "\\u00e9\\ud83c\\udf4e"}'
    """
    decoder, pieces = codecs.getincrementaldecoder("utf-8")(), []
    for start in range(0, len(body), _PIECE):
        text = decoder.decode(bytes(body[start : start + _PIECE]))
        pieces.append(text if text.isascii() else _BEYOND.sub(_escaped, text))
    decoder.decode(b"", final=True)
    return "".join(pieces)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _loads(text: str | bytes | bytearray) -> Any:
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=object_of)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


#: The form in which clients send objects ("sampling[temperature]") and lists ("image[]").
_INSIDE = re.compile(r"(\w+)\[(\w[\w.]*)\]")
MAX_FIELDS = 200


class _Parser(MultiPartParser):
    """Detects the line that ends a form, because starlette accepts a truncated form as a shorter one."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def form_values(
    headers: Headers, body: bytes | bytearray, fields: Sequence[Field], limits: Limits
) -> tuple[dict[str, Any], dict[str, list[Upload]]]:
    """The fields of a form, and the pictures among them.

    Raises:
        APIError: the body is not a form or is truncated, or has too many fields or files, a field twice, or an
            unexpected file.
    """

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield bytes(body)
        yield b""

    parser = _Parser(
        headers,
        pieces(),
        max_files=limits.pictures + 1,
        max_fields=MAX_FIELDS,
        max_part_size=limits.body_bytes,
    )
    parser.spool_max_size = limits.body_bytes + 1  # never on disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise APIError(
            400, f"the body is not a form ({reason[:120]})", code="invalid_form"
        ) from None
    if not parser.ended:
        await form.close()
        raise APIError(
            400,
            "the body is truncated: the line that ends the form is missing. Next: send the whole form",
            code="incomplete_body",
        )
    known = {field.name: field for field in fields}
    values: dict[str, Any] = {}
    uploads: dict[str, list[Upload]] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            await _add_upload(known, uploads, key, value)
        else:
            _add_value(known, values, key, value)
    await form.close()
    return values, uploads


async def _add_upload(
    known: Mapping[str, Field], uploads: dict[str, list[Upload]], key: str, file: UploadFile
) -> None:
    name = key.removesuffix("[]")
    field = known.get(name)
    if field is None or field.sort != "picture":
        raise APIError(
            400,
            f"{name[:60]}: a file is not accepted here",
            param=name[:60],
            code="unknown_parameter",
        )
    own = uploads.setdefault(name, [])
    place = name if not own else f"{name}[{len(own)}]"
    own.append(Upload(await file.read(), place))


def _add_value(known: Mapping[str, Field], values: dict[str, Any], key: str, text: str) -> None:
    name = key.removesuffix("[]")
    field = known.get(name)
    if field is None and (inside := _INSIDE.fullmatch(key)):
        owner = values.setdefault(inside[1], {})
        if isinstance(owner, dict):
            if inside[2] in owner:
                raise _twice(key)
            owner[inside[2]] = Field(name=key, sort="object", help="").from_form(text)
    elif field is not None and field.sort == "picture":
        raise invalid_value(name, "is a text, must be a file")
    elif name in values:
        raise _twice(name)
    else:
        values[name] = text if field is None else field.from_form(text)


def _twice(key: str) -> APIError:
    return APIError(
        400,
        f"{key[:60]}: is given twice. Next: keep one of the two",
        param=key[:60],
        code="invalid_form",
    )
