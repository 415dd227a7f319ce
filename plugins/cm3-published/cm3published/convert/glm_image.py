"""The first stage of GLM-Image, in transformers' format, converted to a model of this framework.

Names and sizes: transformers' `GlmImageForConditionalGeneration` and its configs; folders and defaults: diffusers'
`GlmImagePipeline` (both Apache-2.0) and the README of zai-org/GLM-Image.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, CM3Error
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.registry import Registry
from cm3core.recipe import Recipe, recipe_from_yaml
from cm3plugins.trained.tensor_files import TensorFile
from cm3published.convert.cm3 import RESERVE, TokenizerFiles, check_room, text_file, write_folder
from cm3published.convert.facts import MOST_LAYERS, Sizes, read_json
from cm3published.convert.hugging_face import CONFIG, files_of
from cm3published.convert.model import (
    Asked,
    check_finite,
    check_names,
    check_shape,
    check_type,
    recipe_name,
    write_new_folder,
)
from cm3published.convert.names import Lazy
from cm3published.glm_grids import grids_of
from cm3published.image_tokenizers.glm_image import PREFIXES

LICENCE = (
    "GLM-Image's weights are published under the MIT licence. A converted copy is under it too."
)
#: Folders of the published pipeline: the first stage, and its tokenizer.
STAGE, PROCESSOR = "vision_language_encoder", "processor"
#: Side in pixels of the pictures of its README, and the longest sequence for which a recipe makes room: the model's own
#: is far longer than any picture.
RESOLUTION, CONTEXT_LENGTH = 1024, 8192
#: Keys of the layout -> name of the token.
_TOKENS = {"padding": "<|endoftext|>", "size_begin": "<sop>", "size_end": "<eop>"}
_DECODER = "model.language_model."
#: Of a layer: transformers' name -> the decoder's; queries and keys are permuted, and `gate_up_proj` is split.
_LAYER = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "o_proj",
    "mlp.down_proj": "down_proj",
    "input_layernorm": "attention_norm",
    "post_self_attn_layernorm": "attention_post_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "ffn_post_norm",
}
#: Tensor of the image tokenizer that only the second stage's training needs.
_UNUSED = "vqmodel.post_quant_conv."


@dataclass(frozen=True)
class GlmFacts:
    """Sizes in a `config.json`.

    Args:
        decoder: keys of the recipe's section.
        rotated: dimensions of a head that are rotated.
        num_codes, first_text, begin, end, vocab_size: see the layout.
        num_heads, norm_eps: of the image tokenizer.
    """

    decoder: Mapping[str, Any]
    rotated: int
    num_codes: int
    first_text: int
    begin: int
    end: int
    vocab_size: int
    num_heads: int
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """Dimension of a head."""
        size: int = self.decoder["head_dim"]
        return size


def facts_of(config: Mapping[str, Any], place: str) -> GlmFacts:
    """Return the facts in a config; raises `CheckpointError` for one that is not GLM-Image's."""
    sizes = Sizes(config, place)
    text, vision = sizes.inside("text_config"), sizes.inside("vision_config")
    rope = text.inside("rope_parameters")
    kind = rope.values.get("rope_type", "default")
    if kind != "default" or not text.flag("attention_bias", True):
        raise text.wrong(
            "text_config", "scales its positions or has no biases, which GLM-Image does not"
        )
    if sizes.flag("tie_word_embeddings", False) or vision.whole("spatial_merge_size", 1) != 1:
        raise sizes.wrong("tie_word_embeddings", "or spatial_merge_size is not GLM-Image's")
    heads, width = text.whole("num_attention_heads", 32), text.whole("hidden_size", 4096)
    head_dim = text.whole("head_dim", width // max(1, heads))
    part = rope.number("partial_rotary_factor", text.number("partial_rotary_factor", 1.0))
    rotated = int(head_dim * part)
    sections = rope.values.get("mrope_section", [8, 12, 12])
    if not (
        isinstance(sections, list)
        and len(sections) == 3
        and all(isinstance(one, int) and one >= 0 for one in sections)
        and 2 * sum(sections) == rotated
    ):
        raise rope.wrong("mrope_section", f"is {sections!r}, must be three parts of {rotated // 2}")
    num_layers = text.whole("num_hidden_layers", 40)
    decoder = {
        "context_length": min(CONTEXT_LENGTH, text.whole("max_position_embeddings", 131_072)),
        "num_layers": num_layers,
        "d_model": width,
        "num_heads": heads,
        "num_key_heads": text.whole("num_key_value_heads", 2),
        "head_dim": head_dim,
        "d_ff": text.whole("intermediate_size", 13_696),
        "rope_theta": rope.number("rope_theta", text.number("rope_theta", 10_000.0)),
        "norm_eps": text.number("rms_norm_eps", 1e-5),
        "sections": sections,
        "head_ids": text.whole("vision_vocab_size", 16_512),
    }
    if not 0 < num_layers <= MOST_LAYERS or head_dim < 2 or heads < 1:
        raise text.wrong("text_config", f"states impossible sizes: {decoder}")
    return GlmFacts(
        decoder,
        rotated,
        num_codes=sizes.inside("vq_config").whole("num_embeddings", 16_384),
        first_text=text.whole("vision_vocab_size", 16_512),
        begin=sizes.whole("image_start_token_id", 16_384),
        end=sizes.whole("image_end_token_id", 16_385),
        vocab_size=text.whole("vocab_size", 168_064),
        num_heads=vision.whole("num_heads", 16),
        norm_eps=vision.number("layer_norm_eps", 1e-6),
    )


def _order(head_dim: int, rotated: int) -> Tensor:
    """Return the published place of each dimension of a head here."""
    half, rest = rotated // 2, (head_dim - rotated) // 2
    return torch.cat(
        [
            torch.arange(half),
            rotated + torch.arange(rest),
            half + torch.arange(half),
            rotated + rest + torch.arange(rest),
        ]
    )


def pairs_first(rows: Tensor, head_dim: int, rotated: int) -> Tensor:
    """Permute rows [heads * D, ...] of queries or keys: dimension d of the first `rotated` ones, which is rotated with
    d + rotated/2, is rotated with d + D/2 afterwards; the others are not rotated.

    >>> pairs_first(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]), 8, 4).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    turned: Tensor = rows.unflatten(0, (-1, head_dim))[:, _order(head_dim, rotated)]
    return turned.flatten(0, 1).contiguous()


def pairs_back(rows: Tensor, head_dim: int, rotated: int) -> Tensor:
    """Inverse of `pairs_first`.

    >>> pairs_back(torch.tensor([0, 1, 4, 5, 2, 3, 6, 7]), 8, 4).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    turned: Tensor = rows.unflatten(0, (-1, head_dim))[:, _order(head_dim, rotated).argsort()]
    return turned.flatten(0, 1).contiguous()


#: A tensor of a file: its name there, its shape there, and what is done with it.
Source = tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]]


def decoder_tensors(facts: GlmFacts) -> dict[str, Source]:
    """Return the decoder's names of its tensors -> their source."""
    sizes = facts.decoder
    E, F, D = sizes["d_model"], sizes["d_ff"], facts.head_dim
    Q, K = sizes["num_heads"] * D, sizes["num_key_heads"] * D
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (Q, E), "k_proj": (K, E), "v_proj": (K, E), "o_proj": (E, Q), "down_proj": (E, F),
    }  # fmt: skip  # a shape per name
    turned = partial(pairs_first, head_dim=D, rotated=facts.rotated)
    found: dict[str, Source] = {
        "embed_tokens.weight": (f"{_DECODER}embed_tokens.weight", (facts.vocab_size, E), _same)
    }
    for layer in range(sizes["num_layers"]):
        theirs, ours = f"{_DECODER}layers.{layer}.", f"layers.{layer}."
        for name, own in _LAYER.items():
            shape = shapes.get(own, (E,))
            change = turned if own in ("q_proj", "k_proj") else _same
            found[f"{ours}{own}.weight"] = (f"{theirs}{name}.weight", shape, change)
            if own in ("q_proj", "k_proj", "v_proj"):
                found[f"{ours}{own}.bias"] = (f"{theirs}{name}.bias", shape[:1], change)
        for part, own in enumerate(("gate_proj", "up_proj")):
            source = f"{theirs}mlp.gate_up_proj.weight", (2 * F, E), partial(_half, part=part)
            found[f"{ours}{own}.weight"] = source
    found["norm.weight"] = (f"{_DECODER}norm.weight", (E,), _same)
    found["embed_output.weight"] = ("lm_head.weight", (sizes["head_ids"], E), _same)
    return found


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _half(tensor: Tensor, part: int) -> Tensor:
    return tensor.chunk(2)[part].contiguous()


@dataclass(frozen=True)
class GlmImageFiles:
    """An opened GLM-Image.

    Args:
        facts: sizes.
        tensors: tensors of the decoder, by its own names.
        image_tokenizer: tensors of the image tokenizer, by theirs.
        files: names of the files.
        dtype: of the weights.
    """

    facts: GlmFacts
    tensors: Mapping[str, Lazy]
    image_tokenizer: Mapping[str, Lazy]
    files: tuple[str, ...]
    dtype: torch.dtype

    def provenance(self) -> dict[str, Any]:
        """Return the provenance stored with the converted weights."""
        return {
            "converted_by": "cm3 convert",
            "from": "glm_image",
            "files": dict.fromkeys(self.files),
            "left_out": {f"model.{_UNUSED}*": "not needed to read pictures"},
            "licence": LICENCE,
        }


def stage_of(source: Path) -> Path | None:
    """Return the folder of the first stage in a folder of the pipeline, or that folder itself; None: it has none."""
    for folder in (source, source / STAGE):
        try:
            if (folder / CONFIG).is_file() and read_json(folder / CONFIG).get(
                "model_type"
            ) == "glm_image":
                return folder
        except CheckpointError:
            continue  # opening it as another model reports the error
    return None


def open_glm_image(folder: Path, stack: ExitStack) -> GlmImageFiles:
    """Open the folder of the first stage; files stay open as long as `stack`.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    facts = facts_of(read_json(folder / CONFIG), str(folder / CONFIG))
    owners, names = files_of(folder, stack)
    wanted = decoder_tensors(facts)
    image = {
        name.removeprefix("model."): name
        for name in owners
        if name.removeprefix("model.").startswith(PREFIXES)
    }
    check_names(str(folder), set(owners) - set(image.values()), {one[0] for one in wanted.values()})
    if not image:
        raise CheckpointError(
            str(folder), "holds no image tokenizer (model.visual.*)", "copy the files again"
        )
    tensors = {ours: _lazy(owners[one[0]], *one) for ours, one in wanted.items()}
    codes = {
        ours: _lazy(owners[name], name, owners[name].entries[name].shape, _same)
        for ours, name in sorted(image.items())
        if not ours.startswith(_UNUSED)
    }
    dtype = tensors["embed_tokens.weight"].dtype
    return GlmImageFiles(facts, tensors, codes, (CONFIG, *names), dtype)


def _lazy(
    file: TensorFile, name: str, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> Lazy:
    """Return a tensor of a file, changed."""
    found = file.entries[name]
    check_shape(str(file.path), name, found.shape, shape)
    check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        return change(tensor)

    own = (
        (shape[0] // 2, *shape[1:])
        if isinstance(change, partial) and change.func is _half
        else shape
    )
    return Lazy(own, found.dtype, read)


def layout_of(facts: GlmFacts, tokenizer: Path) -> dict[str, int]:
    """Return ids of the layout from the config and the names in `tokenizer.json`; raises `CheckpointError`."""
    added = read_json(tokenizer).get("added_tokens")
    ids = {
        one["content"]: one["id"]
        for one in (added if isinstance(added, list) else ())
        if isinstance(one, dict) and {"content", "id"} <= one.keys()
    }
    for name in _TOKENS.values():
        if not isinstance(ids.get(name), int):
            raise CheckpointError(
                str(tokenizer),
                f"has no token {name}",
                "use the tokenizer.json in GLM-Image's folder processor",
            )
    return {
        "first_text": facts.first_text,
        "picture_begin": facts.begin,
        "picture_end": facts.end,
        "vocab_size": facts.vocab_size,
        **{key: ids[name] for key, name in _TOKENS.items()},
    }


def recipe_of(
    facts: GlmFacts, registry: Registry, *, asked: Asked, layout: Mapping[str, int], room: int
) -> Recipe:
    """Return the recipe of a converted GLM-Image.

    Args:
        facts: sizes.
        registry: the installed plugins.
        asked: name and picture size.
        layout: ids of the layout.
        room: tokens of a text.
    """
    size = asked.keys(RESOLUTION)
    grids = grids_of(size["resolution"], size.get("width", size["resolution"]))
    sections: dict[str, Any] = {
        "name": asked.name,
        "text_tokenizer": {"name": "hf"},
        "image_tokenizer": {
            "name": "glm_image",
            "num_codes": facts.num_codes,
            "num_heads": facts.num_heads,
            "norm_eps": facts.norm_eps,
            **size,
        },
        "layout": {"name": "glm_image", **layout, **size},
        "objective": {"name": "causal"},
        "decoder": {"name": "glm_image", **facts.decoder, "grids": [list(one) for one in grids]},
        "attention": {"name": "by_device"},
        # as in its README; it is not guided
        "sampler": {"name": "top_p", "temperature": 0.9, "top_p": 0.75},
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"num_images": 1, "retrieve": False},
    }
    return recipe_from_yaml(json.dumps(sections), registry, label=asked.name)


def write_glm_image(model: GlmImageFiles, folder: Path, tokenizer: Path, asked: Asked) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizer: folder with `tokenizer.json`.
        asked: name and picture size.

    Raises:
        CM3Error: a tokenizer is missing or damaged, or the picture size does not fit.
    """
    from safetensors.torch import save_file

    registry, facts = load_registry(), model.facts
    text = text_file(tokenizer)
    layout = layout_of(facts, text)
    first = recipe_of(facts, registry, asked=asked, layout=layout, room=1)
    assert first.image_tokenizer is not None
    assert first.layout is not None
    first.image_tokenizer.check()
    grid, context = first.image_tokenizer.grid, facts.decoder["context_length"]
    length = first.layout.picture_length(grid)
    check_room(grid, length, context)
    room = max(1, context - length - RESERVE)
    recipe = recipe_of(facts, registry, asked=asked, layout=layout, room=room)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "image_tokenizer.safetensors"
        read = {name: lazy.read().contiguous() for name, lazy in model.image_tokenizer.items()}
        save_file(read, weights)
        write_folder(folder, recipe, registry, model.tensors, TokenizerFiles(text, weights), None)


def run_glm_image(args: Namespace, stage: Path) -> int:
    """Convert the first stage of GLM-Image to a model of this framework, or check it; return the exit code."""
    _check_options(args)
    with ExitStack() as stack:
        model = open_glm_image(stage, stack)
        sizes = model.facts.decoder
        number = sum(torch.Size(lazy.shape).numel() for lazy in model.tensors.values())
        print(
            f"{stage}: GLM-Image, {number / 1e9:.2f}B decoder parameters, {model.dtype}, "
            f"{sizes['num_layers']} layers of {sizes['d_model']}, {sizes['num_heads']} heads "
            f"({sizes['num_key_heads']} for keys), {model.facts.num_codes:,} image codes"
        )
        print("its second stage, which makes pictures of the codes, is not converted")
        if args.check:
            for lazy in (*model.tensors.values(), *model.image_tokenizer.values()):
                lazy.read()
            print("every tensor exists with the right size and can be read")
            return 0
        own = args.source / PROCESSOR if stage != args.source else args.source
        asked = Asked(recipe_name(args.out.name), args.resolution, args.width)

        def write(new: Path) -> None:
            write_glm_image(model, new, args.tokenizer or own, asked)

        write_new_folder(args.out, args.source, write, model.provenance())
    print(f"{args.out}: cm3")
    print(LICENCE, file=sys.stderr)
    return 0


def _check_options(args: Namespace) -> None:
    """Raise `CM3Error` for an option that does not work with GLM-Image."""
    for option, value in (
        ("--shards", args.shards),
        ("--layout", args.layout),
        ("--roles", args.roles),
        ("--chat", args.chat or None),
    ):
        if value is not None:
            raise CM3Error(option, "does not work with GLM-Image", "leave it out")
    if args.to not in (None, "cm3"):
        raise CM3Error(
            f"--to {args.to}", "does not work with GLM-Image", "convert it with --to cm3"
        )
