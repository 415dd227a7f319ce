"""Models in repositories of the Hugging Face Hub: their files at its root, as in an exported model's folder.

Only files that are read are fetched: tensors in safetensors, JSON, YAML and texts, the files of tokenizers, and small plugin
files, which don't run without permission (`carried`). A download has the rights of any model from somebody else
(`cm3run.trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3run.checkpoint.carried import CARRIED, MOST_BYTES, MOST_FILES, is_carried_name
from cm3run.checkpoint.layout import (
    COMPONENTS,
    IMAGE_TOKENIZER,
    PLUGINS,
    PROVENANCE,
    RECIPE,
    STATE,
    TOKENIZER,
    WEIGHTS,
    WORDS,
)
from cm3run.checkpoint.tasks import TASKS
from cm3run.hub import Wanted, downloaded, repo_of
from cm3run.printing import printable
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from cm3run.hub import Repo
    from cm3run.hub.download import File

#: Ends of the names of tokenizers' files.
SUFFIXES = (".json", ".txt", ".model", ".tiktoken", ".safetensors")
_FILES = (WEIGHTS, ADAPTER, ADAPTER_CONFIG, STATE, RECIPE, PLUGINS, COMPONENTS, WORDS, TASKS)
_FOLDERS = (TOKENIZER, IMAGE_TOKENIZER)


def download_model(model: str | Path) -> Path:
    """The folder of a model on the Hub, in the cache of downloads.

    Args:
        model: "hf://USER/NAME[@REVISION]".

    Raises:
        CheckpointError: it can't be downloaded, or the repository contains no model.
    """
    return downloaded(repo_of(model, kind="model"), WANTED)


def _check(repo: Repo, files: Sequence[File]) -> None:
    """Raise `CheckpointError` for a repository without a model, or with plugin files that no export has."""
    names = {one.name for one in files}
    if not {STATE, RECIPE} <= names or not names & {WEIGHTS, ADAPTER}:
        raise repo.error(
            f"contains no model of this framework, {_contents(names)}", _other(repo, names)
        )
    carried = [one for one in files if one.name.startswith(f"{CARRIED}/")]
    for one in carried:
        name = one.name.removeprefix(f"{CARRIED}/")
        too_large = one.size is not None and one.size > MOST_BYTES
        if len(carried) > MOST_FILES or too_large or not is_carried_name(name):
            raise repo.error(
                f"contains {printable(one.name)}, which is not one of at most {MOST_FILES} plugin files (NAME.py, at most "
                f"{MOST_BYTES // 1024} KiB)",
                f"ask its owner to remove anything else from the folder {CARRIED}",
            )


def _contents(names: set[str]) -> str:
    """What a repository holds instead of a model, as the end of a sentence."""
    if not names:
        return "it is empty"
    # what tells most about a model of another framework comes first
    first = sorted(names, key=lambda name: (name.startswith("."), name.count("/"), name))
    listed = ", ".join(printable(name) for name in first[:5])
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"it has {listed}{more}"


def _other(repo: Repo, names: set[str]) -> str:
    """The next step for a repository without a model."""
    if any(name.startswith("checkpoints/step-") for name in names):
        return (
            "it has a run's checkpoints: its owner can add the model to it with cm3 export RUN -o FOLDER --push "
            f"{repo.id}"
        )
    if "config.json" in names:
        return (
            f"download it (hf download {repo.id} --local-dir FOLDER), then convert it: cm3 convert FOLDER -o NEW --to cm3 "
            "(docs/models.md lists the models that can be converted)"
        )
    return "name a repository that cm3 export --push wrote"


WANTED = Wanted(
    (
        *(*_FILES, PROVENANCE),
        *(f"{folder}/*{suffix}" for folder in _FOLDERS for suffix in SUFFIXES),
        f"{CARRIED}/*.py",
    ),
    never=tuple(f"{folder}/*/*" for folder in (*_FOLDERS, CARRIED)),
    check=_check,
    needed=(STATE, RECIPE),
)
