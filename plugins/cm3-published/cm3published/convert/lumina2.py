"""Lumina-mGPT 2.0's weights converted to a model of this framework: Chameleon's decoder, trained from scratch, with texts of
another tokenizer and codes of MoVQGAN.

Ids, prompts and defaults: `item_processor.py`, `inference_solver.py`, `generate.py` and README
(Alpha-VLLM/Lumina-mGPT-2.0, Apache-2.0).
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
    TEXT_TOKENIZER,
    TokenizerFiles,
    check_room,
    llama_name,
    llama_section,
    sizes_of_codes,
    write_folder,
)
from cm3published.convert.facts import Facts, read_json
from cm3published.convert.model import Asked, ModelFiles

#: `--layout` of the command.
LAYOUT = "lumina2"
LICENCE = (
    "Lumina-mGPT 2.0's code is under Apache-2.0; the licence of its weights is in their model card. "
    "A converted copy is under it too."
)
#: Id of image code 0, and side of the README's pictures in pixels.
FIRST_CODE, RESOLUTION = 155_000, 768
#: Tokens that pad, in search order: one that begins no sequence.
_PADDING = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CONFIG = "tokenizer_config.json"


def write_lumina2(
    model: ModelFiles, folder: Path, tokenizers: tuple[Path, ...], asked: Asked
) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizers: folders to search for `tokenizer.json`, `tokenizer_config.json` and MoVQGAN's file, in order.
        asked: name and picture size.

    Raises:
        CM3Error: a tokenizer's file is missing or damaged, or belongs to another model.
    """
    text = _find(tokenizers, TEXT_TOKENIZER)
    image_file = _find(tokenizers, "movqgan_*.ckpt")
    registry, facts = load_registry(), model.facts
    image = sizes_of_codes(image_file, "use movqgan_270M.ckpt") | asked.keys(RESOLUTION)
    if FIRST_CODE + image["num_codes"] > facts.vocab_size:
        raise CheckpointError(
            "--layout lumina2",
            f"has {image['num_codes']:,} image codes from the id {FIRST_CODE:,} on, but the decoder has "
            f"{facts.vocab_size:,} ids",
            "use it for Lumina-mGPT 2.0 alone: chameleon and lumina are for Chameleon's descendants",
        )
    begin = _begin(_find(tokenizers, _CONFIG))
    sections = {"name": asked.name, **sections_of(facts, image, begin)}
    first = recipe_from_yaml(json.dumps(sections), registry, label=asked.name)
    assert first.layout is not None
    assert first.image_tokenizer is not None
    grid = first.image_tokenizer.grid
    length = first.layout.picture_length(grid)
    check_room(grid, length, facts.context_length)
    room = max(1, facts.context_length - length - RESERVE)
    sections["data"] = {"max_text_tokens": room}
    recipe = recipe_from_yaml(json.dumps(sections), registry, label=asked.name)
    height, width = first.image_tokenizer.image_size
    task = {"name": "lumina_draw", "width": width, "height": height}
    tasks = {"plain": False, "tasks": {"lumina_draw": task}}
    weights = {llama_name(part): lazy for part, lazy in model.tensors.items()}
    write_folder(folder, recipe, registry, weights, TokenizerFiles(text, image_file), tasks)


def sections_of(facts: Facts, image_tokenizer: Mapping[str, Any], begin: str) -> dict[str, Any]:
    """Return the recipe sections of a converted Lumina-mGPT 2.0.

    Args:
        facts: sizes of the decoder.
        image_tokenizer: keys of that section besides its name.
        begin: name of the token before a text.
    """
    return {
        "text_tokenizer": {"name": "hf"},
        "image_tokenizer": {"name": "movq", **image_tokenizer},
        "layout": {
            "name": "lumina",
            "vocab_size": facts.vocab_size,
            "begin": begin,
            "padding": next(one for one in _PADDING if one != begin),
            "codes_per_size": 32 // image_tokenizer["downsampling"],
            "first_code": FIRST_CODE,
        },
        "objective": {"name": "causal"},
        "decoder": {**llama_section(facts), "qk_norm": "layer_norm", "swin_norm": facts.swin_norm},
        "attention": {"name": "by_device"},
        "sampler": {
            "name": "cfg",
            "guidance_scale": 4.0,
            "plausible_top_p": 1.0,
            "top_k": 4096,
            "temperature": 1.0,
        },
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5, "z_loss": 1e-5},
        "generate": {"num_images": 1, "retrieve": False},
    }


def _find(folders: tuple[Path, ...], pattern: str) -> Path:
    """Return the first file with such a name."""
    for folder in folders:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise CheckpointError(
        str(folders[0]),
        f"has no {pattern}",
        "put tokenizer.json and tokenizer_config.json of the weights and MoVQGAN's movqgan_270M.ckpt into a folder "
        "(--tokenizer)",
    )


def _begin(path: Path) -> str:
    """Return the token before a text: the tokenizer's `bos_token`, or without one its `eos_token`."""
    config = read_json(path)
    for key in ("bos_token", "eos_token"):
        stated = config.get(key)
        name = stated.get("content") if isinstance(stated, dict) else stated
        if isinstance(name, str) and name:
            return name
    raise CheckpointError(str(path), "states neither bos_token nor eos_token", "copy it again")
