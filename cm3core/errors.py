"""Errors that a user can act on: each says the place, the cause and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CM3Error(ValueError):
    """Base of every error that is the input's fault. The command line prints it without a
    traceback.

    Args:
        place: where it happened: a file, a recipe key, a record, an argument.
        cause: what is wrong there, in one sentence.
        next_step: what the reader can do about it, in one sentence.
    """

    def __init__(self, place: str, cause: str, next_step: str) -> None:
        self.place, self.cause, self.next_step = place, cause, next_step
        super().__init__(f"{place}: {cause}\n  next: {next_step}")

    def __reduce__(self) -> tuple[type[CM3Error], tuple[str, str, str]]:
        """Survive pickling between processes (a BaseException rebuilds itself from `args`
        otherwise)."""
        return type(self), (self.place, self.cause, self.next_step)


class RecipeError(CM3Error):
    """A recipe can't be found, composed or checked."""


class FileError(CM3Error):
    """A file can't be written."""


class DeviceError(CM3Error):
    """A device is not there, or has too little memory."""


class PluginError(CM3Error):
    """A plugin is broken, missing, or two bring the same name."""


class DataError(CM3Error):
    """A data set, a record, a picture or a caption can't be used."""


class TokenizerError(CM3Error):
    """A tokenizer was given what it can't encode or decode."""


class DocumentError(CM3Error):
    """A document can't be serialised, or does not fit the context."""


class CheckpointError(CM3Error):
    """A checkpoint can't be read, written, resumed from or used with this recipe."""


class GenerationError(CM3Error):
    """A request can't be completed by this model."""


class MissingPackageError(CM3Error):
    """An optional package is needed and not installed."""

    @classmethod
    def extra(cls, place: str, package: str, extra: str) -> MissingPackageError:
        """The usual form: `package` comes with our extra `extra`."""
        return cls(
            place, f"the package {package!r} is not installed", f"pip install 'cm3leon[{extra}]'"
        )


def close_match(name: str, known: Iterable[str]) -> str:
    """The tail of a 'not known' sentence: the nearest known name, or all of them.

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
