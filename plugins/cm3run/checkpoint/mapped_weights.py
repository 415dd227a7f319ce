"""Large weights for generation: mapped from their file in place of read into memory.

A decoder of 7 billion parameters has 14 GB of bfloat16 weights, which would take 28 GB in float32. It
is built without weights, and its parameters become the file's own tensors, in the type in which they
are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from cm3run.checkpoint.adapters import is_adapter
from cm3run.checkpoint.hashes import check_file
from cm3run.checkpoint.layout import WEIGHTS, damaged
from cm3run.checkpoint.state import read_state
from cm3run.checkpoint.tensors import check_tensors
from cm3run.mapped import map_tensors

if TYPE_CHECKING:
    from cm3core.recipe import Recipe

#: Bytes of a weight file from which it is mapped. A smaller one is read into float32.
MAPPED_FROM = 256_000_000
#: Types that are computed with as they are stored.
KEPT = (torch.float32, torch.bfloat16)


def maps(folder: Path, recipe: Recipe, device: torch.device) -> bool:
    """Whether a checkpoint's weights are mapped: on a CPU, a whole model in one large file, for a
    decoder that can be built without weights."""
    if device.type != "cpu" or is_adapter(folder) or recipe.decoder is None:
        return False
    path = folder / WEIGHTS
    large = path.is_file() and path.stat().st_size >= MAPPED_FROM
    return large and bool(getattr(recipe.decoder, "builds_without_weights", False))


def map_model(decoder: nn.Module, folder: Path) -> None:
    """Make a checkpoint's tensors the parameters of a decoder that was built on "meta".

    Types other than bfloat16 and float32 are read into float32.

    Raises:
        CheckpointError: they are another decoder's, or damaged.
    """
    path = folder / WEIGHTS
    try:
        stored = map_tensors(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, f"is not a complete safetensors file ({error})") from error
    check_file(folder, WEIGHTS, read_state(folder))
    check_tensors(path, stored, decoder.state_dict())
    kept = {
        name: tensor if tensor.dtype in KEPT else tensor.float() for name, tensor in stored.items()
    }
    decoder.load_state_dict(kept, assign=True)
