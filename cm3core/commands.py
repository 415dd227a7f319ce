"""The class of the parsers of `cm3` and its commands."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from cm3core.errors import CM3Error


class CommandParser(argparse.ArgumentParser):
    """Reports wrong arguments like any other wrong input.

    The parsers of actions (`add_subparsers`) are of this class too.
    """

    def error(self, message: str) -> NoReturn:
        """Raise `CM3Error` instead of printing and exiting."""
        raise CM3Error(self.prog, message, f"see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or a version. argparse's own loses what can't be written without a word, and exits with 0."""
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)
