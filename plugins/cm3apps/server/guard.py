"""Who may ask: tokens, the names the server answers to, other sites' pages; and headers that protect
the page."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from cm3apps.server.errors import APIError, framing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("cm3.serve")

#: Names of this machine, to itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: What a page may load: its own files, and pictures that it holds itself.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Stands before the application.

    Args:
        app: the application.
        token: what requests must bear; None: nothing.
        hosts: names that the Host header may have; None: any. Without a token, another site could
            otherwise give its name this machine's address and read what the server answers.
        open_paths: paths that need no token: the page, which holds nothing secret.
        refused: called with the reason of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        open_paths: Collection[str],
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.app, self.token, self.hosts, self.open_paths = app, token, hosts, open_paths
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is None:
            await self.app(scope, receive, protected)
            return
        self.refused(refusal.code or "")
        client = (scope.get("client") or ("unknown",))[0]
        logger.info("%s %s refused: %s", client, scope["method"], refusal.message)
        body = json.dumps(refusal.body).encode()
        head = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **refusal.headers,
        }
        await protected(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [(key.lower().encode(), value.encode()) for key, value in head.items()],
            }
        )
        await protected({"type": "http.response.body", "body": body})

    def _refusal(self, headers: Headers, path: str) -> APIError | None:
        """Why a request is refused. Strangers learn nothing but that a token is missing."""
        return self._without_token(headers, path) or self._misled(headers)

    def _without_token(self, headers: Headers, path: str) -> APIError | None:
        if self.token is None or path in self.open_paths:
            return None
        sort, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if sort.lower() == "bearer" and same:
            return None
        return APIError(
            401,
            "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN' (in OpenAI's "
            "clients: api_key)",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _misled(self, headers: Headers) -> APIError | None:
        """What a browser is led to by another site, or a proxy by a request that can be read in two ways."""
        if "content-length" in headers and "transfer-encoding" in headers:
            return framing(400, "it has both Content-Length and Transfer-Encoding")
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            return APIError(
                403,
                "this server does not answer to the name that it was called by; if it should, start "
                "it with --allow-host NAME",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != host.lower():
            return APIError(
                403, "pages of other sites may not use this server", code="foreign_origin"
            )
        return None


def _place_of(origin: str) -> str | None:
    """Name and port of an Origin header; None: it has none.

    >>> _place_of("http://Localhost:8000"), _place_of("null"), _place_of("http://[")
    ('localhost:8000', None, None)
    """
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """The name in a Host header, without the port.

    >>> _name_of("localhost:8000"), _name_of("[::1]:8000")
    ('localhost', '::1')
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
