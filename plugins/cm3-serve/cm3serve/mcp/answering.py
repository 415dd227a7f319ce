"""Answers to messages that the protocol's SDK can't read. The SDK drops them without a word, and the agent that sent one
waits for an answer that never comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from cm3serve.errors import APIError
from cm3serve.settings import Limits

if TYPE_CHECKING:
    from anyio import AsyncFile
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: A message as it arrives.
Raw: TypeAlias = str | bytes | bytearray
#: Limits of HTTP. The largest message brings a picture of 2 MiB in base64.
LIMITS = Limits(body_bytes=4 << 20)
#: Strings, brackets, and other values of JSON; a string that does not end reaches to the end.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|[{}\[\]:]|[^\s{}\[\]:",]+', re.DOTALL)
_NEXT = "Next: send one JSON-RPC 2.0 message, in UTF-8, whose id is a string or a whole number"


def refusal_of(message: Raw) -> JSONRPCError | None:
    r"""The answer to a message that the SDK can't read; None if it can.

    >>> refusal_of('{"jsonrpc": "2.0", "id": 7, "method": "ping"}')
    >>> refusal = refusal_of(r'{"jsonrpc": "2.0", "id": 7, "method": "\ud800"}')
    >>> refusal.id, refusal.error.code
    (7, -32700)
    """
    try:
        read = jsonrpc_message_adapter.validate_json(message, by_name=False)
    except ValidationError as error:
        code, cause = _cause(error)
    else:
        if not isinstance(read, JSONRPCNotification) or "id" not in _fields(message):
            return None
        code, cause = INVALID_REQUEST, "id: must be a string or a whole number"
    return _refusal(_id(message), code, f"the message can't be read: {cause}. {_NEXT}")


def is_call(message: Raw) -> bool:
    """Whether a message that can't be read expects an answer: it is neither a notification nor itself an answer."""
    fields = _fields(message)
    return "id" in fields if "method" in fields else not {"result", "error"} & fields.keys()


def _refusal(id: str | int | None, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=id, error=ErrorData(code=code, message=message))


def _cause(error: ValidationError) -> tuple[int, str]:
    """The error's code, and what is wrong with the message as a request."""
    first = next(
        (one for one in error.errors() if one["loc"][:1] == ("JSONRPCRequest",)), error.errors()[0]
    )
    if first["type"] == "json_invalid":
        return PARSE_ERROR, first["msg"]
    place = ".".join(map(str, first["loc"][1:]))
    return INVALID_REQUEST, f"{place}: {first['msg']}" if place else first["msg"]


def _id(message: Raw) -> str | int | None:
    try:
        given = json.loads(_fields(message).get("id", "null"))
        if isinstance(given, str):
            given.encode()
        return given if type(given) in (int, str) else None
    except ValueError:  # no JSON, a number of thousands of digits, or half of a character
        return None


def _fields(message: Raw) -> dict[str, str]:
    r"""The outermost keys of an object, with the text of their values (of a container: its bracket), also where no parser
    gets that far.

    >>> _fields(r'{"id": 1, "x": {"id": 2}, "\ud800": [[')
    {'id': '1', 'x': '{', '\\ud800': '['}
    """
    text = message if isinstance(message, str) else message.decode("utf-8", "replace")
    fields: dict[str, str] = {}
    depth, last, key = 0, "", None
    for found in _TOKEN.finditer(text):
        token = found[0]
        if not depth and token != "{":
            return fields
        if depth == 1:
            if token == ":":
                key = last[1:-1]
            elif key is not None:
                fields[key], key = token, None
        depth += (token in "{[") - (token in "}]")
        last = token
    return fields


class ReadableLines:
    """Lines of stdin that the SDK can read. The others are answered here.

    Args:
        lines: all lines.
    """

    def __init__(self, lines: AsyncFile[str]) -> None:
        self._lines = lines
        #: Where answers are written; set before the first line is read.
        self.answers: Any = None

    async def __aiter__(self) -> AsyncIterator[str]:
        from mcp.shared.message import SessionMessage

        async for line in self._lines:
            refusal = refusal_of(line) if line.strip() else None
            if refusal is None:
                yield line
            elif is_call(line):
                await self.answers.send(SessionMessage(refusal))


class ReadableBodies:
    """An application over HTTP that gets only messages that it can read. The others are answered here.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        from cm3serve.intake import (
            body_of,
        )  # clients over stdio need not wait for its imports

        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await body_of(Headers(scope=scope), receive, LIMITS)
        except APIError as error:
            refusal = _refusal(None, INVALID_REQUEST, f"{error.message}. {_NEXT}")
            await JSONResponse(_plain(refusal), error.status)(scope, receive, send)
            return
        if (refused := refusal_of(body)) is not None:
            await JSONResponse(_plain(refused), 400)(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, again, send)


def _plain(error: JSONRPCError) -> Any:
    plain = error.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"jsonrpc": "2.0", "id": error.id} | plain


def readable(value: Any) -> Any:
    r"""A result whose texts can be sent: halves of characters, as in names of files that are not UTF-8, become escapes.

    >>> readable({"a": ["x\udcff", 1]})
    {'a': ['x\\udcff', 1]}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {readable(key): readable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [readable(one) for one in value]
    return value
