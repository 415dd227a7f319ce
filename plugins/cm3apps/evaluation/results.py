"""The stored results of an experiment.

A folder has the results of one model with one set of settings. Each result is a file, written atomically and
never measured twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3core.files import atomic_path, make_folder, remove_unfinished, write_text
from cm3core.outputs import OutputFolder
from cm3run.generation.weights import sha256_of
from cm3run.npy import save_array

if TYPE_CHECKING:
    from cm3run.model import Model

PARTS = "parts"
SETTINGS = "settings.json"
#: Incremented if the same settings give other figures.
_VERSION = 3


class ResultFolder:
    """A folder of results.

    Args:
        folder: new, empty, or from the same measurement.
        model: the values that identify the model.
        settings: the settings, a dataclass.

    Raises:
        CM3Error: the folder has something else.
        FileError: the folder can't be written.
    """

    def __init__(self, folder: Path, model: dict[str, Any], settings: Any) -> None:
        self.folder = folder
        wanted = json.loads(
            json.dumps({"version": _VERSION, "model": model, "settings": asdict(settings)})
        )
        OutputFolder(folder, resumes=True)
        path = folder / SETTINGS
        if path.is_file():
            _check_same(folder, _read_json(path), wanted)
        elif folder.is_dir() and not _is_begun(folder):
            raise CM3Error(
                str(folder),
                f"is not empty, but has no results of this experiment (it has {min(folder.iterdir()).name})",
                "name another folder with -o",
            )
        make_folder(folder)
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        make_folder(folder / PARTS)

    def figures(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figures `name`, measured unless they are stored."""
        path = self.folder / PARTS / f"{name}.json"
        found = _read_json(path)
        if found is None:
            write_text(path, json.dumps(measure(), indent=1) + "\n")
            found = _read_json(path)
        return found

    def pictures(self, name: str, draw: Callable[[], PixelArray]) -> PixelArray:
        """The pictures `name`, uint8 [N, H, W, 3], drawn unless they are stored."""
        path = self.folder / PARTS / f"{name}.npy"
        if not path.is_file():
            drawn = draw()
            with atomic_path(path) as temporary:
                save_array(temporary, drawn)
        pictures: PixelArray = np.load(path, allow_pickle=False)
        return pictures


def _is_begun(folder: Path) -> bool:
    """Whether a folder has only files left by a full disk or a kill before the settings were written, so
    that the same command can continue there."""
    remove_unfinished(folder)
    return all(
        path.name == PARTS and path.is_dir() and not any(path.iterdir())
        for path in folder.iterdir()
    )


def _check_same(folder: Path, found: Any, wanted: dict[str, Any]) -> None:
    if found == wanted:
        return
    differing: Sequence[str] = ()
    if isinstance(found, dict):
        differing = [
            f"{section} {key}"
            for section in ("model", "settings")
            for key, value in wanted[section].items()
            if not isinstance(found.get(section), dict) or found[section].get(key) != value
        ]
    raise CM3Error(
        str(folder),
        "has the results of another measurement"
        + (f" (different: {', '.join(differing)})" if differing else ""),
        "name another folder with -o, or repeat the command with the values in "
        f"{folder / SETTINGS}",
    )


def _read_json(path: Path) -> Any:
    """The content of a file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def identity(model: Model) -> dict[str, Any]:
    """The values that identify a model: recipe, weights and tokenizer, but not its path."""
    return {
        "recipe_hash": model.recipe_hash,
        "weights_sha256": sha256_of(model.components.own_decoder),
        "step": model.step,
        "image_tokenizer": model.components.image_tokenizer.fingerprint,
    }
