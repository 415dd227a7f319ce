"""A model to convert: facts, and tensors under transformers' names, read lazily; and the folder written by a
conversion, which appears once it is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cm3core.errors import CheckpointError, CM3Error, FileError
from cm3core.files import check_not_input, make_ordinary, new_place
from cm3published.convert.facts import Facts
from cm3published.convert.names import Lazy

#: Printed once, and stored: a converted copy is under the licence of the weights.
LICENCE = (
    "Chameleon's weights, and those made from them, are under the Chameleon Research License: "
    "noncommercial research only, and not to enable what Meta disabled. A converted copy is too."
)


@dataclass(frozen=True)
class ModelFiles:
    """An opened model.

    Args:
        form: "meta", "hf" or "cm3"; for models other than Chameleon, their name.
        facts: sizes.
        tensors: the decoder's complete tensors, with transformers' names.
        left_out: names of values that are not converted -> reason.
        files: source files -> their MD5, if verified.
        params: texts of Meta's parameter files, by name, to be written back unchanged.
        num_shards: number of Meta's weights files in the source. None: unknown.
        text_tokenizer: file of the text tokenizer. None: it has none.
        licence: notice about the licence.
    """

    form: str
    facts: Facts
    tensors: Mapping[str, Lazy]
    left_out: Mapping[str, str]
    files: Mapping[str, str | None]
    params: Mapping[str, str] = field(default_factory=dict)
    num_shards: int | None = None
    text_tokenizer: Path | None = None
    licence: str = LICENCE

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the numbers."""
        counts: dict[torch.dtype, int] = {}
        for lazy in self.tensors.values():
            counts[lazy.dtype] = counts.get(lazy.dtype, 0) + torch.Size(lazy.shape).numel()
        return max(counts, key=lambda dtype: counts[dtype])

    def provenance(self) -> dict[str, Any]:
        """Return the provenance stored with the converted weights."""
        return {
            "converted_by": "cm3 convert",
            "from": self.form,
            "files": dict(self.files),
            "left_out": dict(self.left_out),
            "meta_params": dict(self.params),
            "licence": self.licence,
        }


@dataclass(frozen=True)
class Asked:
    """Requested name and picture size of a model of this framework.

    Args:
        name: name of its recipe.
        resolution, width: height and width of pictures in pixels. None: the model's own resolution; the height.
    """

    name: str
    resolution: int | None = None
    width: int | None = None

    def keys(self, own_resolution: int) -> dict[str, int]:
        """Return keys of the image tokenizer's section for a model with this resolution."""
        keys = {"resolution": self.resolution or own_resolution}
        return keys if self.width is None else {**keys, "width": self.width}


#: The file with `ModelFiles.provenance`.
PROVENANCE = "conversion.json"


def check_names(
    place: str, found: Iterable[str], wanted: Iterable[str], next_step: str = "copy the files again"
) -> None:
    """Raise `CheckpointError` unless the names are the same; lists missing and unknown ones."""
    found, wanted = set(found), set(wanted)
    problems = [
        f"{what} {', '.join(sorted(names)[:4])}"
        + (f" and {len(names) - 4} more" * (len(names) > 4))
        for what, names in (("missing:", wanted - found), ("not known:", found - wanted))
        if names
    ]
    if problems:
        raise CheckpointError(place, f"tensors {'; '.join(problems)}", next_step)


def check_shape(place: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise `CheckpointError` for a tensor that contradicts the config file."""
    if found != wanted:
        raise CheckpointError(
            place,
            f"{name} is {list(found)}, but the config implies {list(wanted)}",
            "use the params.json or config.json published with these weights",
        )


def check_type(place: str, name: str, dtype: torch.dtype) -> None:
    """Raise `CheckpointError` for a tensor of integers or booleans, which can't be weights."""
    if not dtype.is_floating_point:
        raise CheckpointError(
            place,
            f"{name} has the dtype {str(dtype).removeprefix('torch.')}, but weights are floating-point "
            "numbers",
            "copy the file again",
        )


def check_finite(place: str, name: str, tensor: torch.Tensor) -> None:
    """Raise `CheckpointError` for non-finite weights."""
    if not torch.isfinite(tensor).all():
        raise CheckpointError(place, f"{name} contains non-finite values", "copy the file again")


#: Files next to the weights that a copy must include.
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def check_new(out: Path, source: Path) -> None:
    """Raise `FileError` for a folder that exists; called before the source is opened, and again before it is written."""
    check_not_input(out, source)
    if Path(os.path.realpath(out)).exists():
        raise FileError(str(out), "already exists", "choose a new folder")


def write_new_folder(
    out: Path, source: Path, write: Callable[[Path], None], provenance: Mapping[str, Any]
) -> None:
    """Write a new folder, with its provenance and the source's notices.

    Args:
        out: must not exist.
        source: the source of the conversion.
        write: writes into an empty folder.
        provenance: provenance stored with it.

    Raises:
        FileError: it already exists, or can't be written; nothing is left behind.
    """
    check_new(out, source)
    target = Path(os.path.realpath(out))
    try:
        with new_place(target) as new:
            new.mkdir()
            write(new)
            (new / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
            for pattern in NOTICES:
                for notice in source.glob(pattern) if source.is_dir() else ():
                    if notice.is_file() and not notice.is_symlink():
                        shutil.copyfile(notice, new / notice.name)
            for path in new.rglob("*"):
                if path.is_file():  # safetensors' files can be read by their owner only
                    make_ordinary(path)
            new.rename(target)
    except CM3Error:
        raise
    except (OSError, RuntimeError) as error:  # raised by torch and safetensors for a full disk
        text = str(error).splitlines()[0]
        raise FileError(
            str(out), f"can't be written ({text})", "check the free space of the disk"
        ) from error


def recipe_name(folder: str) -> str:
    """Return a recipe name for a folder's name.

    >>> recipe_name("My Janus!")
    'My-Janus'
    """
    return re.sub(r"[^\w.-]+", "-", folder).strip(".-")[:100] or "converted"
