"""What made the pictures: everything about a model and its settings that may change them, as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from cm3core.config.schema import to_plain
from cm3run.model import Model

_SAMPLER_OPTIONS = ("seed", "num_retrieved", "num_candidates", "reranker", "sampler", "context")


def weights_sha256(model: Model) -> str:
    """Hash of the decoder's tensors, wherever they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.components.decoder.module.state_dict().items()):
        digest.update(name.encode())
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(data.tobytes())
    return digest.hexdigest()


def model_keys(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that differ between models, and may.

    Args:
        model: the model.
        options: keyword arguments of its methods.
    """
    recipe = model.recipe
    sampler = options.get("sampler")
    own = {key: value for key, value in options.items() if key not in _SAMPLER_OPTIONS}
    candidates = options.get("num_candidates") or recipe.generate.num_candidates
    keys: dict[str, Any] = {
        "recipe_hash": recipe.hash,
        "weights_sha256": weights_sha256(model),
        "step": model.step,
        "image_tokenizer": model.components.image_tokenizer.fingerprint,
        "sampler": {
            "name": sampler or recipe.component_names.get("sampler", ""),
            **to_plain(model.sampler_config(sampler, **own)),
        },
        "num_candidates": candidates,
    }
    if candidates > 1:
        keys["reranker"] = options.get("reranker") or recipe.component_names.get("reranker", "")
    keys["num_retrieved"] = num_retrieved(model, options)
    if keys["num_retrieved"] and recipe.retriever is not None:
        keys["retriever"] = {
            "name": recipe.component_names.get("retriever", ""),
            **to_plain(recipe.retriever),
        }
        keys["memory"] = model.components.memory.content_fingerprint
        if recipe.retriever.bank is None and recipe.dataset is not None:
            keys["memory_split"] = model.components.memory_split or recipe.dataset.split
    return keys


def num_retrieved(model: Model, options: Mapping[str, Any]) -> int:
    """Documents that are retrieved for a prompt, at most."""
    config, asked = model.recipe.retriever, options.get("num_retrieved")
    if asked is not None:
        return int(asked)
    if config is None or not model.recipe.generate.retrieve:
        return 0
    return config.num_retrieved
