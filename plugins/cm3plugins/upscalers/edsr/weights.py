"""The upscaler's weights file: safetensors with the network's shape, as JSON, in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3plugins.upscalers.edsr.config import EDSRArchitecture
from cm3plugins.upscalers.edsr.model import EDSR, channels_last

#: Metadata key of the architecture.
ARCHITECTURE_KEY = "edsr_architecture"


def save_weights(
    path: str | Path,
    arch: EDSRArchitecture,
    state: dict[str, Tensor],
    notes: dict[str, str] | None = None,
) -> None:
    """Write `state` as fp16, atomically. `notes` are further metadata."""
    tensors = {
        name: tensor.detach().half().cpu().contiguous().clone() for name, tensor in state.items()
    }
    metadata = {ARCHITECTURE_KEY: json.dumps(asdict(arch), sort_keys=True), **(notes or {})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_weights(path: str | Path) -> tuple[EDSRArchitecture, dict[str, Tensor]]:
    """Architecture and fp32 tensors of a file that `save_weights` wrote.

    Raises `CheckpointError` when the file is missing, is not safetensors, or does not say its
    architecture.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            str(path), "no such file", "train an upscaler with `cm3 upscaler train`"
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
            "give the weights that the trainer wrote; other networks are read by upscaler=external",
        )
    try:
        arch = EDSRArchitecture(**json.loads(metadata[ARCHITECTURE_KEY]))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            str(path),
            f"its architecture can't be read ({error})",
            "give weights that this version's trainer wrote",
        ) from error
    return arch, state


def build_model(arch: EDSRArchitecture, state: dict[str, Tensor], place: str) -> EDSR:
    """The network with `state` loaded, in evaluation mode; raises `CheckpointError` on other keys
    or shapes."""
    model = EDSR(arch)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            place,
            f"the weights do not fit the architecture ({str(error).splitlines()[-1].strip()})",
            "use the file's own architecture, or other weights",
        ) from error
    return channels_last(model.eval().requires_grad_(False))
