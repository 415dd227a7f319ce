"""Errors that a user can act on: each states the place, the cause and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CM3Error(ValueError):
    """Base of all errors caused by the input; the command line prints them without a traceback.

    Args:
        place: where it happened: a file, a recipe key, a record, an argument.
        cause: what is wrong there, in one sentence.
        next_step: what the reader can do about it, in one sentence.
    """

    def __init__(self, place: str, cause: str, next_step: str) -> None:
        self.place, self.cause, self.next_step = place, cause, next_step
        super().__init__(f"{place}: {cause}\n  next: {next_step}")

    def __reduce__(self) -> tuple[type[CM3Error], tuple[str, str, str]]:
        """Survive pickling between processes: a BaseException is otherwise rebuilt from `args`."""
        return type(self), (self.place, self.cause, self.next_step)


class RecipeError(CM3Error):
    """A recipe can't be found, composed or checked."""


class FileError(CM3Error):
    """A file can't be written."""


class DeviceError(CM3Error):
    """A device is not available, or has too little memory."""


class PluginError(CM3Error):
    """A plugin is broken or missing, or two provide the same name."""


class DataError(CM3Error):
    """A data set, a record, a picture or a caption can't be used."""


class TokenizerError(CM3Error):
    """A tokenizer can't encode or decode its input."""


class DocumentError(CM3Error):
    """A document can't be serialised, or does not fit the context."""


class CheckpointError(CM3Error):
    """A checkpoint can't be read, written, resumed from or used with this recipe."""


class GenerationError(CM3Error):
    """A request can't be completed by this model."""


class ProcessError(CM3Error):
    """The processes of a run don't belong together, or one of them was lost."""


class DatabaseError(CM3Error):
    """A database can't be reached, or refuses a command."""


class TrustError(CM3Error):
    """A model, a bank or a task names a host, credentials or a path outside its folder that the user did not
    allow."""


class MissingPackageError(CM3Error):
    """An optional package is needed but not installed."""

    @classmethod
    def extra(cls, place: str, package: str, extra: str) -> MissingPackageError:
        """Return the error for a package that our extra `extra` installs."""
        return cls(
            place, f"the package {package!r} is not installed", f"pip install 'cm3leon[{extra}]'"
        )


def close_match(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the nearest known name, or all of them.

    >>> close_match("vqgam", ["vqgan", "dvae"])
    "did you mean 'vqgan'?"
    >>> close_match("zzz", ["vqgan", "dvae"])
    'known: dvae, vqgan'
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "nothing is known here"
