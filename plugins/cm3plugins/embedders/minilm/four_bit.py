"""Weights of a BERT in four bits: 11 MB instead of 91 for all-MiniLM-L6-v2.

Matrices are stored as in `cm3plugins.trained.four_bits`, everything else in fp16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3plugins.embedders.minilm.bert import Bert, BertSizes, SentenceEncoder, read_tokenizer
from cm3plugins.embedders.weights import fill, read_weights
from cm3plugins.trained.four_bits import GROUP, dequantise, quantise

#: Name of the file in its folder.
WEIGHTS = "minilm.safetensors"
_FORMAT = "cm3leon four-bit bert 1"
_NEXT = "reinstall cm3leon"
#: Suffixes of a matrix's two tensors.
_CODES, _SCALES = ".codes", ".scales"


def save_four_bit(
    sizes: BertSizes, weights: Mapping[str, Tensor], path: Path, max_tokens: int
) -> None:
    """Write a BERT's weights, atomically; equal weights give equal files.

    Args:
        sizes, weights: of the BERT; names as in transformers' `BertModel`.
        path: the file.
        max_tokens: positions to keep.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("position_embeddings.weight"):
            tensors[name] = value[:max_tokens].half().contiguous()
        elif value.ndim == 2 and value.shape[1] % GROUP == 0 and value.shape[0] >= GROUP:
            tensors[name + _CODES], tensors[name + _SCALES] = quantise(value)
        else:
            tensors[name] = value.half().contiguous()
    header = asdict(replace(sizes, max_position_embeddings=max_tokens))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"cm3leon": json.dumps({"format": _FORMAT, "sizes": header})})


def load_four_bit(folder: Path) -> SentenceEncoder:
    """Load `WEIGHTS` and `tokenizer.json` of a folder; raises `CheckpointError` if they can't be used."""
    path = folder / WEIGHTS
    header, tensors = read_weights(path, _FORMAT, _NEXT)
    try:
        sizes = BertSizes(**header["sizes"])
        weights = {name: tensors[name] for name in tensors if not name.endswith((_CODES, _SCALES))}
        for name in tensors:
            if name.endswith(_CODES):
                own = name.removesuffix(_CODES)
                weights[own] = dequantise(tensors[name], tensors[own + _SCALES])
        # not on the device "meta", whose first use imports hundreds of modules, for seconds
        with torch.random.fork_rng(devices=[]):
            network = Bert(sizes)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(str(path), f"is not a BERT in four bits ({error})", _NEXT) from error
    fill(network, weights, path, _NEXT)
    return SentenceEncoder(network, read_tokenizer(folder / "tokenizer.json", _NEXT))
