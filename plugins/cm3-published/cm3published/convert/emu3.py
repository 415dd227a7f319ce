"""Emu3's weights, in BAAI's or transformers' format, converted to a model of this framework; `open_emu3` opens Emu3.5's,
too, which `emu3_5.py` writes.

Names, ids and defaults: transformers' `Emu3ForConditionalGeneration` and `Emu3Processor`, and BAAI's
`configuration_emu3.py`, `processing_emu3.py` and README (baaivision/Emu3), all Apache-2.0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
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
from cm3published.convert.facts import Facts, from_emu3, read_json
from cm3published.convert.hugging_face import CONFIG, files_of, lazy_of
from cm3published.convert.model import Asked, ModelFiles, check_names
from cm3published.convert.names import Lazy, parts

LICENCE = "Emu3's weights are published under Apache-2.0. A converted copy is under it too."
#: `ModelFiles.form` of Emu3.5.
EMU3_5 = "emu3.5"
#: Prefix of the decoder in transformers: since version 5, and before.
_PREFIXES = (
    ("model.text_model.", "model."),
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model."),
)
#: Prefix of the image tokenizer in transformers.
_IMAGE_PREFIXES = ("model.vqmodel.", "vqmodel.")
#: Keys of the layout -> name of the token, and key of BAAI's config.
_TOKENS = {
    "begin": ("<|extra_203|>", "bos_token_id"),
    "padding": ("<|endoftext|>", "pad_token_id"),
    "end": ("<|extra_204|>", "eos_token_id"),
    "picture_begin": ("<|image start|>", "boi_token_id"),
    "picture_end": ("<|image end|>", "eoi_token_id"),
    "picture_start": ("<|image token|>", "img_token_id"),
    "row_end": ("<|extra_200|>", "eol_token_id"),
    "frame_end": ("<|extra_201|>", "eof_token_id"),
}
_CODE = re.compile(r"<\|visual token (\d+)\|>")
#: Negative prompt from Emu3-Gen's README.
NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
#: Side in pixels of Emu3-Gen's pictures, if BAAI's config has no `image_area`, and the minimum with which
#: Emu3-Chat reads pictures.
RESOLUTION, CHAT_RESOLUTION = 720, 512
TASKS: Mapping[str, Any] = {"plain": False, "tasks": {"t2i": {"name": "t2i"}}}
CHAT_TASKS: Mapping[str, Any] = {
    "plain": False,
    "tasks": {"caption": {"name": "emu3_caption"}, "ask": {"name": "emu3_question"}},
}
#: Text before Emu3-Chat's answers, and maximum tokens of an answer.
_ANSWER, _LONGEST_ANSWER = " ASSISTANT:", 1024
#: Prefix of the image tokenizer while it is read.
_TEMPORARY = "image-tokenizer.safetensors"


@dataclass(frozen=True)
class Emu3Files(ModelFiles):
    """An opened Emu3 or Emu3.5.

    Args:
        config: its `config.json`.
        image_tensors: tensors of the image tokenizer, with transformers' names; {}: it has a separate
            file.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    image_tensors: Mapping[str, Lazy] = field(default_factory=dict)


def is_emu3(folder: Path) -> bool:
    """Whether a folder holds an Emu3 or Emu3.5."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        return str(read_json(folder / CONFIG).get("model_type")).lower() == "emu3"
    except CheckpointError:
        return False  # opening it as another model reports the error


def open_emu3(folder: Path, stack: ExitStack) -> Emu3Files:
    """Open a folder in BAAI's or transformers' format; files stay open as long as `stack`. Emu3.5 has the same
    configuration, but normalises queries and keys.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    config = read_json(folder / CONFIG)
    owners, files = files_of(folder, stack)
    is_emu3_5 = any(name.endswith(".q_norm.weight") for name in owners)
    facts = from_emu3(config, str(folder / CONFIG), rms_norms=is_emu3_5)
    image = {name for name in owners if name.startswith(_IMAGE_PREFIXES)}
    names = {_plain(name): name for name in owners if name not in image}
    wanted = parts(facts)
    check_names(str(folder), names, [part.hugging_face for part in wanted])
    tensors = {
        part.hugging_face: lazy_of(
            part, owners[names[part.hugging_face]], facts.num_key_heads, names[part.hugging_face]
        )
        for part in wanted
    }
    image_tensors = {}
    for name in sorted(image):
        file = owners[name]
        entry = file.entries[name]
        if not entry.dtype.is_floating_point:
            continue  # BatchNorm's counters
        image_tensors[name] = Lazy(entry.shape, entry.dtype, partial(file.tensor, name))
    return Emu3Files(
        EMU3_5 if is_emu3_5 else "emu3",
        facts,
        tensors,
        {},
        dict.fromkeys(files),
        licence=LICENCE.replace("Emu3", "Emu3.5") if is_emu3_5 else LICENCE,
        config=config,
        image_tensors=image_tensors,
    )


def _plain(name: str) -> str:
    for prefix, plain in _PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def write_emu3(
    model: Emu3Files,
    folder: Path,
    tokenizers: tuple[Path, ...],
    asked: Asked,
    *,
    chat: bool = False,
) -> None:
    """Write a model in this framework's format into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizers: folders to search for the tokenizers' files, in order.
        asked: name and picture size.
        chat: whether it is Emu3-Chat, which writes about pictures; otherwise it generates pictures.

    Raises:
        CM3Error: a tokenizer's file is missing or damaged, or belongs to another model.
    """
    from cm3run.checkpoint.tensors import write_tensors

    registry, name = load_registry(), asked.name
    kind, text_file = text_file_of(tokenizers)
    temporary = folder / _TEMPORARY
    image_file = temporary
    if model.image_tensors:
        write_tensors(temporary, model.image_tensors)
    else:
        image_file = image_file_of(tokenizers, ("model.safetensors",), "Emu3-VisionTokenizer")
    try:
        image = sizes_of_codes(image_file, "use the file of Emu3's own image tokenizer")
        default = CHAT_RESOLUTION if chat else _drawn(model.config, image["downsampling"])
        image |= asked.keys(default)
        layout = _layout(model, kind, text_file, image["num_codes"])
        sections = sections_of(model.facts, kind, image, layout, chat=chat, picture_length=0)
        first = recipe_from_yaml(json.dumps({"name": name, **sections}), registry, label=name)
        assert first.layout is not None
        assert first.image_tokenizer is not None
        grid = first.image_tokenizer.grid
        length = first.layout.picture_length(grid)
        check_room(grid, length, model.facts.context_length)
        sections = sections_of(model.facts, kind, image, layout, chat=chat, picture_length=length)
        recipe = recipe_from_yaml(json.dumps({"name": name, **sections}), registry, label=name)
        weights = {llama_name(part): lazy for part, lazy in model.tensors.items()}
        tasks = CHAT_TASKS if chat else TASKS
        files = TokenizerFiles(text_file, image_file)
        write_folder(folder, recipe, registry, weights, files, tasks)
    finally:
        temporary.unlink(missing_ok=True)


def sections_of(
    facts: Facts,
    text_tokenizer: str,
    image_tokenizer: Mapping[str, Any],
    layout: Mapping[str, int],
    *,
    chat: bool,
    picture_length: int,
) -> dict[str, Any]:
    """Return the recipe sections of a converted Emu3.

    Args:
        facts: sizes of the decoder.
        text_tokenizer: name of the component.
        image_tokenizer, layout: keys of these sections besides their names.
        chat: see `write_emu3`.
        picture_length: tokens of a picture, including its delimiters.
    """
    room = max(1, facts.context_length - picture_length - RESERVE)
    longest = min(_LONGEST_ANSWER if chat else 256, room)
    return {
        "text_tokenizer": {"name": text_tokenizer},
        "image_tokenizer": {"name": "emu3", **image_tokenizer},
        "layout": {
            "name": "emu3",
            "vocab_size": facts.vocab_size,
            **layout,
            **({"answer": _ANSWER} if chat else {}),
        },
        "objective": {"name": "causal"},
        "decoder": {**llama_section(facts), "qk_norm": "none"},
        "attention": {"name": "by_device"},
        "sampler": {
            "name": "cfg",
            "guidance_scale": 3.0,
            "negative_prompt": NEGATIVE_PROMPT,
            "plausible_top_p": 1.0,
            "top_k": 2048,
            "temperature": 1.0,
            # as published, texts are decoded greedily
            **({"text_temperature": 0.0} if chat else {}),
        },
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"max_text_tokens": longest, "num_images": 1, "retrieve": False},
    }


def _drawn(config: Mapping[str, Any], downsampling: int) -> int:
    """Return the side in pixels of the model's square pictures, from BAAI's `image_area`."""
    area = config.get("image_area", RESOLUTION**2)
    if isinstance(area, bool) or not isinstance(area, int) or not 0 < area < 2**28:
        raise CheckpointError(
            CONFIG, f"image_area is {area!r}, must be a number of pixels", "copy it again"
        )
    return max(1, round(math.sqrt(area) / downsampling)) * downsampling


def text_file_of(folders: tuple[Path, ...]) -> tuple[str, Path]:
    """Return the text tokenizer's component and file."""
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return "hf", folder / "tokenizer.json"
        found = sorted(folder.glob("*.tiktoken"))
        if len(found) == 1:
            return "tiktoken", found[0]
    raise CheckpointError(
        str(folders[0]),
        "has no tokenizer.json and no .tiktoken file",
        "pass the folder with the text tokenizer published with the model (--tokenizer)",
    )


def image_file_of(folders: tuple[Path, ...], names: tuple[str, ...], publisher: str) -> Path:
    """Return the image tokenizer's file, which differs from the decoder's: the first of `names` in a folder."""
    for folder in folders:
        for path in (folder / name for name in names):
            if path.is_file() and not is_emu3(folder):
                return path
    raise CheckpointError(
        str(folders[0]),
        f"has no {' or '.join(names)} of {publisher}",
        "put it and the text tokenizer's file in a folder (--tokenizer): BAAI's weights do not include them",
    )


def _layout(model: Emu3Files, kind: str, text_file: Path, num_codes: int) -> dict[str, int]:
    """Return ids from the names in the tokenizer's or config's files, or from BAAI's config."""
    config = dict(model.config)
    place = f"{CONFIG} and {text_file.name}"
    inner = config.get("text_config")
    stated = config | inner if isinstance(inner, dict) else config
    names = config.get("vocabulary_map")
    names = dict(names) if isinstance(names, dict) else {}
    if kind == "hf":
        added = read_json(text_file).get("added_tokens")
        names |= {
            one["content"]: one["id"]
            for one in (added if isinstance(added, list) else ())
            if isinstance(one, dict) and {"content", "id"} <= one.keys()
        }
    layout: dict[str, int] = {}
    for key, (token, of_config) in _TOKENS.items():
        found = names.get(token, stated.get(of_config))
        if found is None and model.facts.vocab_size == 184_622:
            continue  # the published table matches the layout's defaults
        if isinstance(found, bool) or not isinstance(found, int):
            raise CheckpointError(
                place,
                f"don't state the id of {token} ({of_config})",
                "use the files published with the model",
            )
        layout[key] = found
    # without names, codes are the last ids of the table
    codes = {
        int(match[1]): number
        for one, number in names.items()
        if isinstance(one, str) and (match := _CODE.fullmatch(one))
    }
    first = codes.get(0, model.facts.vocab_size - num_codes)
    if codes and codes != {code: first + code for code in range(num_codes)}:
        raise CheckpointError(
            place,
            f"name {len(codes):,} image codes, but the image tokenizer has {num_codes:,}, or they are not "
            "consecutive",
            "use the tokenizers of the same model",
        )
    return {**layout, "first_code": first}
