"""Models in repositories of the Hugging Face Hub: their files at its root, as in an exported model's folder.

Only files that are read are fetched: tensors in safetensors, JSON, YAML and texts, the files of tokenizers, and small plugin
files, which don't run without permission (`carried`). A download has the rights of any model from somebody else
(`cm3run.trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
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
from cm3run.hub import Wanted, check_upload, contents, downloaded, is_address, repo_of, upload
from cm3run.hub.download import File
from cm3run.printing import printable
from cm3run.trust import check_links, trust_of
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from cm3run.hub import Repo

#: Ends of the names of tokenizers' files.
SUFFIXES = (".json", ".txt", ".model", ".tiktoken", ".safetensors")
_FILES = (WEIGHTS, ADAPTER, ADAPTER_CONFIG, STATE, RECIPE, PLUGINS, COMPONENTS, WORDS, TASKS)
_FOLDERS = (TOKENIZER, IMAGE_TOKENIZER)
#: The repository's model card; and pictures that a model's card names.
README, PICTURES_OF_CARDS = "README.md", "CARD-*.png"
#: Files that are pushed with a model, and not read.
_BESIDE = Wanted((PICTURES_OF_CARDS, "LICENSE*", "LICENCE*", "NOTICE*"), never=("*/*",))


def download_model(model: str | Path) -> Path:
    """The folder of a model on the Hub, in the cache of downloads.

    Args:
        model: "hf://USER/NAME[@REVISION]".

    Raises:
        CheckpointError: it can't be downloaded, or the repository contains no model.
    """
    return downloaded(repo_of(model, kind="model"), WANTED)


def target_of_push(name: str) -> Repo:
    """The repository for a model to be pushed: "USER/NAME", or with a branch "USER/NAME@BRANCH".

    Raises:
        CheckpointError: the name is malformed, or an upload can't succeed (no token, no connection).
    """
    repo = repo_of(name if is_address(name) else f"hf://{name}", kind="model")
    check_upload(repo)
    return repo


def push_model(folder: Path, repo: Repo, readme: str, *, private: bool = False) -> str:
    """Write a model folder to a repository, in one commit that replaces the model there; return the commit's page.

    Only files of a model are pushed, with pictures of its card and licences. Other files of the repository stay.

    Args:
        folder: an exported model.
        repo: from `target_of_push`.
        readme: Markdown for README.md, the repository's model card.
        private: whether a new repository is private.

    Raises:
        CheckpointError: the folder contains no model, or the upload failed.
        TrustError: a link in the folder points outside it.
    """
    check_links(folder, trust_of(folder, []))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    files: dict[str, Path | bytes] = {
        name: path for name, path in named.items() if WANTED.takes(name) or _BESIDE.takes(name)
    }
    found = [File(name, path.stat().st_size) for name, path in named.items() if name in files]
    _check(repo, found, WANTED)
    return upload(
        repo,
        files | {README: readme.encode()},
        replaces=lambda name: WANTED.takes(name) or fnmatchcase(name, PICTURES_OF_CARDS),
        message="Upload a model with cm3 export",
        private=private,
    )


def _check(repo: Repo, files: Sequence[File], _: Wanted) -> None:
    """Raise `CheckpointError` for a repository without a model, or with plugin files that no export has."""
    names = {one.name for one in files}
    if not _has_model(names):
        raise repo.error(
            f"contains no model of this framework, {contents(names)}", _other(repo, names)
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


def _has_model(names: set[str]) -> bool:
    return {STATE, RECIPE} <= names and not names.isdisjoint({WEIGHTS, ADAPTER})


def _is_model(folder: Path) -> bool:
    return _has_model({path.name for path in folder.iterdir() if path.exists()})


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
    is_whole=_is_model,
)
