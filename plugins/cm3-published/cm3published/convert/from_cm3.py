"""A model of this framework as the source of a conversion: one that was converted, or tuned since."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import load_registry
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.trained.tensor_files import open_tensors
from cm3published.convert.cm3 import llama_name
from cm3published.convert.facts import Facts
from cm3published.convert.hugging_face import lazy_of
from cm3published.convert.model import ModelFiles, check_names
from cm3published.convert.names import parts
from cm3run.checkpoint import find_checkpoint
from cm3run.checkpoint.adapters import is_adapter
from cm3run.checkpoint.layout import RECIPE, TOKENIZER, WEIGHTS, shards_of
from cm3run.checkpoint.opening import read_recipe

#: The text tokenizer's file in its folder, of `hf`.
TEXT_TOKENIZER = "tokenizer.json"


def is_cm3(folder: Path) -> bool:
    """Whether a folder holds a model of this framework, or a run."""
    return (folder / RECIPE).is_file() or (folder / "checkpoints").is_dir()


def open_cm3(source: Path, stack: ExitStack) -> ModelFiles:
    """Open a model; its file stays open as long as `stack`.

    Args:
        source: a model, a checkpoint, or a run, of which the newest checkpoint is taken.
        stack: closes the file.

    Raises:
        CheckpointError: the decoder has not Chameleon's form, it is an adapter, or the file is damaged.
    """
    folder = find_checkpoint(source)
    if is_adapter(folder):
        raise CheckpointError(
            str(source),
            "holds an adapter, and converting needs whole weights",
            f"merge it first: cm3 adapter merge {shlex.quote(str(source))} -o merged",
        )
    if (folder / shards_of(WEIGHTS)).is_dir():
        raise CheckpointError(
            str(folder), "holds weights in parts", "load it in one process and export it"
        )
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


def _facts(config: object, folder: Path) -> Facts:
    """The sizes of a decoder; raises `CheckpointError` if it has not Chameleon's form."""
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
        f"{key} is {value}, and a Chameleon's is {needed}",
        "convert a model that was made from Chameleon's weights",
    )
