"""Where things lie: the files of a checkpoint and the checkpoints of a run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from cm3core.errors import CheckpointError
from cm3core.files import read_text
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.plugins.registry import COMPONENTS, PLUGINS
from cm3core.recipe.layers import STORED

__all__ = [
    "COMPONENTS",
    "IMAGE_TOKENIZER",
    "OPTIMIZER",
    "PLUGINS",
    "PROVENANCE",
    "RECIPE",
    "STATE",
    "TOKENIZER",
    "WEIGHTS",
    "WORDS",
    "complete_checkpoints",
    "damaged",
    "find_checkpoint",
    "latest_checkpoint",
    "provenance_file",
    "shards_of",
]

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
RECIPE = STORED
#: Licences of what a run was trained on and retrieved from; beside its checkpoints, in an exported model.
PROVENANCE = "provenance.json"
#: The words of the training texts, one a line.
WORDS = "words.txt"
#: Folder of a checkpoint's text tokenizer; the image tokenizer's is called as in a memory bank.
TOKENIZER = "text_tokenizer"


def shards_of(name: str) -> str:
    """The folder that holds the parts of a tensor file, where several processes wrote it.

    >>> shards_of(WEIGHTS)
    'model_shards'
    """
    return f"{name.removesuffix('.safetensors')}_shards"


def complete_checkpoints(out_dir: str | Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    folders = (Path(out_dir) / "checkpoints").glob("step-*")
    return sorted(
        path
        for path in folders
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / STATE).is_file()
    )


def latest_checkpoint(out_dir: str | Path) -> Path | None:
    """A run's newest complete checkpoint, None when it has none."""
    return max(
        complete_checkpoints(out_dir),
        key=lambda path: int(path.name.removeprefix("step-")),
        default=None,
    )


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint or model folder that `path` names: itself, or a run's newest. Raises
    `CheckpointError`."""
    folder = Path(path)
    if (folder / STATE).is_file():
        return folder
    if (newest := latest_checkpoint(folder)) is not None:
        return newest
    if (kind := _hugging_face_type(folder)) is not None:
        raise CheckpointError(
            str(folder),
            f"is a model of Hugging Face's format ({kind}), not of this framework's",
            f"convert it: cm3 convert {shlex.quote(str(folder))} -o {shlex.quote(folder.absolute().name + '-cm3')} "
            "--to cm3 (docs/models.md lists the models that can be converted)",
        )
    cause = (
        "holds no checkpoint and no model"
        if folder.is_dir()
        else "does not exist"
        if not folder.exists()
        else "is a file"
    )
    raise CheckpointError(
        str(folder),
        cause,
        "name a run's folder (cm3 train -o), one of its checkpoints, or an exported model",
    )


def _hugging_face_type(folder: Path) -> str | None:
    """The type of model that a folder of Hugging Face's format states; None: it is none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        kind = json.loads(read_text(path))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if isinstance(kind, str) and kind.isprintable() else None


def provenance_file(folder: Path) -> Path | None:
    """The file of licences of an exported model, or of the run of a checkpoint; None if there is none."""
    run = [folder.parent.parent] if folder.parent.name == "checkpoints" else []
    return next(
        (place / PROVENANCE for place in (folder, *run) if (place / PROVENANCE).is_file()), None
    )


def damaged(path: Path, cause: str) -> CheckpointError:
    """The error of a file in a checkpoint that can't be used."""
    return CheckpointError(
        str(path),
        cause,
        f"delete {path.parent} to use the checkpoint before it, or copy it again from where it "
        "came",
    )
