"""The fields of the routes' request bodies, and their documentation: `/openapi.json` and the page `/docs` are made from
the same tables by which the server checks requests.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cm3core
from cm3serve.conditions import condition_fields
from cm3serve.fields import Field
from cm3serve.settings import Limits

if TYPE_CHECKING:
    from cm3serve.http import Endpoint


MAX_SEED = 2**63 - 1
#: Candidates for the quality "high", if the model can choose among them.
HIGH_QUALITY = 4
HIGH = ("high", "hd", "xhigh", "max")


def sampling_fields(limits: Limits) -> tuple[Field, ...]:
    """The fields for sampling, of every route that generates."""
    text = limits.prompt_characters
    return (
        Field(
            name="seed",
            sort="whole",
            least=0,
            most=MAX_SEED,
            ours=True,
            help="the same seed gives the same result; random by default",
        ),
        Field(
            name="guidance_scale",
            sort="number",
            least=0,
            most=100,
            ours=True,
            help="how strongly to follow the prompt, if the sampler has guidance",
        ),
        Field(
            name="negative_prompt",
            sort="text",
            most=text,
            ours=True,
            help="what the picture should not show, if the sampler has guidance",
        ),
        Field(
            name="sampler",
            sort="text",
            most=100,
            ours=True,
            help="name of a sampler, instead of the model's",
        ),
        Field(
            name="sampling",
            sort="object",
            ours=True,
            help="other keys of the sampler, such as temperature: numbers, flags and choices",
        ),
        Field(
            name="candidates",
            sort="whole",
            least=1,
            most=limits.candidates,
            ours=True,
            help="candidates per returned result; the best one is returned",
        ),
        Field(
            name="reranker",
            sort="text",
            most=100,
            ours=True,
            help="name of a reranker, instead of the model's",
        ),
        Field(
            name="num_retrieved",
            sort="whole",
            least=0,
            most=64,
            ours=True,
            help="number of documents to retrieve and prepend",
        ),
        Field(
            name="max_codes",
            sort="whole",
            least=2,
            most=2**31 - 1,
            ours=True,
            help="maximum number of codes of each picture, for models whose pictures are sequences",
        ),
        Field(
            name="documents",
            sort="list",
            most=limits.pictures,
            ours=True,
            help='documents to prepend: [{"image_url": "data:...", "text": "..."}]',
        ),
        Field(
            name="return_documents",
            sort="flag",
            ours=True,
            help="also return the pictures of the prepended documents; for a text, the documents",
        ),
        Field(
            name="truncate",
            sort="flag",
            ours=True,
            help="cut a prompt that is longer than the training texts instead of refusing it; leave out "
            "the oldest turns of a conversation that is too long",
        ),
        Field(
            name="num_inference_steps",
            sort="whole",
            least=1,
            most=10_000,
            ours=True,
            ignored=True,
            help="ignored; accepted for clients of diffusion models",
        ),
    )


def model_field() -> Field:
    """The field of routes that use a model."""
    return Field(
        name="model", sort="text", most=300, help="one of /v1/models; the first by default"
    )


def draw_field() -> Field:
    """The field of routes that draw prompts."""
    return Field(
        name="draw",
        sort="flag",
        ours=True,
        help="draw even what the memory has; false: a thing that it has in the style that is asked for is answered with the "
        "original, for models that find originals",
    )


def picture_fields(limits: Limits) -> tuple[Field, ...]:
    """The fields of both routes of the Images API."""
    return (
        Field(
            name="return_svg",
            sort="flag",
            ours=True,
            help="also return each picture as an SVG: the drawing that the model wrote, or the picture traced",
        ),
        model_field(),
        Field(
            name="n",
            sort="whole",
            least=1,
            most=limits.number,
            help="number of pictures; 1 by default",
        ),
        Field(
            name="size",
            sort="text",
            most=20,
            help="auto, the model's own size, or WIDTHxHEIGHT in its aspect ratio",
        ),
        Field(
            name="quality",
            sort="choice",
            choices=("auto", "low", "medium", "standard", *HIGH),
            help=f"high: the best of {HIGH_QUALITY} candidates, if the model can choose",
        ),
        Field(
            name="output_format",
            sort="choice",
            choices=("png", "jpeg", "webp"),
            help="format of the pictures; PNG carries prompt, seed and model as text",
        ),
        Field(
            name="output_compression",
            sort="whole",
            least=0,
            most=100,
            help="quality of JPEG and WebP in percent",
        ),
        Field(
            name="background",
            sort="choice",
            choices=("auto", "opaque", "transparent"),
            help="transparent: the white around the drawing becomes transparent (PNG, WebP)",
        ),
        Field(
            name="response_format",
            sort="choice",
            choices=("b64_json", "url"),
            help="url: as a data: URL, nothing is stored",
        ),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(
            name="partial_images",
            sort="whole",
            least=0,
            most=256,
            help="with stream: previews of each picture, with the rows finished so far",
        ),
        Field(
            name="moderation",
            sort="choice",
            choices=("auto", "low"),
            ignored=True,
            help="there is none here",
        ),
        Field(
            name="style",
            sort="choice",
            choices=("vivid", "natural"),
            ignored=True,
            help="put the style into the prompt instead",
        ),
        Field(name="user", sort="text", most=512, ignored=True, help="your id of the end user"),
        Field(
            name="safety_identifier",
            sort="text",
            most=512,
            ignored=True,
            help="your id of the end user",
        ),
        *sampling_fields(limits),
    )


def generation_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/generations`."""
    prompt = Field(
        name="prompt",
        sort="text",
        most=limits.prompt_characters,
        required=True,
        help="what the picture shows, worded like the training captions",
    )
    return (prompt, draw_field(), *condition_fields(), *picture_fields(limits))


def edit_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/edits`."""
    return (
        Field(
            name="prompt",
            sort="text",
            most=limits.prompt_characters,
            help="with a mask: a caption of the whole picture (without one, the model writes it); "
            "without a mask: an instruction",
        ),
        Field(name="image", sort="picture", help="the picture, as a file in the form"),
        Field(
            name="images",
            sort="list",
            most=limits.pictures,
            help='in JSON: [{"image_url": "data:image/png;base64,..."}]',
        ),
        Field(
            name="mask",
            sort="picture",
            help="a PNG of the same size whose fully transparent pixels are filled; in JSON "
            '{"image_url": "data:..."}',
        ),
        Field(
            name="input_fidelity",
            sort="choice",
            choices=("high", "low"),
            ignored=True,
            help="everything outside the mask stays exactly as it is",
        ),
        *picture_fields(limits),
    )


def chat_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/chat/completions`."""
    return (
        model_field(),
        Field(
            name="messages",
            sort="list",
            most=1000,
            required=True,
            help="the model reads the last user message and the last picture, or all turns if it was "
            "tuned for chat",
        ),
        Field(
            name="modalities",
            sort="list",
            most=4,
            help='["image"]: reply with a picture; ["text"]: with a text',
        ),
        Field(name="n", sort="whole", least=1, most=limits.number, help="number of answers"),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(name="stream_options", sort="object", help="include_usage"),
        Field(
            name="partial_images",
            sort="whole",
            least=0,
            most=3,
            ours=True,
            help="with stream, if the model's layout has turns: previews of each picture, with "
            "the rows finished so far",
        ),
        *(
            Field(name=name, sort="whole", least=1, most=100_000, help="maximum tokens of the text")
            for name in ("max_tokens", "max_completion_tokens")
        ),
        Field(
            name="temperature",
            sort="number",
            least=0,
            most=2,
            help="temperature of the sampler, for text or pictures according to the reply",
        ),
        Field(name="top_p", sort="number", least=0, most=1, help="the sampler's, likewise"),
        *(
            Field(
                name=name,
                sort="number",
                least=0,
                most=0,
                ignored=True,
                help="not supported: only 0, the default of clients that always send it",
            )
            for name in ("frequency_penalty", "presence_penalty")
        ),
        Field(name="user", sort="text", most=512, ignored=True, help="your id of the end user"),
        *sampling_fields(limits),
    )


def structure_fields() -> tuple[Field, ...]:
    """`POST /v1/conditions`."""
    return (
        Field(
            name="condition",
            sort="text",
            most=300,
            required=True,
            ours=True,
            help="condition to extract from the picture: one of `conditions` in /studio/facts, "
            "such as canny",
        ),
        Field(
            name="image_url",
            sort="text",
            required=True,
            ours=True,
            help="the picture, as data:image/png;base64,...",
        ),
        Field(
            name="model",
            sort="text",
            most=300,
            help="one of /v1/models, which will follow the structure; the first by default",
        ),
    )


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
#: Read-only routes: path -> what they return.
READING = {
    "/v1/models": "The served models",
    "/healthz": "Liveness; 503: an engine has stopped or is stuck",
    "/readyz": "Readiness for requests; 503: not ready",
    "/metrics": "Counters for Prometheus",
    "/studio/facts": "The facts about a model in memory that the page shows (?model=NAME); 409: it is not in memory",
}


def schema(endpoints: Sequence[Endpoint], has_token: bool) -> dict[str, Any]:
    """The API's description in OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {
        path: {
            "get": {"summary": summary, "responses": {"200": {"description": "see the summary"}}}
        }
        for path, summary in READING.items()
    }
    for endpoint in endpoints:
        content = {"application/json": {"schema": _object(endpoint.fields, form=False)}}
        if endpoint.forms:
            content["multipart/form-data"] = {"schema": _object(endpoint.fields, form=True)}
        paths.setdefault(endpoint.path, {})["post"] = {
            "summary": endpoint.summary,
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": {
                    "description": "the results; with stream: server-sent events",
                    "content": {"application/json": {}, "text/event-stream": {}},
                },
                "default": {
                    "description": "an error, in the format of OpenAI's API",
                    "content": {"application/json": {"schema": _ERROR}},
                },
            },
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
    """The API's description as a page of plain HTML."""
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
