"""How a request's results are drawn: its fields as keyword arguments of the model."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cm3apps.server.errors import invalid_value
from cm3apps.server.field_tables import HIGH, HIGH_QUALITY
from cm3apps.server.fields import Field, shown
from cm3apps.server.pictures import Upload, from_url
from cm3apps.server.settings import Limits

if TYPE_CHECKING:
    from cm3run.model.model import Model

#: Seeds of requests that name none; small, so that people can repeat them.
MOST_RANDOM = 2**31


def generation_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Model.generate` and its like, without the documents."""
    sampling = dict(values.get("sampling", {}))
    for name in ("guidance_scale", "negative_prompt"):
        if name in values:
            if name in sampling:
                raise invalid_value("sampling", f"{name} is also given by itself")
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
    return options


def documents_of(values: Mapping[str, Any], limits: Limits) -> list[tuple[Upload, str]]:
    """The pictures and texts of `documents`, which are put before the prompt."""
    return [
        _document(one, f"documents[{place}]", limits)
        for place, one in enumerate(values.get("documents", ()))
    ]


def _document(value: Any, place: str, limits: Limits) -> tuple[Upload, str]:
    if not isinstance(value, dict) or set(value) != {"image_url", "text"}:
        raise invalid_value(place, 'must be {"image_url": "data:...", "text": "..."}', "documents")
    text = Field(name=f"{place}.text", sort="text", most=limits.prompt_characters, help="")
    words = text.read(value["text"])
    return from_url(value["image_url"], f"{place}.image_url"), words


def check_sampling(model: Model, options: Mapping[str, Any]) -> None:
    """Raise `APIError` for a key of the sampler that a stranger may not set: a text that is no choice
    may be the name of a file, and nothing of a request reaches the disk."""
    from cm3apps.config_docs import keys_of

    given = options.get("sampling", {})
    texts = {
        name
        for name, value in given.items()
        if name != "negative_prompt" and not isinstance(value, (bool, int, float))
    }
    if not texts:
        return
    name = options.get("sampler")
    config_class: type[Any] = (
        type(model.sampler_config())
        if name in (None, model.recipe.component_names.get("sampler"))
        # the class alone: a key without a default may be among those that are given
        else model.components.registry.config_class("sampler", name, place="sampler")
    )
    choices = {
        key.name for key in keys_of(config_class) if "'" in key.type and "str" not in key.type
    }
    for name in sorted(texts):
        if name not in choices or not isinstance(given[name], str):
            raise invalid_value(
                "sampling",
                f"{shown(name)} is {shown(given[name])}, only numbers, flags and choices "
                "can be set in a request",
            )


def with_quality(
    options: dict[str, Any], quality: str, model: Model, number: int, limits: Limits
) -> dict[str, Any]:
    """The options, with candidates for a high quality, as many as the limits allow."""
    can_choose = "reranker" in model.recipe.component_names
    if quality not in HIGH or "num_candidates" in options or not can_choose:
        return options
    most = max(1, min(HIGH_QUALITY, limits.candidates, limits.at_once // number))
    return options | {"num_candidates": most}
