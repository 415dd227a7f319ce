"""A repository's files, downloaded into the cache of the package huggingface_hub, where other programs find them, too.

Only files that are asked for are fetched. A revision is resolved once in each process, so that all parts of a command use
the same commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from cm3run.hub.client import Unreachable, api, explained, is_offline
from cm3run.printing import printable

if TYPE_CHECKING:
    from cm3core.errors import CM3Error
    from cm3run.hub.address import Repo

_log = logging.getLogger(__name__)
#: (cache, repository, patterns) -> its folder, and (cache, repository) -> the commit of its revision: see the module.
_found: dict[tuple[str, Repo, tuple[str, ...]], Path] = {}
_commits: dict[tuple[str, Repo], str] = {}


@dataclass(frozen=True)
class File:
    """A file of a repository: its path in it, and its size in bytes (None: the Hub does not say)."""

    name: str
    size: int | None


@dataclass(frozen=True)
class Wanted:
    """The files of a repository to fetch: those that match a pattern of `patterns` and none of `never`.

    Args:
        patterns, never: as in `fnmatch`; `*` matches slashes, too.
        check: called with the repository, all its files and this before the download; raises an error if they are
            not what is looked for.
        is_whole: whether a folder of the cache has what is needed; versions of the package before 1.0 don't know whether
            a download was interrupted.
    """

    patterns: tuple[str, ...]
    never: tuple[str, ...] = ()
    check: Callable[[Repo, Sequence[File], Wanted], None] | None = None
    is_whole: Callable[[Path], bool] = Path.is_dir

    def takes(self, name: str) -> bool:
        """Whether a file is fetched.

        >>> Wanted(("*.json",), ("a/*",)).takes("b/c.json"), Wanted(("*.json",), ("a/*",)).takes("a/c.json")
        (True, False)
        """
        return any(fnmatchcase(name, one) for one in self.patterns) and not any(
            fnmatchcase(name, one) for one in self.never
        )


def downloaded(repo: Repo, wanted: Wanted) -> Path:
    """The folder of a repository's files in the cache, named after its commit; what is missing is downloaded first.

    Without a connection, or with `HF_HUB_OFFLINE`, the files that were downloaded for this revision earlier.

    Raises:
        CheckpointError, DataError: the repository, its revision or the access to it is missing; it holds other
            things; the download failed, or there is neither a connection nor an earlier download.
    """
    from huggingface_hub import constants

    cache = str(constants.HF_HUB_CACHE)
    key = cache, repo, wanted.patterns
    if key not in _found or not _found[key].is_dir():
        _found[key] = _download(resolved(repo), wanted)
        _commits[cache, repo] = _found[key].name
    return _found[key]


def resolved(repo: Repo) -> Repo:
    """The repository at the commit that this process has downloaded; itself if it has not."""
    from huggingface_hub import constants

    commit = _commits.get((str(constants.HF_HUB_CACHE), repo))
    return repo if commit is None else replace(repo, revision=commit)


def listed(repo: Repo) -> list[str]:
    """The paths of all files of a repository; without a connection, of those that were downloaded.

    Raises:
        CheckpointError, DataError: as `downloaded`.
    """
    try:
        with explained(repo):
            return [one.name for one in _files(resolved(repo))]
    except Unreachable as error:
        found = _cached(repo, Wanted(()))
        if isinstance(found, Path):
            return list(_in(found))
        raise _unreachable(repo, error, found) from error


def _in(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _unreachable(repo: Repo, error: Unreachable, found: str) -> CM3Error:
    if is_offline():
        return repo.error(
            f"is not in the cache of downloads{found}, and HF_HUB_OFFLINE forbids connections",
            "unset HF_HUB_OFFLINE and repeat the command with a connection once, or name a folder on this machine",
        )
    return repo.error(
        f"can't be reached ({error}), and is not in the cache of downloads{found}",
        "check the connection and HF_ENDPOINT, then repeat the command; or name a folder on this machine",
    )


def _download(repo: Repo, wanted: Wanted) -> Path:
    if is_offline() or (repo.is_pinned and _tells_incomplete()):
        found = _cached(repo, wanted)
        if isinstance(found, Path):
            return found
        if is_offline():
            raise _unreachable(repo, Unreachable(), found)
    try:
        with explained(repo):
            files = _files(repo)
    except Unreachable as error:
        found = _cached(repo, wanted)
        if isinstance(found, Path):
            _log.warning(
                "%s: the Hub can't be reached (%s); the download of commit %s is used",
                repo,
                error,
                found.name,
            )
            return found
        raise _unreachable(repo, error, found) from error
    if wanted.check is not None:
        wanted.check(repo, files, wanted)
    try:
        with explained(repo):
            return _fetched(repo, wanted)
    except Unreachable as error:
        raise repo.error(
            f"was not downloaded as a whole ({error})",
            "repeat the command; complete files are kept",
        ) from error


def _tells_incomplete() -> bool:
    """Whether this version of the package knows which files of a repository are missing in its cache."""
    from huggingface_hub import errors

    return hasattr(errors, "IncompleteSnapshotError")


def contents(names: Collection[str]) -> str:
    """What a repository holds, as the end of a sentence."""
    if not names:
        return "it is empty"
    # what tells most comes first
    first = sorted(names, key=lambda name: (name.startswith("."), name.count("/"), name))
    listed = ", ".join(printable(name) for name in first[:5])
    return f"it has {listed}" + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _files(repo: Repo) -> list[File]:
    """All files of a repository."""
    call = api().model_info if repo.kind == "model" else api().dataset_info
    info = call(repo.id, revision=repo.revision or None, files_metadata=True)
    return [File(one.rfilename, one.size) for one in info.siblings or ()]


def _fetched(repo: Repo, wanted: Wanted, *, cached: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        repo.id,
        revision=repo.revision or None,
        repo_type=repo.kind,
        allow_patterns=list(wanted.patterns),
        ignore_patterns=list(wanted.never),
        local_files_only=cached,
        library_name="cm3leon",
    )
    return Path(folder)


def _cached(repo: Repo, wanted: Wanted) -> Path | str:
    """The folder of an earlier download; if there is none, why: an end of a sentence about the cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = f" ({constants.HF_HUB_CACHE})"
    try:
        folder = _fetched(repo, wanted, cached=True)
    except LocalEntryNotFoundError as error:
        whole = type(error).__name__ != "IncompleteSnapshotError"  # unknown to older versions
    except (OSError, ValueError):  # an unreadable cache, a name that can't be one
        whole = True
    else:
        if wanted.is_whole(folder) and (not wanted.patterns or any(map(wanted.takes, _in(folder)))):
            return folder
        whole = False
    return place if whole else f"{place} as a whole: the download was interrupted"
