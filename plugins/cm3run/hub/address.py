"""Addresses of the Hugging Face Hub: `hf://USER/NAME[@REVISION]` is a model, `hf://datasets/USER/NAME[@REVISION][/PATH]` a
data set, or a file, folder or pattern in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from cm3core.errors import CheckpointError, CM3Error, DataError

#: As written, or as spelled by a `Path`.
_SCHEME = re.compile(r"hf:/+", re.IGNORECASE)
_NAME = r"[A-Za-z0-9_][\w.-]{0,95}"
#: A branch, a tag or a commit. `refs/pr/1` and `refs/convert/parquet` are the revisions with slashes that the Hub makes.
_REVISION = r"refs/(?:pr|convert)/\w[\w.-]*|\w[\w.-]*"
_MODEL = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?/?", re.ASCII)
_DATASET = re.compile(
    rf"datasets/(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?(?:/(?P<path>.*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
Kind: TypeAlias = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repo:
    """A repository.

    Args:
        kind: "model" or "dataset".
        id: "USER/NAME".
        revision: a branch, tag or commit; "": the default branch.
        path: a file, folder or pattern in a data set; "": all of it.
    """

    kind: Kind
    id: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        datasets = "datasets/" if self.kind == "dataset" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{datasets}{self.id}{revision}" + (f"/{self.path}" if self.path else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, folder: Path) -> Repo:
        """The repository at the commit whose downloaded files are in a folder of the cache."""
        return replace(self, revision=folder.name)

    def error(self, cause: str, next_step: str) -> CM3Error:
        """The error for this repository."""
        return (CheckpointError if self.kind == "model" else DataError)(str(self), cause, next_step)


def is_address(text: object) -> bool:
    """Whether a text is an address of the Hub.

    >>> [is_address(one) for one in ("hf://me/bells", "runs/bells", "bundled:icons64")]
    [True, False, False]
    """
    return _SCHEME.match(str(text)) is not None


def repo_of(address: object, *, kind: Kind) -> Repo:
    """The repository that an address names.

    >>> repo_of("hf://me/bells@v2", kind="model")
    Repo(kind='model', id='me/bells', revision='v2', path='')
    >>> repo_of("hf://datasets/me/bells/train", kind="dataset")
    Repo(kind='dataset', id='me/bells', revision='', path='train')

    Raises:
        CheckpointError, DataError: it is malformed, or names a repository of the other kind.
    """
    rest = _SCHEME.sub("", str(address), count=1)
    wrong = CheckpointError if kind == "model" else DataError
    is_dataset = rest.startswith("datasets/")
    found = (_DATASET if is_dataset else _MODEL).fullmatch(rest)
    parts = {} if found is None else found.groupdict()
    path = (parts.get("path") or "").strip("/")
    if found is None or {".", ".."} & set(path.split("/")) or not path.isprintable():
        raise wrong(
            str(address),
            "is not the address of a repository of the Hugging Face Hub",
            "write hf://USER/NAME, hf://USER/NAME@REVISION, or hf://datasets/USER/NAME for a data set",
        )
    if is_dataset != (kind == "dataset"):
        raise wrong(
            str(address),
            "names a data set, not a model" if is_dataset else "names a model, not a data set",
            "write hf://USER/NAME" if is_dataset else "write hf://datasets/USER/NAME",
        )
    return Repo(kind, parts["id"], parts["revision"] or "", path)
