"""The tokenizer's weights file: safetensors with the network's shape, as JSON, in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3plugins.image_tokenizers.vqgan.config import VQGANArchitecture
from cm3plugins.image_tokenizers.vqgan.model import VQModel, channels_last

#: Metadata key of the architecture.
ARCHITECTURE_KEY = "vqgan_architecture"


def save_weights(
    path: str | Path,
    arch: VQGANArchitecture,
    state: dict[str, Tensor],
    *,
    half: bool = False,
    notes: dict[str, str] | None = None,
) -> None:
    """Write `state` atomically; `half` stores all but the codebook as fp16. `notes` are further
    metadata."""
    tensors = {
        name: (tensor.half() if half and not name.startswith("quantize.") else tensor)
        .detach()
        .cpu()
        .contiguous()
        .clone()
        for name, tensor in state.items()
    }
    metadata = {ARCHITECTURE_KEY: json.dumps(asdict(arch), sort_keys=True), **(notes or {})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_weights(path: str | Path) -> tuple[VQGANArchitecture, dict[str, Tensor]]:
    """Architecture and fp32 tensors of a file that `save_weights` wrote.

    Raises `CheckpointError` when the file is missing, is not safetensors, or does not say its
    architecture.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            str(path), "no such file", "train a tokenizer with `cm3 tokenizer train-image`"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(
            str(path),
            f"not a readable safetensors file ({error})",
            "give the weights that the trainer wrote; pickles are refused",
        ) from error
    if ARCHITECTURE_KEY not in metadata:
        raise CheckpointError(
            str(path),
            f"the metadata has no {ARCHITECTURE_KEY!r}",
            "give the weights that the trainer wrote",
        )
    try:
        values = json.loads(metadata[ARCHITECTURE_KEY])
        fields: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        arch = VQGANArchitecture(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            str(path),
            f"its architecture can't be read ({error})",
            "give weights that this version's trainer wrote",
        ) from error
    return arch, state


def build_model(arch: VQGANArchitecture, state: dict[str, Tensor], place: str) -> VQModel:
    """The network with `state` loaded, in evaluation mode; raises `CheckpointError` on other keys
    or shapes."""
    model = VQModel(arch)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            place,
            f"the weights do not fit the architecture ({str(error).splitlines()[-1].strip()})",
            "use the file's own architecture, or other weights",
        ) from error
    return channels_last(model.eval().requires_grad_(False))
