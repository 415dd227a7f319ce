"""The API's description: `/openapi.json`, and the page `/docs` made from it. Both come from the tables
of fields, so they can't say anything else than the server does."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cm3core
from cm3apps.server.fields import Field

if TYPE_CHECKING:
    from cm3apps.server.http import Endpoint

_TYPES = {
    "text": "string",
    "whole": "integer",
    "number": "number",
    "flag": "boolean",
    "choice": "string",
    "object": "object",
    "list": "array",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
#: Routes that only read: path -> what they return.
READING = {
    "/v1/models": "The models that are served",
    "/healthz": "Whether the server works, and how busy it is; 503: an engine has stopped or is stuck",
    "/readyz": "Whether a request would be generated at once; 503: not now",
    "/metrics": "Counters for Prometheus",
    "/studio/facts": "What the page shows of a model (?model=NAME)",
}


def schema(endpoints: Sequence[Endpoint], has_token: bool) -> dict[str, Any]:
    """The description in OpenAPI 3.1."""
    paths: dict[str, Any] = {
        path: {"get": {"summary": summary, "responses": {"200": {"description": "as said"}}}}
        for path, summary in READING.items()
    }
    for endpoint in endpoints:
        content = {"application/json": {"schema": _object(endpoint.fields, form=False)}}
        if endpoint.forms:
            content["multipart/form-data"] = {"schema": _object(endpoint.fields, form=True)}
        paths[endpoint.path] = {
            "post": {
                "summary": endpoint.summary,
                "requestBody": {"required": True, "content": content},
                "responses": {
                    "200": {
                        "description": "the results; with stream: server-sent events",
                        "content": {"application/json": {}, "text/event-stream": {}},
                    },
                    "default": {
                        "description": "an error, in the shape of OpenAI's API",
                        "content": {"application/json": {"schema": _ERROR}},
                    },
                },
            }
        }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "cm3 serve", "version": cm3core.__version__},
        "paths": paths,
    }
    if has_token:
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        described |= {"components": {"securitySchemes": schemes}, "security": [{"token": []}]}
    return described


def _object(fields: Sequence[Field], *, form: bool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {field.name: _property(field, form=form) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def _property(field: Field, *, form: bool) -> dict[str, Any]:
    note = "ours" if field.ours else ""
    note = ", ".join(filter(None, [note, "no effect" if field.ignored else ""]))
    shown: dict[str, Any] = {"description": field.help + (f" ({note})" if note else "")}
    if field.sort == "picture":
        binary = {"type": "string", "format": "binary"}
        reference = {"type": "object", "properties": {"image_url": {"type": "string"}}}
        return shown | (binary if form else reference)
    shown["type"] = _TYPES[field.sort]
    if field.choices:
        shown["enum"] = list(field.choices)
    bounds = {"text": ("", "maxLength"), "list": ("", "maxItems")}.get(
        field.sort, ("minimum", "maximum")
    )
    for name, value in zip(bounds, (field.least, field.most), strict=True):
        if name and math.isfinite(value):
            shown[name] = int(value) if float(value).is_integer() else value
    return shown


def reference_page(description: dict[str, Any]) -> str:
    """The description as a page of plain HTML."""
    parts = []
    for path, methods in description["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(what['summary'])}</p>")
            body = what.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                parts.append(_table(body["schema"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API - cm3 serve</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/studio.css"><link rel="icon" href="/icon.svg"></head>'
        '<body class="reference"><main><p><a href="/">Studio</a> · '
        '<a href="/openapi.json">openapi.json</a></p><h1>API</h1>'
        + "".join(parts)
        + "</main></body></html>"
    )


def _table(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{_values(one)}</td>"
        f"<td>{html.escape(one['description'])}</td></tr>"
        for name, one in schema["properties"].items()
    )
    head = "<tr><th>field</th><th>value</th><th>meaning</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _values(one: dict[str, Any]) -> str:
    if "enum" in one:
        return html.escape(", ".join(one["enum"]))
    bounds = [
        f"{name} {one[name]}"
        for name in ("minimum", "maximum", "maxLength", "maxItems")
        if name in one
    ]
    return html.escape(", ".join([json.dumps(one["type"]).strip('"'), *bounds]))
