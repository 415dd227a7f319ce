"""Data sets in repositories of the Hugging Face Hub: the folder or file of `hf://datasets/USER/NAME[@REVISION][/PATH]`, in
the Hub's cache. Only files that a data set reads are fetched."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cm3core.files import user_path
from cm3plugins.datasets.pictures import SUFFIXES
from cm3run.hub import Wanted, contents, downloaded, is_address, listed, repo_of, resolved

if TYPE_CHECKING:
    from cm3run.hub import Repo
    from cm3run.hub.download import File

#: Ends of the names of files in a folder of captioned pictures or drawings, with their licences (`stated_licences`).
PICTURES = (
    *(*SUFFIXES, ".svg", ".txt", ".json", ".jsonl", ".csv", ".tsv"),
    *(".license", "LICENSE", "LICENSE.md"),
)
#: And of those of a table with its pictures.
TABLES = (*SUFFIXES, ".csv", ".jsonl", ".json", ".tsv", ".parquet")
#: And of those of token shards, with their tokenizers.
TOKENS = (".tar", ".json", ".txt", ".model", ".tiktoken", ".safetensors")
#: Files that name pictures beside them.
_LISTS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def local(path: str, suffixes: Sequence[str] = PICTURES, *, below: bool = True) -> Path:
    """The path of a data set on this machine, with `~` expanded; from the Hub, its files are downloaded first.

    Args:
        path: a path, or an address.
        suffixes: ends of the names of the files that are read in a folder. A file of records comes with the pictures
            below its folder.
        below: whether folders in the folder are read, too.

    Raises:
        DataError: it can't be downloaded, or there are no such files.
    """
    if not is_address(path):
        return user_path(path)
    repo = repo_of(path, kind="dataset")
    inner = PurePosixPath(repo.path)
    if inner.suffix.lower() not in (*_LISTS, ".tar"):
        patterns = _below(repo.path, suffixes)
        never = () if below else _below(repo.path, ("/*",))
        return _downloaded(repo, patterns, never) / repo.path
    beside = _below(str(inner.parent), SUFFIXES) if inner.suffix.lower() in _LISTS else ()
    return _downloaded(repo, (glob.escape(repo.path), *beside)) / repo.path


def local_pattern(path: str, names: Iterable[str]) -> Path:
    """The path of a pattern of files of the Hub on this machine, where they are downloaded first.

    Args:
        path: an address with a pattern.
        names: the addresses that it stands for, with patterns as in `fnmatch`.
    """
    repo = repo_of(path, kind="dataset")
    return _downloaded(repo, tuple(repo_of(one, kind="dataset").path for one in names)) / repo.path


def _below(folder: str, suffixes: Sequence[str]) -> tuple[str, ...]:
    start = "" if folder in ("", ".") else f"{glob.escape(folder)}/"
    return tuple(
        f"{start}*{end}" for suffix in suffixes for end in dict.fromkeys((suffix, suffix.upper()))
    )


def _downloaded(repo: Repo, patterns: tuple[str, ...], never: tuple[str, ...] = ()) -> Path:
    wanted = Wanted(patterns, never, check=_check)
    return downloaded(replace(repo, path=""), wanted)


def _check(repo: Repo, files: Sequence[File], wanted: Wanted) -> None:
    """Raise `DataError` if a repository has none of the files."""
    names = {one.name for one in files}
    if not any(map(wanted.takes, names)):
        listed = ", ".join(dict.fromkeys(one.lower() for one in wanted.patterns[:6]))
        raise repo.error(
            f"has no file {listed}{', ...' if len(wanted.patterns) > 6 else ''}; {contents(names)}",
            "correct dataset.path, or use the data set that reads such files: table for Parquet, webdataset for tars",
        )


def endings(path: str) -> set[str]:
    """The suffixes of the files of an address, lower case, without downloading them.

    Raises:
        DataError: the repository can't be listed.
    """
    repo = repo_of(path, kind="dataset")
    start = f"{repo.path}/" if repo.path else ""
    return {
        PurePosixPath(name).suffix.lower()
        for name in listed(replace(repo, path=""))
        if name.startswith(start) and not PurePosixPath(name).name.startswith(".")
    }


def title_of(path: str) -> str:
    """The name of a folder; of an address, that of the repository or of the folder in it."""
    if not is_address(path):
        return user_path(path).resolve().name
    repo = repo_of(path, kind="dataset")
    return PurePosixPath(repo.path or repo.id).name


def source_of(path: object) -> str:
    """The repository of an address with the commit that was downloaded; "" for any other path."""
    if not isinstance(path, str) or not is_address(path):
        return ""
    return str(resolved(replace(repo_of(path, kind="dataset"), path="")))
