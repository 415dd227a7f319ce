"""Files of this machine to a repository, in one commit: an interrupted upload changes nothing there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cm3run.hub.client import LOG_IN, Unreachable, api, explained, has_token, is_offline

if TYPE_CHECKING:
    from cm3run.hub.address import Repo


def check_upload(repo: Repo) -> None:
    """Raise `CheckpointError` if an upload can't succeed: without a token or a connection, or to a commit."""
    if is_offline():
        raise repo.error("can't be written while HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if not has_token():
        step = f"{LOG_IN} to a token that may write (https://huggingface.co/settings/tokens)"
        raise repo.error("can't be written: there is no token of the Hub", step)
    if repo.is_pinned:
        raise repo.error("names a commit, which can't change", "name a branch, or leave @ out")


def upload(
    repo: Repo,
    files: Mapping[str, Path | bytes],
    *,
    replaces: Callable[[str], bool],
    message: str,
    private: bool = False,
) -> str:
    """Write files to a repository; a missing repository or branch is created.

    Args:
        repo: the repository and its branch.
        files: path in the repository -> a file, or its content.
        replaces: whether a file of the repository that is not in `files` is deleted.
        message: of the commit.
        private: whether a new repository is private; an existing one stays as it is.

    Returns:
        the address of the commit's page.

    Raises:
        CheckpointError, DataError: the Hub refuses, or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    check_upload(repo)
    client, branch = api(), repo.revision or None
    try:
        with explained(repo, "write"):
            client.create_repo(repo.id, repo_type=repo.kind, private=private, exist_ok=True)
            if branch is not None:
                client.create_branch(repo.id, branch=branch, repo_type=repo.kind, exist_ok=True)
            there = client.list_repo_files(repo.id, revision=branch, repo_type=repo.kind)
            made = client.create_commit(
                repo.id,
                [
                    *(
                        CommitOperationDelete(name)
                        for name in there
                        if name not in files and replaces(name)
                    ),
                    *(CommitOperationAdd(name, content) for name, content in files.items()),
                ],
                commit_message=message,
                revision=branch,
                repo_type=repo.kind,
            )
    except Unreachable as error:
        raise repo.error(
            f"was not written ({error}); the repository has the files that it had",
            "check the connection, then repeat the command",
        ) from error
    return str(made.commit_url)
