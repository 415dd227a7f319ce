"""What to type instead of an option that a command does not have: a recipe's key given with dashes, or an option of
Hydra and similar tools (`--config FILE`, `--config-name`, `--multirun`, `--cfg`)."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Sequence
from pathlib import Path

from cm3core.errors import CM3Error
from cm3core.recipe.forms import alternatives, plain

#: Options of other tools that name a recipe, its folder, several runs, or no run at all.
_RECIPE = ("--config", "--config-name", "-cn", "--config-file", "--recipe")
_FOLDER = ("--config-path", "-cp", "--config-dir", "-cd")
_SEVERAL = ("--multirun", "-m")
_SHOWN = ("--cfg", "-c")


def override_hint(option: str, arguments: Sequence[str]) -> str | None:
    """The next step for an unknown option with the name of a recipe's key (`--steps 30`); None for other options.

    >>> override_hint("--steps", ["tiny", "--steps", "30"])
    'a recipe\'s key is given without dashes: train.steps=30'
    """
    from cm3core.config.schema import init_fields
    from cm3core.plugins.kinds import KINDS
    from cm3core.recipe.sections import FIXED_SECTIONS

    name, equals, value = option.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if not equals:
        place = list(arguments).index(option) + 1
        follows = arguments[place : place + 1]
        value = follows[0] if follows and not follows[0].startswith("-") else "..."
    section, _, key = name.partition(".")
    keys = [
        f"{own}.{item.name}"
        for own, config_class in FIXED_SECTIONS.items()
        for item in init_fields(config_class)
    ]
    if (key and (section in KINDS or name in keys)) or name in KINDS:
        found = name
    else:
        found = next((own for own in keys if own.partition(".")[2] == name), "")
    return f"a recipe's key is given without dashes: {found}={value}" if found else None


def other_option(
    parser: ArgumentParser, arguments: Sequence[str], before: Sequence[str]
) -> CM3Error | None:
    """The error for an option of another tool, with the command that does the same; None if there is none, or no
    command does.

    Args:
        parser: the command's; it takes overrides.
        arguments: the command's, as given.
        before: the words before them: `cm3`, its own options, and the command.
    """
    known = set(_option_strings(parser))
    given = {
        name: place
        for place, argument in enumerate(arguments)
        for name in [argument.partition("=")[0]]
        if name in (*_RECIPE, *_FOLDER, *_SEVERAL, *_SHOWN) and name not in known
    }
    if not given:
        return None
    words = _without(arguments, given)
    try:
        args, rest = parser.parse_known_args(words)
    except CM3Error:
        return None
    recipe = getattr(args, "recipe", None) or getattr(args, "target", None)
    only = [one for one in [*getattr(args, "overrides", ()), *rest] if not one.startswith("-")]
    if recipe is None or not all("=" in plain(one) for one in only):
        return None
    line = [*before, *words]
    option = next(iter(given))
    cause = "is not an option here; the recipe is named without one"
    if several := [name for name in given if name in _SEVERAL]:
        option, cause = several[0], "is not an option here"
        if any(map(alternatives, only)) and hasattr(args, "model"):
            cause += "; the command is run once for each value"
            line = [next(iter(alternatives(one)), one) for one in line]
        elif any(map(alternatives, only)):
            line = _top(before, "sweep", recipe, only)
    elif shown := [name for name in given if name in _SHOWN]:
        option, cause = shown[0], "is not an option here; another command shows the recipe"
        line = _top(before, "recipe", "show", recipe, only)
    return CM3Error(f"{parser.prog} {option}", cause, f"write {shlex.join(line)}")


def _top(before: Sequence[str], *words: str | list[str]) -> list[str]:
    """Another command with the same options of `cm3`."""
    flat = [one for word in words for one in ([word] if isinstance(word, str) else word)]
    return [*before[: 1 + 2 * list(before).count("--plugin")], *flat]


def _without(arguments: Sequence[str], given: dict[str, int]) -> list[str]:
    """The arguments without those options, and with the recipe that they name in its place."""
    values: dict[str, str] = {}
    dropped: set[int] = set()
    for name, place in given.items():
        dropped.add(place)
        _, equals, value = arguments[place].partition("=")
        if not equals and name not in _SEVERAL and place + 1 < len(arguments):
            value = arguments[place + 1]
            dropped.add(place + 1)
        values[name] = value
    folder = next((values[name] for name in _FOLDER if name in values), "")
    named = next((name for name in _RECIPE if name in values), "")
    words = []
    for place, argument in enumerate(arguments):
        if named and place == given[named]:
            words.append(_recipe(values[named], folder))
        elif place not in dropped:
            words.append(argument)
    return words


def _recipe(name: str, folder: str) -> str:
    """The recipe with this name, in this folder ("": none is given).

    >>> _recipe("mine", "conf"), _recipe("mine.yaml", ""), _recipe("tiny", "")
    ('conf/mine.yaml', 'mine.yaml', 'tiny')
    """
    from cm3core.recipe.library import list_recipes

    if not folder and name in {recipe.name for recipe in list_recipes()}:
        return name
    file = name if Path(name).suffix in (".yaml", ".yml") or "/" in name else f"{name}.yaml"
    return str(Path(folder) / file)


def _option_strings(parser: ArgumentParser) -> Iterator[str]:
    """The options of a command and of its actions."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, _SubParsersAction):
            for own in action.choices.values():
                yield from _option_strings(own)


def takes_overrides(parser: ArgumentParser) -> bool:
    """Whether a command, or one of its actions, takes overrides."""
    return any(
        action.dest == "overrides"
        or (
            isinstance(action, _SubParsersAction)
            and any(takes_overrides(own) for own in action.choices.values())
        )
        for action in parser._actions
    )
