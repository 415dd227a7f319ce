"""Read tensors of CLIP files from any origin, under OpenAI's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cm3core.errors import CheckpointError

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
#: Hugging Face's names -> OpenAI's, applied in this order.
_RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)


def find_weights(path: Path) -> Path:
    """The weights file of a path; raises `CheckpointError` if it is missing or ambiguous."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(str(path), "there is no such file or folder", "correct embedder.path")
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise CheckpointError(
            str(path), "its weights are in several files", "join them in one model.safetensors"
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise CheckpointError(
        str(path),
        f"files of weights in it: {names}",
        f"give the file itself, or name it {WEIGHTS[2]}",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by its names; raises `CheckpointError` if it holds anything else."""
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch's reader raises anything about bytes that are no pickle
        # torch's message explains how to run the file's code anyway
        reason = str(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise CheckpointError(
            str(path),
            f"does not hold plain tensors ({reason})",
            "give the weights alone; files that run code when loaded are rejected",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # open_clip's checkpoints also hold optimiser and epoch
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            str(path),
            f"holds a {type(state).__name__}, not weights by name",
            "give the weights alone",
        )
    return _weights(state, path)


def _weights(state: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    """The tensors of a state, none of them of a kind that the towers can't hold."""
    tensors = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            str(path), "holds no weights", "give the file of a CLIP's weights in embedder.path"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, on {tensor.device}"
            raise CheckpointError(
                str(path), f"{name} is no plain tensor ({kind})", "give the weights as safetensors"
            )
    return tensors


def check_axes(name: str, tensor: Tensor, num_axes: int, path: Path) -> None:
    """Raise `CheckpointError` unless a tensor has so many axes, and a number in it."""
    if tensor.ndim != num_axes or not tensor.numel():
        raise CheckpointError(
            str(path),
            f"{name} has the shape {tuple(tensor.shape)}; a CLIP's has {num_axes} axes",
            "give a CLIP as OpenAI, open_clip or Hugging Face write it",
        )


def from_hugging_face(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors under OpenAI's names.

    Query, key and value in one matrix; projections (E to D, see `towers`) transposed.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    for place in [
        name.removesuffix("q_proj.weight") for name in renamed if name.endswith(".q_proj.weight")
    ]:
        for kind, num_axes in (("weight", 2), ("bias", 1)):
            try:
                parts = [renamed.pop(f"{place}{letter}_proj.{kind}") for letter in "qkv"]
            except KeyError as error:
                raise CheckpointError(
                    str(path), f"{error.args[0]} is missing", "copy the file again"
                ) from error
            if any(part.ndim != num_axes or part.shape != parts[0].shape for part in parts):
                shapes = ", ".join(str(tuple(part.shape)) for part in parts)
                raise CheckpointError(
                    str(path),
                    f"{place}(q|k|v)_proj.{kind} have the shapes {shapes}",
                    "copy the file again",
                )
            renamed[f"{place}in_proj_{kind}"] = torch.cat(parts)
    for old, new in (
        ("visual_projection.weight", "visual.proj"),
        ("text_projection.weight", "text_projection"),
    ):
        if old in renamed:
            check_axes(old, renamed[old], 2, path)
            renamed[new] = rearrange(renamed.pop(old), "E D -> D E").contiguous()
    return renamed
