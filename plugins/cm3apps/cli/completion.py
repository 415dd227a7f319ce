"""`cm3 completion`: print a shell completion script for every command, action, option and name. No torch.

The script is static: it has the names of recipes, kinds, components and models at the time of
writing, so that pressing Tab starts no Python. shtab walks the parsers; the functions below
define the values of each argument.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.catalog import keys_of
from cm3apps.cli import registry_of
from cm3apps.cli.commands import COMMANDS, CommandParser
from cm3apps.scaffold import template_kinds
from cm3core.errors import MissingPackageError
from cm3core.plugins.registry import Registry

if TYPE_CHECKING:
    from types import ModuleType


HELP = "print a shell completion script for commands, options and names"
EXAMPLE = """  cm3 completion bash > ~/.local/share/bash-completion/completions/cm3
  cm3 completion zsh > ~/.zfunc/_cm3        # with fpath+=~/.zfunc before compinit in ~/.zshrc
  cm3 completion fish > ~/.config/fish/completions/cm3.fish

the script has the current names: write it again after installing or removing plugins"""


def configure(parser: ArgumentParser) -> None:
    """Add the shell."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


def run(args: Namespace) -> int:
    """Print the script."""

    print(script(args.shell, registry_of(args)), end="")
    return 0


logger = logging.getLogger("cm3core.completion")
SHELLS = ("bash", "zsh", "fish")
#: Options that take component names but, unlike `--sampler`, are not named after the kind.
_KIND_OF_OPTION = {"--rerank": "reranker", "--score": "reranker", "--upscale": "upscaler"}


@dataclass(frozen=True)
class Values:
    """The values of an argument: one of `words`, a file (if `files`), or an override."""

    words: tuple[str, ...] = ()
    files: bool = False
    overrides: bool = False


def script(shell: str, registry: Registry) -> str:
    """The completion script of `cm3` for one of `SHELLS`.

    Raises:
        MissingPackageError: shtab is not installed.
    """
    try:
        shtab: ModuleType = importlib.import_module("shtab")
    except ImportError as error:
        raise MissingPackageError(
            "cm3 completion", "the package 'shtab' is not installed", "pip install shtab"
        ) from error
    parser = whole_parser(registry)
    functions: dict[Values, str] = {}
    for command, action in actions_of(parser):
        values = values_of(command, action, registry)
        if values is not None:
            name = functions.setdefault(
                values, f"_cm3_{'files' if values.files else 'names'}_{len(functions)}"
            )
            action.complete = {**dict.fromkeys(SHELLS, name), "fish": f"({name})"}  # type: ignore[attr-defined]  # for shtab
    sections = sections_of(registry)
    body = "\n".join(
        _FUNCTIONS[shell](name, values, sections) for values, name in functions.items()
    )
    written: str = shtab.complete(parser, shell, preamble={shell: body})
    # shtab completes only the first of a list of arguments; `*:` completes all
    if shell == "zsh":
        written = re.sub(r'^  "\(\*\):+', '  "*:', written, flags=re.MULTILINE)
    return written.rstrip() + "\n" + (_BASH_END if shell == "bash" else "")


def whole_parser(registry: Registry) -> argparse.ArgumentParser:
    """All commands in one parser, including those of plugins.

    A plugin's command that can't be set up is left out, with a warning.
    """
    top = CommandParser(prog="cm3", description="CM3leon")
    top.add_argument("--plugin", metavar="FILE.py", help="load a plugin module from a file")
    top.add_argument("--version", action="version", version="cm3leon")
    commands = top.add_subparsers(dest="command")
    for name in dict.fromkeys([*COMMANDS, *registry.commands()]):
        module, line = COMMANDS.get(name, ("", ""))
        parser = CommandParser(prog=f"cm3 {name}")
        try:
            configure: Any = (
                importlib.import_module(module).configure if module else registry.command(name)
            )
            if configure is None:
                continue  # a command of a plugin that is not in use
            configure(parser)
        except (Exception, SystemExit) as error:
            logger.warning("the command %r is left out: %s", name, error)
            continue
        described = (parser.description or "").strip().splitlines()
        added = commands.add_parser(
            name, help=line or (described[0] if described else f"cm3 {name}")
        )
        added.__dict__ |= {key: value for key, value in vars(parser).items() if key != "prog"}
    return top


def actions_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.Action]]:
    """("command action", argument) for every argument with a value."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from actions_of(inner, (*path, name))
        elif action.nargs != 0 and not action.choices:
            yield " ".join(path), action


def values_of(command: str, action: argparse.Action, registry: Registry) -> Values | None:
    """The values of an argument, by its option, its name and its metavar; None if unknown."""
    option = action.option_strings[-1] if action.option_strings else ""
    metavar = (
        " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or ""
    )
    kind = (
        "text_tokenizer"
        if (option, command) == ("--tokenizer", "tokenizer train-text")
        else _KIND_OF_OPTION.get(option, option.removeprefix("--").replace("-", "_"))
    )
    if kind in registry.kinds:
        return Values(tuple(registry.names(kind)), files="FOLDER" in metavar)
    if option == "--kind":
        return Values(tuple(template_kinds()))
    if option == "--model":
        return Values(tuple(sorted(registry.models())), files=True)
    if action.dest == "overrides" or option == "--set":
        return Values(overrides=True, files="FILE" in metavar)
    components = [(kind, name) for kind in registry.kinds for name in registry.names(kind)]
    if command == "describe":
        return Values(
            (
                *registry.kinds,
                *(f"{kind}/{name}" for kind, name in components),
                *sorted({name for _, name in components}),
            )
        )
    if command == "plugin check":
        names = (
            [info.name for info in registry.plugins]
            if action.dest == "target"
            else sorted({name for _, name in components})
        )
        return (
            Values(tuple(names), files=action.dest == "target")
            if action.dest in ("target", "only")
            else None
        )
    if command.startswith("embedder ") and action.dest == "name":
        return Values(tuple(registry.names("embedder")))
    if "RECIPE" in metavar or action.dest == "recipe" or command == "recipe diff":
        from cm3core.recipe import list_recipes

        datasets = registry.names("dataset") if "NAME" in metavar else []
        return Values((*(recipe.name for recipe in list_recipes()), *datasets), files=True)
    if action.type is Path or any(word in metavar for word in ("FILE", "FOLDER", "PATH")):
        return Values(files=True)
    # zsh offers no options next to a positional argument without a specification.
    return None if option else Values()


def sections_of(registry: Registry) -> dict[str, tuple[list[str], list[str]]]:
    """Section of a recipe -> (names of its components, all their keys)."""
    from cm3core.recipe.sections import FIXED_SECTIONS

    sections = {}
    for kind in registry.kinds:
        names = registry.names(kind)
        classes = [
            registry.config_class(kind, f"{owner}/{name}")
            for name in names
            for owner in registry.owners(kind, name)
        ]
        sections[kind] = (
            names,
            list(
                dict.fromkeys(key.name for config_class in classes for key in keys_of(config_class))
            ),
        )
    return sections | {
        name: ([], [key.name for key in keys_of(config_class)])
        for name, config_class in FIXED_SECTIONS.items()
    }


def _words(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _override_words(
    sections: Mapping[str, tuple[list[str], list[str]]],
) -> tuple[list[str], list[str]]:
    """The beginnings of overrides ("sampler=", "sampler."), and all keys
    ("sampler.temperature=")."""
    beginnings = [
        text
        for name, (names, _) in sections.items()
        for text in ([f"{name}="] if names else []) + [f"{name}."]
    ]
    return beginnings, [f"{name}.{key}=" for name, (_, keys) in sections.items() for key in keys]


def _bash(name: str, values: Values, sections: Mapping[str, tuple[list[str], list[str]]]) -> str:
    """A function that prints the completions of the word in $1."""
    lines = [f"{name}() {{"]
    if values.overrides:
        beginnings, keys = _override_words(sections)
        # If `=` breaks words, "sampler=to" arrives as three words: sampler, =, to.
        lines += [
            '  local word="$1" kind=""',
            '  if [[ "$word" == "=" ]]; then kind="${COMP_WORDS[COMP_CWORD-1]}" word=""',
            '  elif [[ "${COMP_WORDS[COMP_CWORD-1]}" == "=" ]]; then kind="${COMP_WORDS[COMP_CWORD-2]}"',
            '  elif [[ "$word" == *=* ]]; then kind="${word%%=*}"; fi',
            '  local front=""; [[ "$word" == *=* ]] && front="$kind=" && word="${word#*=}"',
            '  case "$kind" in',
        ]
        lines += [
            f'    {kind}) compgen -P "$front" -W {_words(names)} -- "$word" ;;'
            for kind, (names, _) in sections.items()
            if names
        ]
        lines += [
            f'    "") if [[ "$word" == *.* ]]; then compgen -W {_words(keys)} -- "$word"',
            f'        else compgen -W {_words(beginnings)} -- "$word"; fi ;;',
            "  esac",
        ]
    if values.words:
        lines.append(f'  compgen -W {_words(values.words)} -- "$1"')
    if values.files:
        lines.append('  compgen -f -- "$1"')
    return "\n".join([*lines, "  :", "}"])


#: No space after a name that must be followed by something.
_BASH_END = """
_cm3_complete() {
  local line
  _shtab_cm3 "$@"
  [[ "${COMPREPLY[0]-}" == *[=.] && ! -e "${COMPREPLY[0]}" ]] && compopt -o nospace
  return 0
}

complete -o bashdefault -F _cm3_complete cm3
"""


def _zsh(name: str, values: Values, sections: Mapping[str, tuple[list[str], list[str]]]) -> str:
    lines = [f"{name}() {{"]
    if values.overrides:
        beginnings, keys = _override_words(sections)
        lines.append("  case $PREFIX in")
        lines += [
            f"    {kind}=*) compset -P '*='; compadd -- {' '.join(names)} ;;"
            for kind, (names, _) in sections.items()
            if names
        ]
        lines += [
            "    *=*) ;;",
            f"    *.*) compadd -S '' -- {' '.join(keys)} ;;",
            f"    *) compadd -S '' -- {' '.join(beginnings)} ;;",
            "  esac",
        ]
    if values.words:
        lines.append(f"  compadd -- {' '.join(map(shlex.quote, values.words))}")
    if values.files:
        lines.append("  _files")
    return "\n".join([*lines, *([] if lines[1:] else ["  :"]), "}"])


def _fish(name: str, values: Values, sections: Mapping[str, tuple[list[str], list[str]]]) -> str:
    lines = [f"function {name}"]
    if values.overrides:
        beginnings, keys = _override_words(sections)
        lines.append("  switch (commandline -ct)")
        lines += [
            f"    case '{kind}=*'\n      printf '%s\\n' "
            f"{' '.join(f'{kind}={own}' for own in names)}"
            for kind, (names, _) in sections.items()
            if names
        ]
        lines += [
            "    case '*=*'\n      true",
            f"    case '*.*'\n      printf '%s\\n' {' '.join(keys)}",
            f"    case '*'\n      printf '%s\\n' {' '.join(beginnings)}",
            "  end",
        ]
    if values.words:
        lines.append(f"  printf '%s\\n' {' '.join(map(shlex.quote, values.words))}")
    if values.files:
        lines.append("  __fish_complete_path (commandline -ct)")
    return "\n".join([*lines, "end"])


_FUNCTIONS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
