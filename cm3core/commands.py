"""Which commands `cm3` has, and the class of their parsers."""

from __future__ import annotations

import argparse
from typing import NoReturn

from cm3core.errors import CM3Error

#: Command -> (module, one line of help). The modules' own HELP repeats the line; a test compares
#: the two. No module: a plugin brings the command (the hook `cm3_commands`), and it stands in the
#: table because newcomers begin with it.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("", "train a small model on real pictures and write a report, in minutes"),
    "train": ("cm3core.cli.train", "train a decoder by a recipe, or go on where a run stopped"),
    "generate": ("cm3core.cli.generate", "draw pictures for a prompt"),
    "caption": ("cm3core.cli.caption", "describe a picture"),
    "infill": ("cm3core.cli.infill", "redraw a part of a picture"),
    "edit": ("cm3core.cli.edit", "draw a picture as an instruction changes it"),
    "ask": ("cm3core.cli.ask", "answer a question about a picture"),
    "sweep": ("cm3core.cli.sweep", "draw the same prompts under several settings, side by side"),
    "tokenizer": ("cm3core.cli.tokenizer", "train and measure text and image tokenizers"),
    "upscale": ("cm3core.cli.upscale", "enlarge a picture"),
    "upscaler": ("cm3core.cli.upscaler", "train an upscaler, and measure one"),
    "data": ("cm3core.cli.data", "look at a data set, and check every record"),
    "memory": (
        "cm3core.cli.memory",
        "build a memory bank to retrieve from, and change, check and measure it",
    ),
    "recipe": ("cm3core.cli.recipe", "list, show, check and compare recipes"),
    "kinds": ("cm3core.cli.kinds", "list the kinds of components, and who brings which"),
    "describe": (
        "cm3core.cli.describe",
        "explain a component, its keys and its section of a recipe; or a kind",
    ),
    "completion": (
        "cm3core.cli.completion",
        "print a script that lets a shell complete commands, options and names",
    ),
    "plugin": (
        "cm3core.cli.plugin",
        "list plugins, what they bring and why one is broken; write a new one, check one",
    ),
}


class CommandParser(argparse.ArgumentParser):
    """Wrong arguments are told like every other wrong input. Parsers of actions (`add_subparsers`)
    are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Raise `CM3Error` in place of printing and leaving."""
        raise CM3Error(self.prog, message, f"see `{self.prog} --help`")
