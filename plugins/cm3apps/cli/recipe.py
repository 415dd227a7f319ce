"""`cm3 recipe list | show | check | diff`: list, show, check and compare recipes. No torch."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import _recipe_memory, add_overrides, registry_of
from cm3apps.cli._training import RECIPE_FILE
from cm3core.errors import CM3Error
from cm3core.recipe.library import list_recipes

if TYPE_CHECKING:
    from cm3core.recipe import Recipe

#: Strings that need no quotes.
PLAIN = re.compile(r"\(absent\)|[\w./-]+")

HELP = "list, show, check and compare recipes"
EXAMPLE = """  cm3 recipe list
  cm3 recipe show cm3leon-350m --origin
  cm3 recipe check ./mine.yaml train.steps=1000
  cm3 recipe memory cm3leon-7b --devices 8 --gb 80
  cm3 recipe diff cm3leon-350m cm3leon-7b"""


def configure(parser: ArgumentParser) -> None:
    """The actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, example: str) -> ArgumentParser:
        return actions.add_parser(
            name,
            help=line.partition("\n")[0],
            description=line,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )

    add("list", "list the shipped recipes", "cm3 recipe list")
    show = add(
        "show",
        "show a recipe with every value resolved",
        "cm3 recipe show cm3leon-350m train.steps=100 --origin",
    )
    show.add_argument("recipe", help="a shipped recipe's name, a path, or a run's folder")
    show.add_argument(
        "--origin",
        action="store_true",
        help="show where each value comes from: a file or the command line",
    )
    add_overrides(show)
    check = add(
        "check",
        "check that a recipe's values are valid, alone and together",
        "cm3 recipe check ./mine.yaml",
    )
    check.add_argument("recipe", help="a shipped recipe's name, a path, or a run's folder")
    add_overrides(check)
    _recipe_memory.configure(
        add(
            "memory",
            _recipe_memory.DESCRIPTION,
            "cm3 recipe memory cm3leon-7b --devices 8 --gb 80",
        )
    )
    compare = add(
        "diff",
        "show the keys in which two recipes differ",
        "cm3 recipe diff cm3leon-350m cm3leon-7b",
    )
    compare.add_argument(
        "a", help="a shipped recipe's name, a path, or the folder of a run, checkpoint or model"
    )
    compare.add_argument("b", help="the other recipe")


def run(args: Namespace) -> int:
    """Run one action."""
    if args.action == "list":
        if args.plugin:
            registry_of(args)  # the list needs no plugins, but a wrong file is reported
        return _list()
    if args.action == "diff":
        return _diff(args)
    # here: the list answers without what composing takes
    from cm3core.recipe import compose
    from cm3core.recipe.recipe import in_full

    registry = registry_of(args)
    recipe = compose(recipe_of(args.recipe), args.overrides, registry=registry)
    if args.action == "memory":
        return _recipe_memory.run(args, recipe)
    if args.action == "check":
        recipe.check()
        memory = _memory(recipe)
        print(f"{recipe.name}: all values are valid (hash {recipe.hash})")
        if memory is not None:
            print(memory)
    elif args.origin:
        print(with_origins(in_full(recipe, registry)))
    else:
        print(in_full(recipe, registry).to_yaml(), end="")
    if args.action == "show":
        _warn_of_refused(recipe)
    return 0


def _warn_of_refused(recipe: Recipe) -> None:
    """Say on stderr what `check` refuses of a recipe that is shown."""
    try:
        recipe.check()
    except CM3Error as error:
        print(f"warning: `cm3 recipe check` refuses this recipe: {error}", file=sys.stderr)


def recipe_of(name: str) -> str:
    """The recipe to compose: `name`, or the file of the run, checkpoint or model of that folder."""
    if name in {recipe.name for recipe in list_recipes()}:
        return name
    try:
        is_folder = Path(name).is_dir()
    except OSError:  # a name that no folder can have
        is_folder = False
    return str(Path(name) / RECIPE_FILE) if is_folder else name


def _memory(recipe: Recipe) -> str | None:
    """What training takes, in words. Raises `RecipeError` where this machine doesn't have it."""
    from cm3run.machine_memory import MachineMemory
    from cm3run.training.memory import check_training_fits, training_memory

    estimate = training_memory(recipe)
    if estimate is None:
        return None
    machine = MachineMemory.find()
    on_cpu = True
    if machine.limit is not None and estimate.total() > machine.limit:
        # only then: torch takes seconds to import
        from cm3run.devices import device_memory

        machine, on_cpu = device_memory(None)
    warning = check_training_fits(recipe, machine, on_cpu=on_cpu)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    return f"training takes about {estimate.in_words()}"


def _list() -> int:
    recipes = list_recipes()
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.description}")
    return 0


def _diff(args: Namespace) -> int:
    from cm3core.recipe import compose, diff

    registry = registry_of(args)
    a, b = (compose(recipe_of(name), registry=registry) for name in (args.a, args.b))
    differences = diff(a, b)
    for key, left, right in differences:
        print(f"{key}: {_shown(left)} -> {_shown(right)}")
    if not differences:
        print(f"{a.name} and {b.name} are equal (hash {a.hash})")
    return 0


def with_origins(recipe: Recipe) -> str:
    """One line per key: `section.key = value`, and the layer the value comes from."""
    rows = [
        (f"{key} = {_shown(value)}", _origin(recipe, key)) for key, value in recipe.flat().items()
    ]
    width = min(max(len(text) for text, _ in rows), 60)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)


def _origin(recipe: Recipe, key: str) -> str:
    """The key's origin, or that of the nearest enclosing key (a dict's entries share it)."""
    while key not in recipe.origins and "." in key:
        key = key.rpartition(".")[0]
    return recipe.origins.get(key, "default")


def _shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else repr(value)
