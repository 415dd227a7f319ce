"""The fields of each route, and what a body of them asks for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cm3apps.server.conditions import condition_fields
from cm3apps.server.errors import APIError
from cm3apps.server.fields import Field, shown
from cm3apps.server.pictures import Output, Upload, from_url
from cm3apps.server.settings import Limits

if TYPE_CHECKING:
    from cm3core.model.model import Model

MAX_SEED = 2**63 - 1
#: Seeds of requests that name none; small, so that people can repeat them.
MOST_RANDOM = 2**31
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
#: Candidates at the quality "high", where the model can choose among them.
HIGH_QUALITY = 4
HIGH = ("high", "hd", "xhigh", "max")


def sampling_fields(limits: Limits) -> tuple[Field, ...]:
    """How results are drawn: in every route that generates."""
    text = limits.prompt_characters
    return (
        Field(name="seed", sort="whole", least=0, most=MAX_SEED, ours=True,
              help="the same seed gives the same result; by default another one each time"),
        Field(name="guidance_scale", sort="number", least=0, most=100, ours=True,
              help="how strongly the prompt counts, where the sampler has guidance"),
        Field(name="negative_prompt", sort="text", most=text, ours=True,
              help="what the picture should not show, where the sampler has guidance"),
        Field(name="sampler", sort="text", most=100, ours=True,
              help="name of another sampler than the model's"),
        Field(name="sampling", sort="object", ours=True,
              help="other keys of the sampler, such as temperature: numbers, flags and choices"),
        Field(name="candidates", sort="whole", least=1, most=limits.candidates, ours=True,
              help="results that are generated for each one returned; the best is chosen"),
        Field(name="reranker", sort="text", most=100, ours=True,
              help="name of another reranker than the model's"),
        Field(name="num_retrieved", sort="whole", least=0, most=64, ours=True,
              help="documents that are retrieved and prepended"),
        Field(name="documents", sort="list", most=limits.pictures, ours=True,
              help='documents to prepend: [{"image_url": "data:...", "text": "..."}]'),
        Field(name="return_documents", sort="flag", ours=True,
              help="also return the documents that were prepended, with their pictures"),
        Field(name="truncate", sort="flag", ours=True,
              help="cut a prompt that is longer than the training texts instead of refusing it; of a "
              "conversation, leave out the oldest turns"),
        Field(name="num_inference_steps", sort="whole", least=1, most=10_000, ours=True,
              ignored=True, help="accepted for clients of diffusion models, which have steps"),
    )  # fmt: skip


def picture_fields(limits: Limits) -> tuple[Field, ...]:
    """What both routes of the Images API have."""
    return (
        Field(name="model", sort="text", most=300, help="one of /v1/models; the first by default"),
        Field(name="n", sort="whole", least=1, most=limits.number,
              help="how many pictures; 1 by default"),
        Field(name="size", sort="text", most=20,
              help="auto, the model's own size, or WIDTHxHEIGHT in its aspect ratio"),
        Field(name="quality", sort="choice",
              choices=("auto", "low", "medium", "standard", *HIGH),
              help=f"high: the best of {HIGH_QUALITY} candidates, if the model can choose"),
        Field(name="output_format", sort="choice", choices=("png", "jpeg", "webp"),
              help="of the pictures; PNG carries prompt, seed and model as text"),
        Field(name="output_compression", sort="whole", least=0, most=100,
              help="quality of JPEG and WebP in percent"),
        Field(name="background", sort="choice", choices=("auto", "opaque", "transparent"),
              help="transparent: the white around the drawing is removed (PNG, WebP)"),
        Field(name="response_format", sort="choice", choices=("b64_json", "url"),
              help="url: as a data: URL, nothing is stored"),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(name="partial_images", sort="whole", least=0, most=256,
              help="with stream: pictures of the rows finished so far, before each final one"),
        Field(name="moderation", sort="choice", choices=("auto", "low"), ignored=True,
              help="there is none here"),
        Field(name="style", sort="choice", choices=("vivid", "natural"), ignored=True,
              help="write the style into the prompt"),
        Field(name="user", sort="text", most=512, ignored=True, help="your name for your user"),
        Field(name="safety_identifier", sort="text", most=512, ignored=True,
              help="your name for your user"),
        *sampling_fields(limits),
    )  # fmt: skip


def generation_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/generations`."""
    prompt = Field(name="prompt", sort="text", most=limits.prompt_characters, required=True,
                   help="what the picture shows, worded like the training captions")  # fmt: skip
    return (prompt, *condition_fields(), *picture_fields(limits))


def edit_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/edits`."""
    return (
        Field(name="prompt", sort="text", most=limits.prompt_characters,
              help="with a mask: what the whole picture should show (none: the model describes it); "
              "without: an instruction"),
        Field(name="image", sort="picture", help="the picture, as a file of the form"),
        Field(name="images", sort="list", most=limits.pictures,
              help='in JSON: [{"image_url": "data:image/png;base64,..."}]'),
        Field(name="mask", sort="picture",
              help="a PNG of the same size whose fully transparent pixels are filled; in JSON "
              '{"image_url": "data:..."}'),
        Field(name="input_fidelity", sort="choice", choices=("high", "low"), ignored=True,
              help="what is not masked stays exactly as it is"),
        *picture_fields(limits),
    )  # fmt: skip


def chat_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/chat/completions`."""
    return (
        Field(name="model", sort="text", most=300, help="one of /v1/models; the first by default"),
        Field(name="messages", sort="list", most=1000, required=True,
              help="the last message of the user counts, and the last picture before its end; all turns "
              "where the model was tuned for chat"),
        Field(name="modalities", sort="list", most=4,
              help='["image"]: answer with a picture; ["text"]: with a text'),
        Field(name="n", sort="whole", least=1, most=limits.number, help="how many answers"),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(name="stream_options", sort="object", help="include_usage"),
        Field(name="partial_images", sort="whole", least=0, most=3, ours=True,
              help="with stream, where the model's layout has turns: pictures of the rows finished so "
              "far, before each final one"),
        Field(name="max_tokens", sort="whole", least=1, most=100_000,
              help="most tokens of a text"),
        Field(name="max_completion_tokens", sort="whole", least=1, most=100_000,
              help="most tokens of a text"),
        Field(name="temperature", sort="number", least=0, most=2,
              help="of the sampler: of texts for a text, of pictures for a picture"),
        Field(name="top_p", sort="number", least=0, most=1, help="of the sampler, as temperature"),
        *(
            Field(name=name, sort="number", least=0, most=0, ignored=True,
                  help="there is none: only the default of clients that always send it, 0")
            for name in ("frequency_penalty", "presence_penalty")
        ),
        Field(name="user", sort="text", most=512, ignored=True, help="your name for your user"),
        *sampling_fields(limits),
    )  # fmt: skip


def generation_options(values: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Keyword arguments of `Model.generate` and its like."""
    sampling = dict(values.get("sampling", {}))
    for name in ("guidance_scale", "negative_prompt"):
        if name in values:
            if name in sampling:
                raise APIError(
                    400, f"sampling: {name} is also given by itself", param="sampling",
                    code="invalid_value",
                )  # fmt: skip
            sampling[name] = values[name]
    options: dict[str, Any] = {"seed": values.get("seed", secrets.randbelow(MOST_RANDOM))}
    for name, option in (
        ("sampler", "sampler"),
        ("candidates", "num_candidates"),
        ("reranker", "reranker"),
        ("num_retrieved", "num_retrieved"),
    ):
        if name in values:
            options[option] = values[name]
    if sampling:
        options["sampling"] = sampling
    if "documents" in values:
        options["context"] = [
            _document(one, f"documents[{place}]", limits)
            for place, one in enumerate(values["documents"])
        ]
    return options


def _document(value: Any, place: str, limits: Limits) -> tuple[Any, str]:
    if not isinstance(value, dict) or set(value) != {"image_url", "text"}:
        raise APIError(
            400, f'{place}: must be {{"image_url": "data:...", "text": "..."}}', param="documents",
            code="invalid_value",
        )  # fmt: skip
    text = Field(name=f"{place}.text", sort="text", most=limits.prompt_characters, help="")
    words = text.read(value["text"])
    return from_url(value["image_url"], f"{place}.image_url").pixels(limits.picture_pixels), words


def check_sampling(model: Model, options: Mapping[str, Any]) -> None:
    """Raise `APIError` for a key of the sampler that a stranger may not set: a text that is no choice
    may be the name of a file, and nothing of a request reaches the disk."""
    from cm3core.config.docs import keys_of

    given = options.get("sampling", {})
    texts = {
        name
        for name, value in given.items()
        if name != "negative_prompt" and not isinstance(value, (bool, int, float))
    }
    if not texts:
        return
    config = model.sampler_config(options.get("sampler"))
    choices = {
        key.name for key in keys_of(type(config)) if "'" in key.type and "str" not in key.type
    }
    for name in sorted(texts):
        if name not in choices or not isinstance(given[name], str):
            raise APIError(
                400,
                f"sampling: {shown(name)} is {shown(given[name])}, only numbers, flags and choices "
                "can be set in a request",
                param="sampling",
                code="invalid_value",
            )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How the pictures of a request are to be returned, and what their answer says about it."""

    output: Output
    upscale: bool
    size: str
    quality: str
    background: str
    as_url: bool
    with_documents: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], model: Model, limits: Limits) -> Wish:
        """Read the fields; raises `APIError` for a size that the model's pictures can't have."""
        format = values.get("output_format", "png")
        background = values.get("background", "auto")
        if background == "transparent" and format == "jpeg":
            raise APIError(
                400, "background: JPEG can't be transparent; use png or webp", param="background",
                code="invalid_value",
            )  # fmt: skip
        height, width = model.image_size
        size = _size(values.get("size", "auto"), (width, height), limits)
        larger = size is not None and size[0] > width
        return cls(
            output=Output(
                format=format,
                quality=values.get("output_compression", 100),
                size=size,
                transparent=background == "transparent",
            ),
            upscale=larger and "upscaler" in model.recipe.component_names,
            size="{}x{}".format(*(size or (width, height))),
            quality=values.get("quality", "auto"),
            background=background,
            as_url=values.get("response_format") == "url",
            with_documents=values.get("return_documents", False),
        )


def _size(text: str, own: tuple[int, int], limits: Limits) -> tuple[int, int] | None:
    """The size asked for; None: the model's own."""
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    fits = match is not None and max(width, height) <= limits.side
    if not fits or abs(width * own[1] - height * own[0]) >= max(own):
        raise APIError(
            400,
            f"size: is {shown(text)}, must be auto, {own[0]}x{own[1]} (the model's own), or another "
            f"size in this aspect ratio with sides of at most {limits.side}",
            param="size",
            code="invalid_value",
        )
    return width, height


def with_quality(
    options: dict[str, Any], quality: str, model: Model, number: int, limits: Limits
) -> dict[str, Any]:
    """The options, with candidates for a high quality, as many as the limits allow."""
    can_choose = "reranker" in model.recipe.component_names
    if quality not in HIGH or "num_candidates" in options or not can_choose:
        return options
    most = max(1, min(HIGH_QUALITY, limits.candidates, limits.at_once // number))
    return options | {"num_candidates": most}


def pictures_of(values: Mapping[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> list[Upload]:
    """The pictures of an edit: files of the form, or `images` of JSON."""
    found = [*uploads.get("image", ())]
    if "image" in values:
        found.append(_referred(values["image"], "image"))
    for place, one in enumerate(values.get("images", [])):
        found.append(_referred(one, f"images[{place}]"))
    return found


def mask_of(values: Mapping[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> Upload | None:
    """The mask of an edit."""
    if "mask" in values:
        return _referred(values["mask"], "mask")
    return next(iter(uploads.get("mask", ())), None)


def _referred(value: Any, place: str) -> Upload:
    if isinstance(value, dict) and "file_id" in value:
        raise APIError(
            400, f"{place}: file_id names a stored file, and this server stores none; send the "
            "picture itself", param=place, code="invalid_value",
        )  # fmt: skip
    return from_url(value.get("image_url") if isinstance(value, dict) else value, place)
