"""Hugging Face's format: `config.json`, and safetensors (or `pytorch_model*.bin`) with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3plugins.trained.tensor_files import TensorFile, open_tensors
from cm3published.convert.facts import from_config, read_json, to_config
from cm3published.convert.model import (
    ModelFiles,
    check_finite,
    check_names,
    check_shape,
    check_type,
)
from cm3published.convert.names import Lazy, Part, parts

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
#: Index of several weights files, and the single file, in search order.
_WEIGHTS = ((INDEX, SINGLE), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
#: Prefix of the image tokenizer, which has a separate file in Meta's format.
TOKENIZER_PREFIX = "model.vqmodel."
#: Maximum bytes of a weights file, as split by transformers.
MOST_BYTES = 5 * 10**9


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder has Hugging Face's format."""
    return (folder / CONFIG).is_file()


def open_hugging_face(folder: Path, stack: ExitStack) -> ModelFiles:
    """Open a folder; files stay open as long as `stack`.

    Norms of queries and keys may have a row per head, or per group of heads.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    facts = from_config(read_json(folder / CONFIG), str(folder / CONFIG))
    owners, names = files_of(folder, stack)
    left_out = {
        name: "of the image tokenizer" for name in owners if name.startswith(TOKENIZER_PREFIX)
    }
    wanted = parts(facts)
    check_names(str(folder), set(owners) - set(left_out), [part.hugging_face for part in wanted])
    tensors = {
        part.hugging_face: lazy_of(part, owners[part.hugging_face], facts.num_key_heads)
        for part in wanted
    }
    return ModelFiles("hf", facts, tensors, left_out, dict.fromkeys(names))


def write_hugging_face(
    model: ModelFiles, folder: Path, extra: dict[str, Any], most_bytes: int = MOST_BYTES
) -> list[str]:
    """Write Hugging Face's format into an empty folder; return the names of the files.

    Args:
        model: model to write.
        folder: existing empty folder.
        extra: further keys of `config.json`.
        most_bytes: maximum bytes of a weights file.
    """
    files = write_weights(model.tensors, folder, most_bytes)
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, to_config(model.facts, dtype) | extra)
    return [CONFIG, *files]


def write_weights(
    tensors: Mapping[str, Lazy], folder: Path, most_bytes: int = MOST_BYTES
) -> list[str]:
    """Write tensors as safetensors files of at most `most_bytes`, with an index if there are several; return the
    names of the files. Each file's tensors are in memory while it is written."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, lazy in tensors.items():
        own = torch.Size(lazy.shape).numel() * lazy.dtype.itemsize
        if groups[-1] and size + own > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    many = len(groups) > 1
    files: list[str] = []
    index: dict[str, str] = {}
    for place, group in enumerate(groups, start=1):
        file = f"model-{place:05}-of-{len(groups):05}.safetensors" if many else SINGLE
        own_part = {name: tensors[name].read().contiguous().clone() for name in group}
        save_file(own_part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(group, file)
        files.append(file)
    if many:
        total = sum(
            torch.Size(lazy.shape).numel() * lazy.dtype.itemsize for lazy in tensors.values()
        )
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
        files.append(INDEX)
    return files


def files_of(folder: Path, stack: ExitStack) -> tuple[dict[str, TensorFile], list[str]]:
    """Return the file of each tensor, and the files' names.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    there = [pair for pair in _WEIGHTS if any((folder / name).is_file() for name in pair)]
    index_name, single = (there or _WEIGHTS)[0]
    index = folder / index_name
    if not index.is_file():
        file = stack.enter_context(open_tensors(folder / single))
        return dict.fromkeys(file.entries, file), [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise CheckpointError(str(index), "has no weight_map of tensors to files", "copy it again")
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            str(folder / missing[0]),
            f"is missing, one of {len(names)} files listed in {index_name}",
            "copy it, too",
        )
    opened = {name: stack.enter_context(open_tensors(folder / name)) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in opened[name].entries:
            raise CheckpointError(
                str(folder / name),
                f"lacks {tensor}, although {index_name} lists it",
                "copy it again",
            )
    return {tensor: opened[name] for tensor, name in weight_map.items()}, names


def lazy_of(part: Part, file: TensorFile, key_heads: int, name: str = "") -> Lazy:
    """Return a tensor of a file in transformers' order; head norms may be per group of heads.

    Args:
        part: the tensor.
        file: file that contains it.
        key_heads: number of key and value heads, which the number of groups divides.
        name: name in the file; "": transformers'.

    Raises:
        CheckpointError: the tensor has another shape.
    """
    name = name or part.hugging_face
    found = file.entries[name]
    shape = found.shape
    groups = shape[0] if part.is_head_norm and len(shape) == 2 else 0
    if groups and key_heads % groups == 0:
        shape = (part.shape[0], *shape[1:])
    if part.is_head_norm and part.shape[0] == 1 and len(shape) == 1:
        shape = (1, *shape)  # one norm for all heads
    check_shape(str(file.path), name, shape, part.shape)
    check_type(str(file.path), name, found.dtype)

    def read() -> Tensor:
        tensor = file.tensor(name)
        check_finite(str(file.path), name, tensor)
        if not part.is_head_norm:
            return tensor
        tensor = tensor.view(-1, part.shape[1])
        return tensor.repeat_interleave(part.shape[0] // len(tensor), dim=0)

    return Lazy(part.shape, found.dtype, read)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
