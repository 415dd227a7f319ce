"""Emu3.5's weights, in BAAI's format, converted to a model of this framework.

Names, ids, prompts and defaults: BAAI's `modeling_emu3.py`, `tokenization_emu3.py`, `generation_utils.py` and
`example_config_t2i.py` (baaivision/Emu3.5, Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import recipe_from_yaml
from cm3published.convert.cm3 import (
    RESERVE,
    TokenizerFiles,
    check_room,
    llama_name,
    llama_section,
    sizes_of_codes,
    write_folder,
)
from cm3published.convert.emu3 import Emu3Files, image_file_of, text_file_of
from cm3published.convert.facts import Facts, read_json
from cm3published.convert.model import Asked
from cm3published.layouts.emu3_5 import EXTRA, PICTURE_START, Emu35LayoutConfig
from cm3published.tasks import EMU3_5_NULL

#: Side in pixels of the square pictures of the example configs.
RESOLUTION = 1024
TASKS: Mapping[str, Any] = {
    "plain": False,
    "tasks": {name: {"name": name} for name in ("emu3_5_draw", "emu3_5_edit")},
}
#: Names of the image tokenizer's file, in search order.
IMAGE_FILES = ("model.ckpt", "model.safetensors")
#: Ids whose distance from the first special id is checked -> that distance.
_ORDER = {
    "<|extra_0|>": EXTRA,
    "<|image token|>": PICTURE_START,
    "<|visual token 000000|>": PICTURE_START + 3,
}


def write_emu3_5(
    model: Emu3Files, folder: Path, tokenizers: tuple[Path, ...], asked: Asked
) -> None:
    """Write a model in this framework's format into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizers: folders to search for the tokenizers' files, in order.
        asked: name and picture size.

    Raises:
        CM3Error: a tokenizer's file is missing or damaged, or belongs to another model.
    """
    registry = load_registry()
    kind, text_file = text_file_of(tokenizers)
    image_file = image_file_of(tokenizers, IMAGE_FILES, "Emu3.5-VisionTokenizer")
    image = sizes_of_codes(image_file, "use the file of Emu3.5's own image tokenizer")
    image |= asked.keys(RESOLUTION)
    first = first_special(kind, text_file)
    codes = Emu35LayoutConfig(first_special=first).first_code
    if codes + image["num_codes"] > model.facts.vocab_size:
        raise CheckpointError(
            str(image_file),
            f"has {image['num_codes']:,} codes, whose ids start at {codes:,}, but the decoder has "
            f"{model.facts.vocab_size:,} ids",
            "use the tokenizers of the same model",
        )
    sections = sections_of(model.facts, kind, image, first)
    recipe = recipe_from_yaml(json.dumps({"name": asked.name, **sections}), registry)
    assert recipe.image_tokenizer is not None
    assert recipe.layout is not None
    grid = recipe.image_tokenizer.grid
    length = recipe.layout.picture_length(grid)
    check_room(grid, length, model.facts.context_length)
    room = max(1, model.facts.context_length - length - RESERVE)
    sections["data"] = {"max_text_tokens": room}
    sections["generate"] |= {"max_text_tokens": min(256, room)}
    recipe = recipe_from_yaml(json.dumps({"name": asked.name, **sections}), registry)
    weights = {llama_name(part): lazy for part, lazy in model.tensors.items()}
    write_folder(folder, recipe, registry, weights, TokenizerFiles(text_file, image_file), TASKS)


def sections_of(
    facts: Facts, text_tokenizer: str, image_tokenizer: Mapping[str, Any], first_special: int
) -> dict[str, Any]:
    """Return the recipe sections of a converted Emu3.5.

    Args:
        facts: sizes of the decoder.
        text_tokenizer: name of the component.
        image_tokenizer: keys of that section besides its name.
        first_special: see `Emu35LayoutConfig`.
    """
    return {
        "text_tokenizer": {"name": text_tokenizer},
        "image_tokenizer": {"name": "ibq", "model": "emu3_5", **image_tokenizer},
        "layout": {
            "name": "emu3_5",
            "first_special": first_special,
            "vocab_size": facts.vocab_size,
        },
        "objective": {"name": "causal"},
        "decoder": {**llama_section(facts), "qk_norm": "rms_norm", "qk_norm_groups": 1},
        "attention": {"name": "by_device"},
        "sampler": {
            "name": "cfg",
            "guidance_scale": 5.0,
            "negative_prompt": EMU3_5_NULL,
            "plausible_top_p": 1.0,
            "top_k": 5120,
            "temperature": 1.0,
            "text_top_k": 1024,
            "text_top_p": 0.9,
            "text_temperature": 1.0,
        },
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "generate": {"num_images": 1, "retrieve": False},
    }


def first_special(kind: str, text_file: Path) -> int:
    """Return the id of `<|endoftext|>`: the number of ranks in a `.tiktoken` file, or stated by `tokenizer.json`.

    Raises:
        CheckpointError: the file's special tokens have another order than BAAI's.
    """
    if kind == "tiktoken":
        return sum(1 for line in text_file.read_bytes().splitlines() if line.strip())
    added = read_json(text_file).get("added_tokens")
    ids = {
        one["content"]: one["id"]
        for one in (added if isinstance(added, list) else ())
        if isinstance(one, dict) and {"content", "id"} <= one.keys()
    }
    first = ids.get("<|endoftext|>")
    if not isinstance(first, int) or any(
        ids.get(name) != first + distance for name, distance in _ORDER.items()
    ):
        raise CheckpointError(
            str(text_file),
            f"does not list {', '.join(['<|endoftext|>', *_ORDER])} in BAAI's order",
            "use emu3.tiktoken, which is published with Emu3.5's code",
        )
    return first
