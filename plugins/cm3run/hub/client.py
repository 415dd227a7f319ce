"""Calls of the package huggingface_hub: its errors, and those of the HTTP library below it, become ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cm3core._version import __version__
from cm3core.errors import CM3Error
from cm3run.printing import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from cm3run.hub.address import Repo


class Unreachable(Exception):
    """No answer from the Hub: no connection, `HF_HUB_OFFLINE`, or a failure of the Hub itself."""


#: A full disk, and a full quota.
_DISK = (errno.ENOSPC, errno.EDQUOT)
LOG_IN = "log in (hf auth login) or set HF_TOKEN"


def api() -> HfApi:
    """The package's client."""
    from huggingface_hub import HfApi

    return HfApi(library_name="cm3leon", library_version=__version__)


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids connections."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def web_page(repo: Repo) -> str:
    """The address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}"


def has_token() -> bool:
    """Whether the user is logged in, or `HF_TOKEN` is set."""
    from huggingface_hub import get_token

    return bool(get_token())


@contextmanager
def explained(repo: Repo, doing: str = "read") -> Iterator[None]:
    """Context that raises our errors instead of the package's.

    Args:
        repo: the repository that the calls are about.
        doing: what the token must allow: "read" or "write".

    Raises:
        CheckpointError, DataError: the Hub refuses, or the disk does.
        Unreachable: there is no answer.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # the bases are the errors of the HTTP library, which differs between versions of the package
    library: tuple[Any, ...] = HfHubHTTPError.__bases__
    try:
        with bars_on_terminals():
            yield
    except CM3Error:
        raise
    except (LookupError, TypeError, AttributeError, AssertionError) as error:
        cause = f"an answer that is none of the Hub's: {type(error).__name__} {shown(error)}"
        raise Unreachable(cause) from error
    except (OSError, ValueError, RuntimeError, *library) as error:
        raise _ours(repo, error, doing) from error


def _ours(repo: Repo, error: Exception, doing: str) -> Exception:
    """Our error for one of the package's."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of one of the threads that upload
    page = web_page(repo)
    if isinstance(error, errors.GatedRepoError):
        account = "your account has none" if has_token() else "no token says who asks"
        step = f"ask for access at {page}, then {LOG_IN}"
        return repo.error(f"is gated: its owner gives access to accounts, and {account}", step)
    if isinstance(error, errors.RevisionNotFoundError):
        step = f"name a branch, a tag or a commit: {page}/commits/main"
        return repo.error(f"has no revision {repo.revision or 'main'!r}", step)
    if isinstance(error, errors.RepositoryNotFoundError):
        hidden = f"and the token may not {doing} it" if has_token() else "(no token was sent)"
        return repo.error(
            f"is not on {_host()}, or is private {hidden}",
            f"correct the name; for a private one, {LOG_IN}",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        said = getattr(error, "server_message", None) or "no reason given"
        return repo.error(
            f"may not be {'written' if doing == 'write' else doing} with this token ({status}: {shown(said)})",
            f"{LOG_IN} to a token that may {doing} it (https://huggingface.co/settings/tokens)",
        )
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK):
        place = f": {error.filename}" if error.filename else ""
        step = "free space on that disk" if error.errno in _DISK else "correct its permissions"
        return repo.error(
            f"can't be stored in the cache of downloads ({error.strerror}{place})",
            f"{step}, or set HF_HOME to another folder",
        )
    if isinstance(error, errors.HFValidationError):
        return repo.error(f"is no valid name ({shown(error)})", "correct the name")
    return Unreachable(shown(error))


def _host() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).partition("://")[2]


def shown(error: object) -> str:
    """The first line of an error's text; texts of servers may hold anything."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return printable(lines[0].strip())[:300]


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Context in which the package shows progress bars only where ours are shown."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    from cm3run.progress import bars_shown  # here, so that data sets' configs are light

    hides = not bars_shown() and not are_progress_bars_disabled()
    if hides:
        disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            enable_progress_bars()
