"""The model of this framework that is made of a Janus."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import CheckpointError
from cm3core.recipe import recipe_from_yaml
from cm3published.convert.cm3 import RESERVE, text_file, write_folder
from cm3published.convert.janus.facts import JanusFacts
from cm3published.convert.janus.reading import JanusFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


def recipe_of(
    facts: JanusFacts,
    registry: Registry,
    *,
    name: str,
    resolution: int,
    layout: Mapping[str, str],
) -> Recipe:
    """The recipe of a converted Janus; `layout`: keys of that section besides name and first code."""
    grid = resolution // facts.downsampling
    room = max(1, facts.decoder["context_length"] - grid * grid - 2 - 2 * RESERVE)
    sections: dict[str, Any] = {
        "name": name,
        "text_tokenizer": {"name": "hf"},
        "image_tokenizer": {
            "name": "llamagen",
            "num_codes": facts.num_codes,
            "downsampling": facts.downsampling,
            "resolution": resolution,
        },
        "layout": {"name": "janus", "first_code": facts.num_text, **layout},
        "objective": {"name": "causal"},
        "decoder": {"name": "llama", "qk_norm": "none", **facts.decoder},
        "attention": {"name": "by_device"},
        # as its own example draws
        "sampler": {
            "name": "cfg",
            "guidance_scale": 5.0,
            "temperature": 1.0,
            "plausible_top_p": 1.0,
        },
        # nothing was trained here; for whoever trains on
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"max_text_tokens": min(256, room), "num_images": 1, "retrieve": False},
    }
    return recipe_from_yaml(json.dumps(sections), registry, label=name)


def write_janus(
    model: JanusFiles,
    folder: Path,
    tokenizer: Path,
    *,
    name: str,
    resolution: int | None,
    roles: tuple[str, str] | None,
) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: what to write.
        folder: is there.
        tokenizer: folder with `tokenizer.json`.
        name: of the recipe.
        resolution: of pictures, in pixels; None: the one that `config.json` states.
        roles: names of who asks and who answers; None: those of Janus-Pro.

    Raises:
        CM3Error: a tokenizer is missing, damaged, or of another model.
    """
    from safetensors.torch import save_file

    from cm3core.plugins.discovery import load_registry

    registry, facts = load_registry(), model.facts
    layout = dict(model.tags)
    if roles is not None:
        user, assistant = roles
        layout |= {"request": f"{user}:", "answer": f"\n\n{assistant}:"}
    recipe = recipe_of(
        facts, registry, name=name, resolution=resolution or facts.resolution, layout=layout
    )
    assert recipe.image_tokenizer is not None
    assert recipe.layout is not None
    length = recipe.layout.picture_length(recipe.image_tokenizer.grid)
    if length + 2 * RESERVE > facts.decoder["context_length"]:
        raise CheckpointError(
            "--resolution",
            f"a picture takes {length:,} tokens, and the decoder reads "
            f"{facts.decoder['context_length']:,}",
            "give a smaller one",
        )
    text = text_file(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "image_tokenizer.safetensors"
        save_file(
            {part: lazy.read().contiguous() for part, lazy in model.image_tokenizer.items()},
            weights,
        )
        write_folder(folder, recipe, registry, model.tensors, text, weights, None)
