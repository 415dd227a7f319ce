"""Weight files of trained embedders.

safetensors in fp16, with format and sizes as JSON in the header's entry `cm3leon`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cm3core.errors import CheckpointError, DataError
from cm3plugins.trained.weights_file import check_finite
from cm3run.json_text import parse_json


def read_weights(path: Path, form: str, next_step: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors (floating ones as float32) of a file.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or holds NaN or infinity;
            `next_step` is the error's next step.
    """
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", next_step)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(path), f"is not a complete safetensors file ({error})", next_step
        ) from error
    try:
        stated = metadata.get("cm3leon", "{}")
        header: dict[str, Any] = parse_json(stated, str(path), form=dict[str, Any])
    except DataError as error:
        raise CheckpointError(
            str(path), f"its header can't be read ({error.cause})", next_step
        ) from error
    found = header.pop("format", metadata.get("format"))
    if found != form:
        raise CheckpointError(str(path), f"has the format {found!r}, not {form!r}", next_step)
    check_finite(tensors, path)
    return header, {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, next_step: str) -> None:
    """Load a network's whole state; raises `CheckpointError` if names or shapes differ."""
    try:
        network.load_state_dict(
            dict(tensors), assign=any(value.is_meta for value in network.state_dict().values())
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            str(path), f"its tensors don't match its sizes ({reason[:300]})", next_step
        ) from error
