"""A model that is being converted: facts, and tensors under transformers' names, read lazily; and the folder that a
conversion writes, which appears when it is complete."""

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
from cm3core.files import check_not_input, new_place
from cm3published.convert.facts import Facts
from cm3published.convert.names import Lazy

#: Said once, and stored: a copy in another form is under the licence of the weights.
LICENCE = (
    "Chameleon's weights, and those made from them, are under the Chameleon Research License: "
    "noncommercial research only, and not to enable what Meta disabled. A converted copy is too."
)


@dataclass(frozen=True)
class ModelFiles:
    """What was opened.

    Args:
        form: "meta", "hf" or "cm3"; of models that are not Chameleons their name.
        facts: sizes.
        tensors: those of the decoder, whole, under transformers' names.
        left_out: names of what is there and not converted, with the reason.
        files: the files it is read from, with their MD5 where it was verified.
        params: texts of Meta's files of parameters, by name, to be written back unchanged.
        num_shards: number of Meta's files of weights that these come from. None: not known.
        text_tokenizer: the file of its text tokenizer. None: it has none.
        licence: what is said of it.
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
        """The type that most of the numbers have."""
        counts: dict[torch.dtype, int] = {}
        for lazy in self.tensors.values():
            counts[lazy.dtype] = counts.get(lazy.dtype, 0) + torch.Size(lazy.shape).numel()
        return max(counts, key=lambda dtype: counts[dtype])

    def provenance(self) -> dict[str, Any]:
        """What is stored beside the converted weights."""
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
    """What a model of this framework is to be called, and how large its pictures are.

    Args:
        name: of its recipe.
        resolution, width: of pictures, in pixels. None: the model's own resolution; as wide as high.
    """

    name: str
    resolution: int | None = None
    width: int | None = None

    def keys(self, own_resolution: int) -> dict[str, int]:
        """Keys of the image tokenizer's section, for a model of this resolution."""
        keys = {"resolution": self.resolution or own_resolution}
        return keys if self.width is None else {**keys, "width": self.width}


#: The file with `ModelFiles.provenance`.
PROVENANCE = "conversion.json"


def check_names(
    place: str, found: Iterable[str], wanted: Iterable[str], next_step: str = "copy the files again"
) -> None:
    """Raise `CheckpointError` unless the names are the same; it lists what is missing and unused."""
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
    """Raise `CheckpointError` for a tensor that contradicts the file of sizes."""
    if found != wanted:
        raise CheckpointError(
            place,
            f"{name} is {list(found)}, and the sizes say {list(wanted)}",
            "give the params.json or config.json that was published with these weights",
        )


def check_type(place: str, name: str, dtype: torch.dtype) -> None:
    """Raise `CheckpointError` for a tensor of whole numbers or flags: weights are neither."""
    if not dtype.is_floating_point:
        raise CheckpointError(
            place,
            f"{name} is of type {str(dtype).removeprefix('torch.')}, and weights are floating-point "
            "numbers",
            "copy the file again",
        )


def check_finite(place: str, name: str, tensor: torch.Tensor) -> None:
    """Raise `CheckpointError` for weights that no training leaves behind."""
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            place, f"{name} holds values that are not finite", "copy the file again"
        )


#: Files beside the weights that a copy must keep.
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_new_folder(
    out: Path, source: Path, write: Callable[[Path], None], provenance: Mapping[str, Any]
) -> None:
    """Write a new folder, with where it comes from and the source's notices.

    Args:
        out: must not be there.
        source: what is converted.
        write: writes into an empty folder.
        provenance: stored beside it.

    Raises:
        FileError: it is there already, or can't be written; nothing is left behind.
    """
    check_not_input(out, source)
    target = Path(os.path.realpath(out))
    if target.exists():
        raise FileError(str(out), "is there already", "give a new folder")
    try:
        with new_place(target) as new:
            new.mkdir()
            write(new)
            (new / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
            for pattern in NOTICES:
                for notice in source.glob(pattern) if source.is_dir() else ():
                    if notice.is_file() and not notice.is_symlink():
                        shutil.copyfile(notice, new / notice.name)
            new.rename(target)
    except CM3Error:
        raise
    except (OSError, RuntimeError) as error:  # torch and safetensors report a full disk so
        text = str(error).splitlines()[0]
        raise FileError(
            str(out), f"can't be written ({text})", "see whether the disk has room for it"
        ) from error


def recipe_name(folder: str) -> str:
    """A recipe's name of a folder's.

    >>> recipe_name("My Janus!")
    'My-Janus'
    """
    return re.sub(r"[^\w.-]+", "-", folder).strip(".-")[:100] or "converted"
