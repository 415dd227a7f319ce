"""The upscaler's weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cm3plugins.trained.weights_file import WeightsFormat, filled
from cm3plugins.upscalers.edsr.model import EDSR
from cm3plugins.upscalers.edsr.settings import EDSRArchitecture

FORMAT = WeightsFormat(
    "edsr_architecture",
    EDSRArchitecture,
    how_to_train="train an upscaler with `cm3 upscaler train`",
    foreign="give the weights that the trainer wrote; other networks are read by upscaler=external",
)


def save_weights(
    path: str | Path,
    arch: EDSRArchitecture,
    state: Mapping[str, Tensor],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `state` as fp16, atomically. `notes` are further metadata."""
    FORMAT.save(path, arch, {name: tensor.half() for name, tensor in state.items()}, notes)


def load_weights(path: str | Path) -> tuple[EDSRArchitecture, dict[str, Tensor]]:
    """Architecture and fp32 tensors of a file from `save_weights`; see `WeightsFormat.load`."""
    return FORMAT.load(path)


def build_model(arch: EDSRArchitecture, state: Mapping[str, Tensor], place: str) -> EDSR:
    """The network with `state` loaded, in evaluation mode.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    return filled(EDSR(arch), state, place)
