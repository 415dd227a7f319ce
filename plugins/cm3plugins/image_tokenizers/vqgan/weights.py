"""The tokenizer's weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture
from cm3plugins.trained.weights_file import WeightsFormat, filled

FORMAT = WeightsFormat(
    "vqgan_architecture",
    VQGANArchitecture,
    how_to_train="train a tokenizer with `cm3 tokenizer train-image`",
)


def save_weights(
    path: str | Path,
    arch: VQGANArchitecture,
    state: Mapping[str, Tensor],
    *,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `state` atomically; `half` stores all but the codebook as fp16.

    `notes` are further metadata.
    """
    tensors = {
        name: tensor.half() if half and not name.startswith("quantize.") else tensor
        for name, tensor in state.items()
    }
    FORMAT.save(path, arch, tensors, notes)


def load_weights(path: str | Path) -> tuple[VQGANArchitecture, dict[str, Tensor]]:
    """Architecture and fp32 tensors of a file from `save_weights`; see `WeightsFormat.load`."""
    return FORMAT.load(path)


def build_model(arch: VQGANArchitecture, state: Mapping[str, Tensor], place: str) -> VQModel:
    """The network with `state` loaded, in evaluation mode.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    return filled(VQModel(arch), state, place)
