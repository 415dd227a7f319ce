"""Errors in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from cm3core.errors import CM3Error, DataError


class APIError(Exception):
    """An error that a client is answered with.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do about it.
        param: the field that is wrong.
        code: a short name for programs.
        type: the class of error, "invalid_request_error" for what the client can correct.
        headers: to send along.
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
        """The answer's body."""
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
        place: the field, or a place in it, as in "boxes[0].label".
        cause: what is wrong there.
        param: the field itself, where the place is in it.

    >>> invalid_value("boxes[0]", "is empty", "boxes").body["error"]["message"]
    'boxes[0]: is empty'
    """
    return APIError(400, f"{place}: {cause}", param=param or place, code="invalid_value")


#: What a request that can't be read as HTTP is called for programs.
_FRAMING_CODES = {
    408: "timeout",
    411: "length_required",
    414: "uri_too_long",
    431: "headers_too_large",
    501: "not_implemented",
}


def framing(status: int, cause: str) -> APIError:
    """The error of a request that is no HTTP, or more of it than is read.

    >>> framing(408, "its head did not arrive within 10 s").message
    "the request can't be read: its head did not arrive within 10 s"
    """
    code = _FRAMING_CODES.get(status, "bad_request")
    return APIError(status, f"the request can't be read: {cause}", code=code)


def of_model(error: CM3Error) -> APIError:
    """The error of a request that the model refused: the message is the framework's own.

    `param` is the first word of the place, which is the name of the option where there is one.
    """
    code = "invalid_image" if isinstance(error, DataError) else "invalid_value"
    param = error.place if error.place.isidentifier() else None
    if error.place.startswith("sampler."):  # a key of it
        param = "sampling"
    return APIError(400, in_one_line(error), param=param, code=code)


def no_documents() -> APIError:
    """The answer where the model's own documents can't be read; the server's log says why."""
    return APIError(
        503,
        "the documents that the model retrieves can't be read here; to do without them, "
        "send num_retrieved: 0",
        type="server_error",
        code="documents_not_available",
    )


def in_one_line(error: CM3Error) -> str:
    """A framework's error as a message of the API.

    >>> in_one_line(CM3Error("sampler.tmp", "is no key", "did you mean 'temperature'?"))
    "sampler.tmp: is no key. Next: did you mean 'temperature'?"
    """
    end = "" if error.next_step.endswith("?") else "."
    return f"{error.place}: {error.cause}. Next: {error.next_step}{end}"


def internal() -> APIError:
    """The answer to a defect of the server: its log has the traceback, the client does not."""
    return APIError(
        500,
        "the server failed on this request; its log says why",
        type="server_error",
        code="internal_error",
    )
