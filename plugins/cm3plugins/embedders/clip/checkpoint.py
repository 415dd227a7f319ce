"""Read a CLIP file and the configs next to it: tensors, sizes, activation, preprocessing.

The origin is recognised by tensor names and the files next to the weights:

- OpenAI: a TorchScript archive, always QuickGELU;
- open_clip: OpenAI's names, `open_clip_config.json` next to the weights, GELU unless the config sets
  `quick_gelu`;
- Hugging Face: `text_model.*` and `vision_model.*`, `config.json` next to the weights, the activation
  from its `hidden_act`, QuickGELU by default.

A wrong activation gives vectors that look fine and retrieve badly (mlfoundations/open_clip#771), so
it is never guessed. Tensors of all origins are renamed to OpenAI's names.

An archive's code is not run. `torch.jit.load` compiles it and can run it, and its `data.pkl` is a pickle, which
could call anything; `torch.load(weights_only=True)` rejects such archives. So the pickle is read without
executing it (`cm3plugins.trained.inert_pickle`), and each tensor's record is filled from the raw bytes next to it.
Everything else in the archive is ignored.
"""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.embedders.clip.configs import (
    HEAD_WIDTH,
    Preprocessing,
    check_hugging_face,
    check_open_clip,
    read_activations,
    read_heads,
    read_json,
    read_preprocessing,
)
from cm3plugins.embedders.clip.towers import Activation, CLIPSizes, TransformerSizes
from cm3plugins.trained.inert_pickle import Named, Record, follow
from cm3plugins.trained.weights_file import check_finite

_NEXT = "download it again, or use weights in safetensors format"
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip that contains code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # not a zip, truncated or damaged
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the floating-point parameters and buffers of the archive's module, by name.

    Raises:
        CheckpointError: it is damaged, or holds no module with tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            top = follow(archive.read(pickled))
            root = pickled.removesuffix("data.pkl")
            return {
                name: tensor
                for name, record in _tensors(top)
                if (tensor := _tensor(record, archive, root)) is not None
            }
    except (
        zipfile.BadZipFile,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        EOFError,
        OSError,
        RuntimeError,  # encrypted, in an unknown compression, nested too deep
    ) as error:
        raise CheckpointError(
            str(path),
            f"is not a readable TorchScript archive ({type(error).__name__}: {error})",
            _NEXT,
        ) from error


def _tensors(top: object) -> Iterator[tuple[str, Record]]:
    """Yield tensor records and their names, by the attributes of modules from the top down.

    Shared records are yielded once.
    """
    waiting: list[tuple[str, object]] = [("", top)]
    seen: set[int] = set()
    while waiting:
        prefix, item = waiting.pop()
        if not isinstance(item, Record) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item.function, Named) and item.function.name.startswith(
            "torch._utils _rebuild_"
        ):
            yield prefix.removesuffix("."), item
        elif isinstance(item.state, dict):
            waiting += [(f"{prefix}{name}.", value) for name, value in item.state.items()]


def _tensor(record: Record, archive: zipfile.ZipFile, root: str) -> Tensor | None:
    """Return the tensor of a record of `_rebuild_tensor_v2(storage, offset, size, stride, ...)`.

    None if it is not floating-point.
    """
    # a record that torch would not write raises an error, which `read_archive` reports
    arguments: Any = record.arguments
    storage, offset, size, stride = arguments[:4]
    _, kind, key, _, count = storage.identity
    dtype = _DTYPES.get(kind.name.removeprefix("torch "))
    if dtype is None:
        return None
    if min((offset, *size, *stride), default=0) < 0 or len(size) != len(stride):
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    if math.prod(size) > count:
        raise ValueError(f"a tensor of size {size} over {count} numbers")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    entry = archive.getinfo(f"{root}data/{key}")
    if entry.file_size != count * dtype.itemsize or entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"storage {key} has {entry.file_size} bytes, which do not hold {count} numbers"
        )
    if last >= count or 0 in size:
        raise ValueError(f"a tensor of size {size} at {offset} in {count} numbers")
    return (
        torch.frombuffer(bytearray(archive.read(entry)), dtype=dtype)
        .as_strided(size, stride, offset)
        .clone()
    )


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
    """Find the weights file at a path; raises `CheckpointError` if it is missing or ambiguous."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(str(path), "there is no such file or folder", "correct embedder.path")
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise CheckpointError(
            str(path),
            "its weights are split over several files",
            "join them in one model.safetensors",
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise CheckpointError(
        str(path),
        f"holds several weights files: {names}",
        f"use the path of one of them, or rename it to {WEIGHTS[2]}",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by name; raises `CheckpointError` if it holds anything else."""
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        Exception
    ) as error:  # torch's reader raises any exception for bytes that are not a pickle
        # torch's message suggests running the file's code anyway
        reason = str(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise CheckpointError(
            str(path),
            f"does not hold plain tensors ({reason})",
            "save only the weights; files that run code when loaded are rejected",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # open_clip's checkpoints also hold optimiser and epoch
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            str(path),
            f"holds a {type(state).__name__} instead of named weights",
            "save only the weights",
        )
    return _weights(state, path)


def _weights(state: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state; raises `CheckpointError` for kinds that the towers can't hold."""
    tensors = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            str(path), "holds no weights", "set embedder.path to a file of CLIP weights"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, on {tensor.device}"
            raise CheckpointError(
                str(path),
                f"{name} is not a plain tensor ({kind})",
                "save the weights as safetensors",
            )
    return tensors


def check_axes(name: str, tensor: Tensor, num_axes: int, path: Path) -> None:
    """Raise `CheckpointError` unless a tensor has this number of axes and is not empty."""
    if tensor.ndim != num_axes or not tensor.numel():
        raise CheckpointError(
            str(path),
            f"{name} has the shape {tuple(tensor.shape)}; in a CLIP it has {num_axes} axes",
            "use a CLIP saved by OpenAI, open_clip or Hugging Face",
        )


def from_hugging_face(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename tensors to OpenAI's names.

    Query, key and value become one matrix; projections (E to D, see `towers`) are transposed.
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
                    f"{place}(q|k|v)_proj.{kind} have mismatched shapes {shapes}",
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


logger = logging.getLogger("cm3plugins.clip")

#: Tensors that the towers don't use: the temperature, and sizes and masks stored in archives.
_IGNORED = re.compile(
    r"(^|\.)(logit_scale|logit_bias|attn_mask|position_ids|input_resolution|context_length|vocab_size)$"
)


@dataclass(frozen=True)
class CLIPCheckpoint:
    """The content of a CLIP file.

    Args:
        path: file of weights.
        tensors: by OpenAI's names, float32.
        sizes: sizes of both towers.
        preprocessing: preprocessing of pictures.
        summary: one line: origin, sizes, activation, and where the activation was read.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sizes: CLIPSizes
    preprocessing: Preprocessing
    summary: str


def read_checkpoint(path: Path, quick_gelu: bool | None = None) -> CLIPCheckpoint:
    """Read a file or a folder.

    Args:
        path: file or folder.
        quick_gelu: see `CLIPConfig`.

    Raises:
        CheckpointError: the file is missing, damaged, needs code to be read, is not a CLIP with a
            vision transformer, or holds NaN or infinity; its config contradicts the weights; or the
            activation is unknown.
    """
    weights = find_weights(path)
    is_torchscript = is_archive(weights)
    tensors = read_archive(weights) if is_torchscript else read_tensors(weights)
    open_clip, hugging_face = (
        read_json(weights.parent / name) for name in ("open_clip_config.json", "config.json")
    )
    if "text_model.embeddings.token_embedding.weight" in tensors:
        origin = "Hugging Face"
        tensors = from_hugging_face(tensors, weights)
    else:
        origin = "OpenAI" if is_torchscript else "open_clip"
        tensors = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    tensors = {name: value for name, value in tensors.items() if not _IGNORED.search(name)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                str(weights),
                f"{name} has the dtype {str(tensor.dtype).removeprefix('torch.')}, not a floating-point one",
                "save the weights in float32, float16 or bfloat16",
            )
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    check_finite(tensors, weights)
    _check_architecture(weights, tensors)
    activations = read_activations(weights, origin, open_clip, hugging_face, quick_gelu)
    heads = read_heads(weights, origin, open_clip, hugging_face)
    sizes = _sizes(weights, tensors, activations, heads)
    if origin == "open_clip" and open_clip is not None:
        check_open_clip(weights, open_clip, sizes)
    if origin == "Hugging Face" and hugging_face is not None:
        check_hugging_face(weights, hugging_face, sizes)
    preprocessing = read_preprocessing(weights, origin, open_clip, sizes.resolution)
    words = " and ".join(
        sorted({"QuickGELU" if one == "quick_gelu" else "GELU" for one, _ in activations})
    )
    summary = (
        f"{origin}'s CLIP with patches of {sizes.patch} pixels, {sizes.resolution} px, "
        f"{sizes.dimension} dimensions, "
        f"{words} ({activations[0][1]})"
    )
    logger.info("%s: %s", weights, summary)
    return CLIPCheckpoint(weights, tensors, sizes, preprocessing, summary)


def _check_architecture(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the tensors belong to a CLIP with a vision transformer."""
    needed = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "text_projection": 2,
    }
    missing = [name for name in needed if name not in tensors]
    other = any(
        name.startswith(("visual.layer1.", "visual.trunk.", "visual.attn_pool."))
        for name in tensors
    )
    if missing or other:
        what = (
            "its picture tower is not a vision transformer" if other else f"{missing[0]} is missing"
        )
        raise CheckpointError(
            str(path),
            f"is not a CLIP with a vision transformer ({what})",
            "use ViT-B/32, B/16, L/14 or another vision transformer; ResNets, and towers from timm or a "
            "language model, are "
            "not supported",
        )
    hidden = {f"{prefix}transformer.resblocks.0.mlp.c_fc.weight": 2 for prefix in ("visual.", "")}
    for name, num_axes in (needed | hidden).items():
        if name in tensors:
            check_axes(name, tensors[name], num_axes, path)


def _sizes(
    path: Path,
    tensors: Mapping[str, Tensor],
    activations: list[tuple[Activation, str]],
    heads: list[int | None],
) -> CLIPSizes:
    """Infer the sizes from the tensors."""
    transformers = []
    for prefix, (activation, _), given, width in (
        ("visual.", activations[0], heads[0], tensors["visual.conv1.weight"].shape[0]),
        ("", activations[1], heads[1], tensors["token_embedding.weight"].shape[1]),
    ):
        blocks = {
            name.removeprefix(f"{prefix}transformer.resblocks.").split(".")[0]
            for name in tensors
            if name.startswith(f"{prefix}transformer.resblocks.")
        }
        hidden = tensors.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")
        num_heads = given or max(1, width // HEAD_WIDTH)
        if width % num_heads:
            raise CheckpointError(
                str(path),
                f"{num_heads} heads do not divide a width of {width}",
                "correct the config next to the weights",
            )
        mlp_width = 1 if hidden is None else hidden.shape[0]
        transformers.append(TransformerSizes(width, len(blocks), num_heads, mlp_width, activation))
    patch = tensors["visual.conv1.weight"].shape[-1]
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    vocab_size, context = (
        tensors["token_embedding.weight"].shape[0],
        tensors["positional_embedding"].shape[0],
    )
    vision, text = transformers
    return CLIPSizes(
        vision, text, grid * patch, patch, vocab_size, context, tensors["visual.proj"].shape[1]
    )
