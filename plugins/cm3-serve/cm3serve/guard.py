"""Who may send a request: tokens, the server's host names, pages of other sites; and headers that protect responses. One
guard is in front of `cm3 serve`, the doors and replicas of Ray Serve, and `cm3 mcp --http`.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from cm3serve.errors import APIError, framing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = logging.getLogger("cm3.serve")

#: This machine's names for itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Values of `Sec-Fetch-Site` for requests of the server's own page, and of the user (an address typed, a bookmark).
OWN_SITE = frozenset({"same-origin", "none"})
#: The resources that the page may load: its own files, and pictures that it contains.
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
    """Checks requests before the application gets them.

    Browsers say in `Sec-Fetch-Site` which site's page made them send a request. Other sites' pages, also those of other
    ports of this machine, are refused everything but a link to `pages`. Programs don't send the header. Browsers send it
    only to https and to this machine's own addresses; elsewhere, and for browsers of before 2023, `Origin` is what tells.

    Args:
        app: the application.
        token: the token that requests must send, or None.
        hosts: allowed names in the Host header; None: any. Without a token, another site could
            otherwise point its name at this machine's address and read the server's responses.
        open_paths: paths that need no token: the page, which has no secrets.
        pages: paths of pages that a link on another site may open; they must change nothing.
        only_local: whether only clients of this machine are answered, whatever address the server listens on. Requests
            through a proxy would look local, so they are refused.
        refused: called with the reason of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        open_paths: Collection[str] = (),
        pages: Collection[str] = (),
        only_local: bool = False,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.app, self.token, self.hosts, self.open_paths = app, token, hosts, open_paths
        self.pages, self.only_local, self.refused = pages, only_local, refused

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

        refusal = self._refusal(scope)
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

    def _refusal(self, scope: Scope) -> APIError | None:
        """The reason to refuse a request, or None. Without the token, a client only learns that it is missing."""
        if self.only_local and not is_local(scope):
            return APIError(
                403,
                "without a token only clients of the server's own machine are answered; set "
                "CM3_SERVE_TOKEN, or token_file, where the server is started",
                code="token_needed",
            )
        headers = Headers(scope=scope)
        return self._without_token(headers, scope["path"]) or self._misled(headers, scope)

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

    def _misled(self, headers: Headers, scope: Scope) -> APIError | None:
        """The reason to refuse an ambiguous request or one that another site made a browser send, or None."""
        if "content-length" in headers and "transfer-encoding" in headers:
            return framing(400, "it has both Content-Length and Transfer-Encoding")
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            return APIError(
                403,
                "this server does not accept requests under this host name; to allow it, start "
                "the server with --allow-host NAME",
                code="unknown_host",
            )
        origin = headers.get("origin")
        by_origin = origin is not None and _place_of(origin) != host.lower()
        by_site = not OWN_SITE.issuperset(headers.getlist("sec-fetch-site"))
        if by_origin or (by_site and not self._is_link(headers, scope)):
            return APIError(
                403,
                "pages of other sites can't use this server; open the server's own page, or send the request from a program",
                code="foreign_origin",
            )
        return None

    def _is_link(self, headers: Headers, scope: Scope) -> bool:
        """Whether a request opens a page in a window of its own, not inside another page."""
        opens = scope["method"] in ("GET", "HEAD") and scope["path"] in self.pages
        kind = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
        return opens and kind == ("navigate", "document")


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine and not through a proxy."""
    headers = Headers(scope=scope)
    if any(name in headers for name in ("x-forwarded-for", "x-real-ip", "forwarded")):
        return False
    try:
        return ipaddress.ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _place_of(origin: str) -> str | None:
    """Name and port of an Origin header, or None.

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
