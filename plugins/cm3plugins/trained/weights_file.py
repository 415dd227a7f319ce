"""Weights files: safetensors with the network's architecture, as JSON, in their metadata.

Weights must be finite: other values are neither written nor read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3core.errors import CheckpointError, CM3Error, DataError
from cm3core.files import atomic_path
from cm3core.recipe.layers import STORED
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that contains NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError`, naming the first tensor that contains NaN or infinity."""
    name = first_not_finite(tensors)
    if name is not None:
        raise CheckpointError(
            str(path),
            f"{name} contains NaN or infinity",
            "use weights of a run that did not diverge",
        )


def check_before_saving(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CM3Error` if training has diverged, so that earlier weights stay."""
    name = first_not_finite(tensors)
    if name is not None:
        raise CM3Error(
            str(path),
            f"training has diverged: {name} contains NaN or infinity; nothing is saved",
            "lower the learning rate, and start in another folder",
        )


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def channels_last(module: ModuleT) -> ModuleT:
    """Convert convolution weights to channels-last, in place: about 1.5 times faster on a CPU."""
    for parameter in module.parameters():
        # 3D convolutions have five dimensions, which this layout does not support
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


ArchitectureT = TypeVar("ArchitectureT", bound="DataclassInstance")

_TRAINERS = "use weights written by the trainer"


@dataclass(frozen=True)
class WeightsFormat(Generic[ArchitectureT]):
    """Format of a component's weights files.

    Args:
        key: metadata key of the architecture.
        architecture: class of the architecture, a dataclass of plain values.
        how_to_train: next step if there is no such file.
        foreign: next step if a file has no architecture.
    """

    key: str
    architecture: type[ArchitectureT]
    how_to_train: str
    foreign: str = _TRAINERS

    def save(
        self,
        path: str | Path,
        arch: ArchitectureT,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Write tensors unchanged, atomically. `notes` are further metadata.

        Raises `CM3Error` if a tensor is not finite; an existing file is then kept.
        """
        copies = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
        check_before_saving(copies, Path(path))
        metadata = {self.key: json.dumps(asdict(arch), sort_keys=True), **(notes or {})}
        with atomic_path(path) as temporary:
            save_file(copies, temporary, metadata)

    def load(self, path: str | Path) -> tuple[ArchitectureT, dict[str, Tensor]]:
        """Read architecture and fp32 tensors of a file written by `save`.

        Raises:
            CheckpointError: the file is missing, is not safetensors, does not state its architecture, or
                holds numbers that are not finite.
        """
        if not Path(path).is_file():
            raise CheckpointError(str(path), "there is no such file", self.how_to_train)
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise CheckpointError(
                str(path),
                f"is not a readable safetensors file ({error})",
                f"{_TRAINERS}; pickles are rejected",
            ) from error
        if self.key not in metadata:
            raise CheckpointError(str(path), f"has no {self.key!r} in its metadata", self.foreign)
        try:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in parse_json(
                    metadata[self.key], str(path), form=dict[str, Any]
                ).items()
            }
            arch = self.architecture(**values)
        except (TypeError, ValueError) as error:
            cause = error.cause if isinstance(error, DataError) else error
            raise CheckpointError(
                str(path),
                f"its architecture can't be read ({cause})",
                "use weights written by this version's trainer",
            ) from error
        check_finite(state, Path(path))
        return arch, state


def check_architecture(
    wanted: DataclassInstance, stored: DataclassInstance, path: Path, section: str
) -> None:
    """Raise a `CheckpointError` that lists the differences between a recipe's section and a file."""
    given, found = asdict(wanted), asdict(stored)
    differing = [
        f"{key} is {found[key]} in the file and {given[key]} in the recipe"
        for key in given
        if given[key] != found[key]
    ]
    if differing:
        raise CheckpointError(
            str(path),
            "has another architecture: " + ", ".join(differing),
            f"write {section}={path.parent}, which takes all keys from there"
            if (path.parent / STORED).is_file()
            else f"set these keys of {section}, or use other weights",
        )


def filled(model: ModuleT, state: Mapping[str, Tensor], place: str) -> ModuleT:
    """Return the network with `state` loaded, in evaluation mode, without gradients, channels-last.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            place,
            f"the weights do not fit the architecture ({str(error).splitlines()[-1].strip()})",
            "use the file's own architecture, or other weights",
        ) from error
    return channels_last(model.eval().requires_grad_(False))
