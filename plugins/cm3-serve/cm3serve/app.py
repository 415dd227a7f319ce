"""The application: all routes, behind the guard."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cm3run.model.async_engine import in_thread
from cm3serve import chat_api, field_tables, images_api, sets_api
from cm3serve.documents import ORIGINALS, file_of_original, no_original
from cm3serve.errors import APIError, internal
from cm3serve.facts import FACTS, facts, shown_facts
from cm3serve.field_tables import reference_page, schema
from cm3serve.guard import Guard
from cm3serve.http import Endpoint, answer_to
from cm3serve.tasks import Workshop

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from cm3serve.http import Metrics

#: The page's files: path -> (file in the wheel, media type). No other files are served.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/studio.css": ("studio.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in (
            *("studio", "api", "common", "drawing", "results", "repeat", "history"),
            *("brush", "condition", "sets", "look"),
        )
    },
}
#: Paths that need no token: the page's files and the API's description, which have no secrets, and the server's health.
OPEN_PATHS = frozenset({*FILES, "/docs", "/openapi.json", "/healthz", "/readyz"})
#: Pages that links on other sites may open.
PAGES = frozenset({"/"})


def endpoints(workshop: Workshop, metrics: Metrics) -> list[Endpoint]:
    """The routes that generate something."""
    limits = workshop.limits
    return [
        Endpoint(
            "/v1/images/generations",
            field_tables.generation_fields(limits),
            partial(images_api.generations, workshop),
            limits,
            metrics,
            workshop.gate,
            "Draw pictures for a prompt",
        ),
        Endpoint(
            "/v1/images/edits",
            field_tables.edit_fields(limits),
            partial(images_api.edits, workshop),
            limits,
            metrics,
            workshop.gate,
            "Fill the masked part of a picture, or edit it by instruction",
            forms=True,
        ),
        Endpoint(
            "/v1/sets",
            sets_api.set_fields(limits),
            partial(sets_api.sets, workshop),
            limits,
            metrics,
            workshop.gate,
            "Draw several things in one style, as pictures, a grid and a zip",
        ),
        Endpoint(
            "/v1/conditions",
            field_tables.structure_fields(),
            partial(images_api.structures, workshop),
            limits,
            metrics,
            workshop.gate,
            "Extract the structure of a picture (edges, lines, ...) for the field `condition`",
        ),
        Endpoint(
            FACTS,
            (field_tables.model_field(),),
            partial(facts, workshop),
            limits,
            metrics,
            workshop.gate,
            "Load a model if it is not in memory, and return its facts",
        ),
        Endpoint(
            "/v1/chat/completions",
            field_tables.chat_fields(limits),
            partial(chat_api.completions, workshop),
            limits,
            metrics,
            workshop.gate,
            "Draw a picture for a text, caption a picture, or converse about it",
            closes=True,
        ),
    ]


def make_app(
    workshop: Workshop,
    metrics: Metrics,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """The whole application.

    Args:
        workshop: runs the tasks.
        metrics: counts requests.
        token, hosts: see `Guard`.
    """
    metrics.watch(workshop.queue, workshop.pool, workshop.gate)
    generating = endpoints(workshop, metrics)
    description = schema(generating, token is not None)
    files = {path: _file(*file) for path, file in FILES.items()}
    files["/openapi.json"] = json.dumps(description).encode(), "application/json"
    files["/docs"] = reference_page(description).encode(), "text/html; charset=utf-8"
    api = _Reading(workshop, metrics)
    routes = [
        *(Route(path, _Sent(*file), methods=["GET", "HEAD"]) for path, file in files.items()),
        Route("/healthz", api.health, methods=["GET"]),
        Route("/readyz", api.ready, methods=["GET"]),
        Route("/metrics", api.metrics_text, methods=["GET"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route(ORIGINALS, api.original, methods=["GET"]),
        Route(FACTS, api.facts, methods=["GET"]),
        *(Route(one.path, one, methods=["POST"]) for one in generating),
    ]
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _http_error, Exception: _failed}
    )
    app.router.redirect_slashes = False
    return Guard(
        app,
        token=token,
        hosts=hosts,
        open_paths=OPEN_PATHS,
        pages=PAGES,
        refused=metrics.refused,
    )


def _file(name: str, media_type: str) -> tuple[bytes, str]:
    return (resources.files("cm3serve") / "page" / name).read_bytes(), media_type


class _Sent:
    """A static file."""

    def __init__(self, data: bytes, media_type: str) -> None:
        self.data, self.media_type = data, media_type

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        response = Response(
            self.data, media_type=self.media_type, headers={"cache-control": "no-cache"}
        )
        await response(scope, receive, send)


class _Reading:
    """The read-only routes. None loads a model or drops one: a browser sends a GET for any picture on any page."""

    def __init__(self, workshop: Workshop, metrics: Metrics) -> None:
        self.workshop, self.metrics = workshop, metrics

    async def health(self, _: Request) -> Response:
        """Liveness: 503 if an engine has stopped or is stuck. Needs no token, so it names no model."""
        trouble = self._trouble()
        if trouble is not None:
            return JSONResponse({"status": "failing", "reason": trouble}, 503)
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Readiness: 503 also if no model is in memory or the queue is full. Needs no token, so it names no model."""
        queue, reason = self.workshop.queue, self._trouble()
        if reason is None and not self.workshop.pool.loaded:
            reason = "no model is loaded yet"
        if reason is None and queue.waiting >= queue.most_waiting:
            reason = "the queue is full"
        if reason is not None:
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    def _trouble(self) -> str | None:
        if self.workshop.pool.trouble(self.workshop.limits.stuck_seconds) is None:
            return None
        return "an engine has stopped or is stuck; the log says which"

    async def metrics_text(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, _: Request) -> Response:
        """All models."""
        data = [_described(name) for name in self.workshop.pool.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One model."""
        try:
            return JSONResponse(_described(self.workshop.pool.name_of(request.path_params["name"])))
        except APIError as error:
            return _answer(error)

    async def original(self, request: Request) -> Response:
        """The source file of a document that was prepended for a recent result of a model in memory."""
        id = request.query_params.get("id", "")
        try:
            name = self.workshop.pool.name_of(request.query_params.get("model"))
            document = self.workshop.shown.find(name, id)
            if document is None:
                raise no_original(
                    id,
                    "was not prepended for a recent result. Next: draw the picture again, then repeat this request",
                )
            with self.workshop.pool.held(name) as loaded:
                original = await in_thread(loaded.model.original, document)
            if original is None:
                raise no_original(id, "the memory has no file of this document")
            file, content, media_type = await in_thread(file_of_original, original, document)
        except Exception as error:  # any error becomes a response in the API's format
            return _answer(answer_to(error, ORIGINALS))
        # the browser must not display it: an SVG may come from anyone
        headers = {"content-disposition": f'attachment; filename="{file}"'}
        return Response(content, media_type=media_type, headers=headers)

    async def facts(self, request: Request) -> Response:
        """The facts about a model in memory."""
        pool = self.workshop.pool
        try:
            name = pool.name_of(request.query_params.get("model"))
            with pool.held(name) as loaded:
                return JSONResponse(await in_thread(shown_facts, loaded, name, self.workshop))
        except Exception as error:  # any error becomes a response in the API's format
            return _answer(answer_to(error, FACTS))


def _described(name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cm3leon"}


def _answer(error: APIError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods in the API's format."""
    assert isinstance(error, HTTPException)
    messages = {
        404: "there is no such path; /docs lists them",
        405: f"the method {request.method} does not exist for this path; /docs lists them",
    }
    answer = APIError(
        error.status_code,
        messages.get(error.status_code, str(error.detail)),
        code={404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code),
        headers=dict(error.headers or {}),
    )
    return _answer(answer)


async def _failed(request: Request, error: Exception) -> Response:
    """Answer a failure of a read-only route; the log has its traceback."""
    return _answer(internal())
