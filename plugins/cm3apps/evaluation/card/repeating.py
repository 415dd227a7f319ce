"""The command that an evaluation was made by, without what concerns only whoever ran it."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any, NoReturn

from cm3apps.evaluation.run_options import run_options

#: Where it was computed, what it was called, and the trust in a file of the model: no part of what is measured.
_OWN = ("help", "out", "label", "device", "threads", "trust_plugins", "trust_endpoints", "verbose")


class _Parser(ArgumentParser):
    """Raises `ValueError` in place of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def repeated(arguments: Sequence[str], model: str) -> str | None:
    """The command of `cm3 eval run` with these arguments of `cm3`, of a model that is now called so.

    None: they are those of another command, or of none.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("-v", "--verbose", action="store_true")
    run_options(parser)
    try:
        given = parser.parse_intermixed_args(arguments)
    except ValueError:
        return None
    command, *names = given.names
    names = names[1:] if names[:1] == ["run"] else names
    if command != "eval" or len(names) != 2:
        return None
    before: list[str] = []
    after: list[str] = []
    for action in parser._actions:
        value = getattr(given, action.dest, action.default)
        if action.option_strings and action.dest not in _OWN and value != action.default:
            place = before if action.dest == "plugin" else after
            place += _written(action.option_strings[-1], value)
    return shlex.join(["cm3", *before, "eval", "run", model, names[1], *after])


def _written(option: str, value: Any) -> list[str]:
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (option, str(one))]
