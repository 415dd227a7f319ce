"""Errors in the format of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from cm3core.errors import CM3Error, DataError


class APIError(Exception):
    """An error response.

    Args:
        status: the HTTP status.
        message: the cause, and what to do about it.
        param: the wrong field.
        code: a short name for programs.
        type: the class of error, "invalid_request_error" if the client can correct it.
        headers: additional headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type, self.headers = type, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The response's body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def invalid_value(place: str, cause: str, param: str | None = None) -> APIError:
    """The error of a field with a wrong value.

    Args:
        place: the field, or a place in it, such as "boxes[0].label".
        cause: the cause.
        param: the field itself, if the place is inside it.

    >>> invalid_value("boxes[0]", "is empty", "boxes").body["error"]["message"]
    'boxes[0]: is empty'
    """
    return APIError(400, f"{place}: {cause}", param=param or place, code="invalid_value")


#: Status -> code of the error for a request that can't be read as HTTP.
_FRAMING_CODES = {
    408: "timeout",
    411: "length_required",
    414: "uri_too_long",
    431: "headers_too_large",
    501: "not_implemented",
}


def framing(status: int, cause: str) -> APIError:
    """The error for a request that is not valid HTTP, or is too large or too slow. It closes the connection, because nobody
    knows where the next request begins (RFC 9112, sections 6.1 and 6.3).

    >>> framing(408, "its head did not arrive within 10 s").message
    "the request can't be read: its head did not arrive within 10 s"
    """
    code = _FRAMING_CODES.get(status, "bad_request")
    cause = f"the request can't be read: {cause}"
    return APIError(status, cause, code=code, headers={"Connection": "close"})


def of_model(error: CM3Error) -> APIError:
    """The error for a request that the model refused, with the framework's own message.

    `param` is the first word of the place, which is the option's name if there is one.
    """
    code = "invalid_image" if isinstance(error, DataError) else "invalid_value"
    param = error.place if error.place.isidentifier() else None
    if error.place.startswith("sampler."):  # a key of it
        param = "sampling"
    return APIError(400, in_one_line(error), param=param, code=code)


def no_documents() -> APIError:
    """The error for a model whose own documents can't be read; the server's log has the reason."""
    return APIError(
        503,
        "the model's documents for retrieval can't be read here; to generate without them, "
        "send num_retrieved: 0",
        type="server_error",
        code="documents_not_available",
    )


def in_one_line(error: CM3Error) -> str:
    """A framework error as a message of the API.

    >>> in_one_line(CM3Error("sampler.tmp", "is no key", "did you mean 'temperature'?"))
    "sampler.tmp: is no key. Next: did you mean 'temperature'?"
    """
    return f"{error.place}: {_ended(error.cause)} Next: {_ended(error.next_step)}"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


def internal() -> APIError:
    """The error for a failure of the server; its log has the traceback, which the client does not get."""
    return APIError(
        500,
        "the server failed on this request; see its log",
        type="server_error",
        code="internal_error",
    )
