"""The framework's own format: a model folder with recipe, tokenizers and the decoder `llama`. Conversions write it, and
read it as a source: a converted model, possibly tuned since."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import recipe_from_yaml
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.trained.tensor_files import open_tensors
from cm3published.convert.facts import Facts
from cm3published.convert.hugging_face import lazy_of
from cm3published.convert.model import Asked, ModelFiles, check_names
from cm3published.convert.names import parts
from cm3published.image_tokenizers.names import sizes_of, tamings
from cm3run.checkpoint import find_checkpoint
from cm3run.checkpoint.adapters import is_adapter
from cm3run.checkpoint.layout import RECIPE, TOKENIZER, WEIGHTS, shards_of
from cm3run.checkpoint.opening import read_recipe

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.checkpoint.tensors import LazyTensor


#: Files of the two tokenizers, in search order.
TEXT_FILES, IMAGE_FILE = ("text_tokenizer.json", "tokenizer.json"), "vqgan.ckpt"
#: transformers' names of a layer's tensors -> the decoder `llama`'s.
_NAMES = (
    (r"^model\.layers\.(\d+)\.self_attn\.", r"layers.\1."),
    (r"^model\.layers\.(\d+)\.mlp\.", r"layers.\1."),
    (r"^model\.layers\.(\d+)\.input_layernorm\.", r"layers.\1.attention_norm."),
    (r"^model\.layers\.(\d+)\.post_attention_layernorm\.", r"layers.\1.ffn_norm."),
    (r"^model\.", ""),
    (r"^lm_head\.", "embed_output."),
)
#: Tasks of these models: in turns, of which the last is the answer; plain captions; and
#: whole conversations.
TASKS: Mapping[str, Any] = {
    "plain": True,
    "turns": True,
    "tasks": {"caption": {"name": "caption"}, "plain_question": {"name": "plain_question"}},
}
#: Side, in pixels, of Chameleon's training pictures.
RESOLUTION = 512
#: A request's text may use the context except a picture and this many tokens.
RESERVE = 16


def llama_name(name: str) -> str:
    """Return the decoder's name for transformers' name of a tensor.

    >>> llama_name("model.layers.3.self_attn.q_norm.weight"), llama_name("lm_head.weight")
    ('layers.3.q_norm.weight', 'embed_output.weight')
    """
    for pattern, replacement in _NAMES:
        name, changed = re.subn(pattern, replacement, name)
        if changed and not name.startswith("model."):
            return name
    return name


def recipe_of(
    facts: Facts,
    registry: Registry,
    *,
    name: str,
    layout: str,
    image_tokenizer: Mapping[str, Any],
    picture_length: int,
) -> Recipe:
    """Return the recipe of a converted model.

    Args:
        facts: sizes of the decoder.
        registry: the installed plugins.
        name: name of the recipe.
        layout: name of the layout.
        image_tokenizer: keys of that section besides its name.
        picture_length: tokens of a picture, including its delimiters.
    """
    room = max(1, facts.context_length - picture_length - RESERVE)
    sections: dict[str, Any] = {
        "name": name,
        "text_tokenizer": {"name": "hf"},
        "image_tokenizer": {"name": "chameleon", **image_tokenizer},
        "layout": {"name": layout, "vocab_size": facts.vocab_size},
        "objective": {"name": "causal"},
        "decoder": {**llama_section(facts), "qk_norm": "layer_norm", "swin_norm": facts.swin_norm},
        "attention": {"name": "by_device"},
        "sampler": {"name": "chameleon" if layout == "chameleon" else "cfg"},
        # nothing was trained here; used if training continues
        "train": {"steps": 1000, "learning_rate": 1e-5, "z_loss": 1e-5},
        "data": {"max_text_tokens": room},
        "generate": {"max_text_tokens": min(256, room), "num_images": 1, "retrieve": False},
    }
    if layout == "lumina":
        sections["sampler"] |= {
            "guidance_scale": 4.0,
            "plausible_top_p": 1.0,
            "top_k": 2000,
            "temperature": 1.0,
        }
    return recipe_from_yaml(json.dumps(sections), registry, label=name)


def write_cm3(
    model: ModelFiles,
    folder: Path,
    tokenizers: Path,
    asked: Asked,
    *,
    layout: str,
) -> None:
    """Write a model folder into an empty folder.

    Args:
        model: model to write.
        folder: existing empty folder.
        tokenizers: folder with the text tokenizer's file and `vqgan.ckpt`.
        asked: name and picture size.
        layout: name of the layout.

    Raises:
        CM3Error: a tokenizer's file is missing or damaged, or belongs to another model.
    """
    from cm3core.plugins.discovery import load_registry

    registry = load_registry()
    own_text = text_file(tokenizers)
    image_keys = {**_sizes_of_codes(tokenizers / IMAGE_FILE), **asked.keys(RESOLUTION)}
    keys: dict[str, Any] = {"name": asked.name, "layout": layout, "image_tokenizer": image_keys}
    first = recipe_of(model.facts, registry, **keys, picture_length=0)
    assert first.layout is not None
    assert first.image_tokenizer is not None
    length = first.layout.picture_length(first.image_tokenizer.grid)
    check_room(first.image_tokenizer.grid, length, model.facts.context_length)
    recipe = recipe_of(model.facts, registry, **keys, picture_length=length)
    weights = {llama_name(part): lazy for part, lazy in model.tensors.items()}
    files = TokenizerFiles(own_text, tokenizers / IMAGE_FILE)
    write_folder(folder, recipe, registry, weights, files, TASKS)


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of the tokenizers; `text` None: the text tokenizer needs no file."""

    text: Path | None
    image: Path


def write_folder(
    folder: Path,
    recipe: Recipe,
    registry: Registry,
    weights: Mapping[str, LazyTensor],
    files: TokenizerFiles,
    tasks: Mapping[str, Any] | None,
) -> None:
    """Write a model in this framework's format into an empty folder.

    Args:
        folder: existing empty folder.
        recipe, registry: recipe and registry of its components.
        weights: tensors of the decoder.
        files: files of its tokenizers.
        tasks: see `cm3run.checkpoint.tasks.tasks_of`. None: it was tuned for none.

    Raises:
        CM3Error: a tokenizer's file is missing or damaged, or belongs to another model.
    """
    from cm3run.build import image_tokenizer_of, layout_of
    from cm3run.checkpoint.layout import CheckpointState
    from cm3run.checkpoint.writing import Description, write_model

    recipe.check()
    assert recipe.text_tokenizer is not None
    assert recipe.image_tokenizer is not None
    text_keys: dict[str, Any] = {} if files.text is None else {"path": str(files.text)}
    text_tokenizer = replace(recipe.text_tokenizer, **text_keys).build(None)
    image_keys: dict[str, Any] = {"weights": str(files.image)}
    image_config = replace(recipe.image_tokenizer, **image_keys)
    image_tokenizer = image_tokenizer_of(image_config, None, registry)
    own = layout_of(recipe, text_tokenizer, image_tokenizer, registry)
    state = CheckpointState(
        step=0,
        vocabulary=own.vocabulary.to_dict(),
        fingerprints={
            "text_tokenizer": text_tokenizer.fingerprint,
            "image_tokenizer": image_tokenizer.fingerprint,
            "vocabulary": own.vocabulary.fingerprint,
            "layout": own.fingerprint,
        },
        max_spans=0,
    )
    description = Description(
        recipe=recipe,
        registry=registry,
        text_tokenizer=text_tokenizer,
        image_tokenizer=image_tokenizer,
        tasks=tasks,
    )
    write_model(folder, weights, state, description)


def llama_section(facts: Facts) -> dict[str, Any]:
    """Return the sizes of a section `decoder`, without the norms of queries and keys, which depend on the model."""
    sizes = ("context_length", "num_layers", "d_model", "num_heads", "num_key_heads", "d_ff")
    own = {} if facts.stated_head_dim is None else {"head_dim": facts.stated_head_dim}
    return {
        "name": "llama",
        **{key: getattr(facts, key) for key in (*sizes, "rope_theta", "norm_eps")},
        **own,
        "tie_embeddings": False,
    }


def check_room(grid: tuple[int, int], length: int, context_length: int) -> None:
    """Raise `CheckpointError` if a picture of `length` tokens and a short text don't fit the context."""
    if length + RESERVE > context_length:
        raise CheckpointError(
            "--resolution",
            f"pictures of {grid[0]} x {grid[1]} codes take {length:,} tokens, but the decoder's context is "
            f"{context_length:,}",
            "use a smaller one (and --width)",
        )


def text_file(folder: Path) -> Path:
    """Return the text tokenizer's file."""
    found = next((folder / name for name in TEXT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            str(folder),
            f"has no {' or '.join(TEXT_FILES)}",
            "pass the folder `tokenizer` published with the model (--tokenizer)",
        )
    return found


def _sizes_of_codes(path: Path) -> dict[str, int]:
    """Return the keys of the image tokenizer that its file determines."""
    if not path.is_file():
        raise CheckpointError(
            str(path),
            "there is no such file",
            "put Meta's vqgan.ckpt next to the text tokenizer: files of transformers have no picture "
            "decoder",
        )
    return sizes_of_codes(path, "use tokenizer/vqgan.ckpt")


def sizes_of_codes(path: Path, next_step: str) -> dict[str, int]:
    """Return the keys of an image tokenizer that its file determines; raises `CheckpointError` if it is not one."""
    with open_tensors(path) as file:
        tensors = tamings(file.all())
    try:
        arch = sizes_of(tensors).arch
    except (KeyError, ValueError) as error:
        raise CheckpointError(str(path), f"is not a VQ tokenizer ({error})", next_step) from error
    return {"num_codes": arch.codebook_size, "downsampling": arch.downsampling}


#: Name of the text tokenizer's file in its folder, for `hf`.
TEXT_TOKENIZER = "tokenizer.json"


def is_cm3(folder: Path) -> bool:
    """Whether a folder holds a model of this framework or a run."""
    return (folder / RECIPE).is_file() or (folder / "checkpoints").is_dir()


def open_cm3(source: Path, stack: ExitStack) -> ModelFiles:
    """Open a model; its file stays open as long as `stack`.

    Args:
        source: a model, a checkpoint, or a run, whose newest checkpoint is used.
        stack: closes the file.

    Raises:
        CheckpointError: the decoder does not have Chameleon's architecture, is an adapter, or the file is damaged.
    """
    folder = whole_model(source)
    config = read_recipe(folder, load_registry()).decoder
    facts = _facts(config, folder)
    file = stack.enter_context(open_tensors(folder / WEIGHTS))
    embeddings = file.entries.get(llama_name("model.embed_tokens.weight"))
    facts = facts if embeddings is None else replace(facts, vocab_size=embeddings.shape[0])
    wanted = parts(facts)
    names = {part.hugging_face: llama_name(part.hugging_face) for part in wanted}
    check_names(str(file.path), file.entries, names.values())
    tensors = {
        part.hugging_face: lazy_of(part, file, facts.num_key_heads, names[part.hugging_face])
        for part in wanted
    }
    text = folder / TOKENIZER / TEXT_TOKENIZER
    files: dict[str, str | None] = {WEIGHTS: None}
    own = text if text.is_file() else None
    return ModelFiles("cm3", facts, tensors, {}, files, text_tokenizer=own)


def whole_model(source: Path) -> Path:
    """Return the folder of a model with complete weights in one file.

    Args:
        source: a model, a checkpoint, or a run, whose newest checkpoint is used.

    Raises:
        CheckpointError: it is an adapter, or its weights are in parts.
    """
    folder = find_checkpoint(source)
    if is_adapter(folder):
        raise CheckpointError(
            str(source),
            "holds an adapter, but converting needs complete weights",
            f"merge it first: cm3 adapter merge {shlex.quote(str(source))} -o merged",
        )
    if (folder / shards_of(WEIGHTS)).is_dir():
        raise CheckpointError(
            str(folder), "holds sharded weights", "load it in one process and export it"
        )
    return folder


def _facts(config: object, folder: Path) -> Facts:
    """Return the sizes of a decoder; raises `CheckpointError` if it does not have Chameleon's architecture."""
    if not isinstance(config, LlamaConfig):
        raise _of_another_form(folder, "decoder", type(config).__name__, "llama")
    needed = {
        "rope": "1d",
        "qk_norm": "layer_norm",
        "qkv_bias": False,
        "tie_embeddings": False,
        "head_size": config.d_model // config.num_heads,
    }
    for key, value in needed.items():
        if getattr(config, key) != value:
            raise _of_another_form(folder, f"decoder.{key}", str(getattr(config, key)), str(value))
    facts = Facts(
        vocab_size=1,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_key_heads=config.key_heads,
        d_ff=config.inner,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        swin_norm=config.swin_norm,
        context_length=config.context_length,
    )
    facts.check(str(folder / RECIPE))
    return facts


def _of_another_form(folder: Path, key: str, value: str, needed: str) -> CheckpointError:
    return CheckpointError(
        str(folder / RECIPE),
        f"{key} is {value}, but Chameleon's is {needed}",
        "convert a model created from Chameleon's weights; one with the decoder cm3leon can become an OPT (--to opt)",
    )
