"""The table of `cm3`'s commands, and the class of their parsers."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from cm3apps.cli import GROUPS, MODEL
from cm3core.errors import CM3Error

#: Command -> (module, one line of help). The modules' own HELP repeats the line; a test compares
#: the two. No module: the bundled plugin provides the command (the hook `cm3_commands`); it is
#: listed here because `cm3 --help` loads no plugin, which would take seconds.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("", "train a small model on real pictures and write a report, in minutes"),
    "start": ("", "look at a folder of your own pictures, and write a recipe to train on them"),
    "train": ("cm3apps.cli.train", "train a decoder from a recipe, or resume a run"),
    "tune": (
        "cm3apps.cli.tune",
        "fine-tune a model on your own data: in full, in part, or with adapters",
    ),
    "titan": ("", "train with torchtitan: tensor, pipeline and context parallelism"),
    "adapter": ("cm3apps.cli.adapter", "merge a run's adapter into its base model"),
    "export": (
        "cm3apps.cli.export",
        "write a run's model as a folder to share: its weights, without the optimiser",
    ),
    "generate": ("cm3apps.cli.generate", "generate pictures for a prompt"),
    "complete": ("", "draw the icons that a set lacks, in its own hand, as SVG files"),
    "caption": ("cm3apps.cli.caption", "caption a picture"),
    "infill": ("cm3apps.cli.infill", "inpaint part of a picture"),
    "edit": ("cm3apps.cli.edit", "edit a picture by an instruction"),
    "ask": ("cm3apps.cli.ask", "answer a question about a picture"),
    "chat": ("cm3apps.cli.chat", "converse with a model in text and pictures"),
    "serve": ("", "serve a page to draw in, and OpenAI's Images API"),
    "mcp": ("", "serve a model to agents: tools that search its memory, draw, edit and credit"),
    "sweep": (
        "cm3apps.cli.sweep",
        "train and evaluate every cell of a grid of recipes, and compare them by paired tests",
    ),
    "tokenizer": ("cm3apps.cli.tokenizer", "train and evaluate text and image tokenizers"),
    "upscale": ("cm3apps.cli.upscale", "enlarge a picture"),
    "upscaler": ("cm3apps.cli.upscaler", "train and evaluate upscalers"),
    "data": (
        "cm3apps.cli.data",
        "inspect a data set, check every record, encode it into token shards, or export it",
    ),
    "icons": ("", "build icon corpora from sets that are not bundled"),
    "memory": (
        "cm3apps.cli.memory",
        "build, change, check and measure memory banks for retrieval",
    ),
    "postgres": ("", "keep a memory in a PostgreSQL database that many models share"),
    "provenance": (
        "cm3apps.cli.provenance",
        "show the licences and sources of a model's data, or how a picture was made",
    ),
    "task": ("cm3apps.cli.task", "list tasks, and show a task's training documents and prompts"),
    "recipe": ("cm3apps.cli.recipe", "list, show, check and compare recipes"),
    "kinds": (
        "cm3apps.cli.kinds",
        "list the kinds of components, and the plugins that provide them",
    ),
    "describe": (
        "cm3apps.cli.describe",
        "explain a component, its keys and its recipe section; or a kind, a section or a key",
    ),
    "completion": (
        "cm3apps.cli.completion",
        "print a shell completion script for commands, options and names",
    ),
    "plugin": (
        "cm3apps.cli.plugin",
        "list plugins and their components, start a new plugin, check one",
    ),
    "convert": ("", "convert models between this framework, Hugging Face's and Meta's formats"),
    "eval": ("", "evaluate a model by a protocol, score pictures, compare scores"),
    "bench": ("", "measure kernels, decoding, precision and retrieval"),
}


#: A usage line lists at most so many options.
_MOST_IN_USAGE = 15


class CommandParser(argparse.ArgumentParser):
    """Reports wrong arguments like other wrong input, and orders the groups of options in its help.

    The parsers of actions (`add_subparsers`) are of this class too.
    """

    def format_help(self) -> str:
        """Groups in the order of `cm3apps.cli`, and a short usage for a command with many options."""
        self._action_groups.sort(key=self._place)
        short, written = self.usage is None and len(self._options()) > _MOST_IN_USAGE, self.usage
        if short:
            self.usage = self._short_usage().replace("%", "%%")
        try:
            return super().format_help()
        finally:
            self.usage = written

    def _options(self) -> list[argparse.Action]:
        help_action = argparse._HelpAction
        return [
            one for one in self._actions if one.option_strings and not isinstance(one, help_action)
        ]

    def _place(self, group: argparse._ArgumentGroup) -> int:
        """Where a group is listed: what it takes, then a command's own groups, then where it runs; `--help` alone last."""
        if group is self._positionals:
            return 0
        if group is self._optionals:
            return 1 if set(self._options()) & set(group._group_actions) else 2 + 2 * len(GROUPS)
        place = GROUPS.index(group.title if group.title in GROUPS else MODEL)
        return 2 + 2 * place + (group.title not in GROUPS)

    def _short_usage(self) -> str:
        """What must be given; "[options]" stands for the others."""
        needed = [one for one in self._mutually_exclusive_groups if one.required]
        shown = [
            one
            for one in self._actions
            if one.required or any(one in group._group_actions for group in needed)
        ]
        formatter = self.formatter_class(prog=f"{self.prog} [options]")
        formatter.add_usage(None, shown, needed, prefix="")
        return formatter.format_help().strip()

    def error(self, message: str) -> NoReturn:
        """Raise `CM3Error` instead of printing and exiting."""
        raise CM3Error(self.prog, message, f"see `{self.prog} --help`")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or a version. argparse silently drops unprintable text and exits with 0."""
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)


#: Command -> its distribution, if that is not cm3leon.
BESIDE = {
    "bench": "cm3lab",
    "complete": "cm3icons",
    "convert": "cm3published",
    "icons": "cm3icons",
    "mcp": "cm3serve",
    "postgres": "cm3postgres",
    "serve": "cm3serve",
    "titan": "cm3titan",
}
