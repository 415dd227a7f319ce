"""`cm3 recipe list | show | check | memory | diff | hash | schema`: list, show, check and compare recipes, compute the
memory that training and generation need on each of several devices, and write a JSON Schema for editors. No torch.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import add_overrides, real_number, registry_of, whole_number
from cm3apps.cli._training import RECIPE_FILE
from cm3core.errors import CM3Error, RecipeError
from cm3core.recipe.library import list_recipes

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.life import Verdict
    from cm3run.training.memory import MemoryEstimate


#: Rows per request with guidance.
STREAMS = 2
MEMORY = """compute the memory that training and generation need on each device; nothing is built

With several devices, weights, gradients and the optimiser's state are divided equally, each device has
activations for train.batch_rows rows, and a block's weights are gathered while it is computed, as in
torchrun with cm3 train --shard N."""
CHECK = """check what a recipe can do, before anything is built

A recipe is refused if a value is wrong, if components can't be combined, or if training lacks something. Otherwise a
table says which commands work with the recipe and with models trained with it, and why others don't. What this machine
lacks, such as a GPU, is said in the table, and doesn't refuse a recipe."""

HELP = "list, show, check and compare recipes"
EXAMPLE = """  cm3 recipe list
  cm3 recipe show cm3leon-350m --origin
  cm3 recipe check ./mine.yaml train.steps=1000
  cm3 recipe memory cm3leon-7b --devices 8 --gb 80
  cm3 recipe diff cm3leon-350m cm3leon-7b
  cm3 recipe schema -o recipe.schema.json"""
#: What a recipe's argument may be.
RECIPE = "a shipped recipe's name, a path, a run's folder, or - for the standard input"
SCHEMA = """print a JSON Schema (draft 2020-12) of recipe files, by which an editor completes, explains and checks them

It has the components of all plugins in use, with their keys, types, ranges, defaults and descriptions; write it again after you
install or change a plugin. Combinations of values are left to cm3 recipe check. An editor with a language server of YAML finds
it by a comment at the top of a recipe:
  # yaml-language-server: $schema=recipe.schema.json"""


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, example: str) -> ArgumentParser:
        return actions.add_parser(
            name,
            help=line.partition("\n")[0],
            description=line,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )

    _add_json(add("list", "list the shipped recipes", "cm3 recipe list"))
    show = add(
        "show",
        "show a recipe with every value resolved",
        "cm3 recipe show cm3leon-350m train.steps=100 --origin",
    )
    show.add_argument("recipe", help=RECIPE)
    show.add_argument(
        "--origin",
        action="store_true",
        help="show where each value comes from: a file or the command line",
    )
    _add_json(show)
    add_overrides(show)
    check = add("check", CHECK, "cm3 recipe check tiny retriever=bm25 decoder.context_length=700")
    check.add_argument("recipe", help=RECIPE)
    check.add_argument(
        "--data",
        action="store_true",
        help="also open the data set, and make training sequences and prompts of its first documents",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    add_overrides(check)
    _configure_memory(add("memory", MEMORY, "cm3 recipe memory cm3leon-7b --devices 8 --gb 80"))
    compare = add(
        "diff",
        "show the keys in which two recipes differ",
        "cm3 recipe diff cm3leon-350m cm3leon-7b",
    )
    compare.add_argument(
        "a", help="a shipped recipe's name, a path, or the folder of a run, checkpoint or model"
    )
    compare.add_argument("b", help="the other recipe, which the overrides change")
    _add_json(compare)
    add_overrides(compare)
    digest = add(
        "hash",
        "print a recipe's hash, which equal settings share",
        "cm3 recipe hash cm3leon-350m train.steps=100",
    )
    digest.add_argument("recipe", help=RECIPE)
    add_overrides(digest)
    schema = add("schema", SCHEMA, "cm3 recipe schema -o recipe.schema.json")
    schema.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write it to a file (default: print it)"
    )


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: Namespace) -> int:
    """Run one action."""
    if args.action == "list":
        if args.plugin:
            registry_of(args)  # the list needs no plugins, but a wrong file is reported
        return _list(args)
    if args.action == "diff":
        return _diff(args)
    if args.action == "schema":
        return _schema(args)
    # imported here, because the list needs none of the modules for composing
    from cm3core.recipe.merge import compose
    from cm3core.recipe.recipe import in_full

    registry = registry_of(args)
    recipe = compose(recipe_of(args.recipe), args.overrides, registry=registry)
    full = in_full(recipe, registry)
    if args.action == "memory":
        return _print_memory(args, recipe, registry)
    if args.action == "check":
        return _check(args, recipe, registry)
    if args.action == "hash":
        print(recipe.hash)
        return 0
    if args.json:
        print(_as_json(_with_origins_in_json(full) if args.origin else _values(full)))
    elif args.origin:
        print(with_origins(full))
    else:
        print(full.to_yaml(), end="")
    _warn_of_refused(recipe)
    return 0


def _check(args: Namespace, recipe: Recipe, registry: Registry) -> int:
    """Print what each command can do with the recipe; raises `RecipeError` for a refused one, except as JSON."""
    from cm3run.life import TOKENIZERS, Verdict, life_of

    try:
        carried = TOKENIZERS if Path(recipe_of(args.recipe)).name == RECIPE_FILE else ()
        life = life_of(recipe, registry, carried=carried)
        if args.data and life:
            from cm3run.rehearsal import rehearse

            life = rehearse(recipe, registry, life)
    except CM3Error as error:
        if not args.json:
            raise
        refused = Verdict(error).to_dict()
        refused.pop("runs")
        print(json.dumps({"recipe": recipe.name, "hash": recipe.hash, "valid": False, **refused}))
        return 1
    memory = _memory(recipe, registry)
    if memory is not None and memory.error is not None and life["train"].runs:
        too_small = RecipeError("train", memory.error.cause, memory.error.next_step)
        life |= dict.fromkeys(("train", "resume"), Verdict(too_small, here=True))
    warnings = [] if memory is None or memory.warning is None else [memory.warning]
    if args.json:
        commands = {command: verdict.to_dict() for command, verdict in life.items()}
        facts = {"valid": True, "commands": commands, "warnings": warnings}
        print(json.dumps({"recipe": recipe.name, "hash": recipe.hash, **facts}))
        return 0
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{recipe.name}: valid (hash {recipe.hash})")
    if memory is not None:
        print(f"training takes about {memory.estimate.in_words()}")
    print("".join(f"{line}\n" for line in _table_of(life)), end="")
    return 0


def _table_of(life: Mapping[str, Verdict]) -> Iterator[str]:
    """A line for each answer, with the commands that have it."""
    rows: dict[str, list[str]] = {}
    for command, verdict in life.items():
        rows.setdefault(_answer(command, verdict), []).append(command)
    for answer, commands in rows.items():
        short, _, reason = answer.partition(": ")
        yield f"  {short:<3}  {', '.join(commands)}{f': {reason}' if reason else ''}"


def _answer(command: str, verdict: Verdict) -> str:
    """ "yes", or "no" with the reason and what to do."""
    error = verdict.error
    if error is None:
        return "yes"
    place = "" if error.place in (command, f"task {command}", "train") else f"{error.place}: "
    where = "this machine can't: " if verdict.here else ""
    return f"no: {where}{place}{error.cause}; {error.next_step}"


def _warn_of_refused(recipe: Recipe) -> None:
    """Warn on stderr if `check` refuses a recipe that is shown."""
    try:
        recipe.check()
    except CM3Error as error:
        print(f"warning: `cm3 recipe check` refuses this recipe: {error}", file=sys.stderr)


def recipe_of(name: str) -> str:
    """The recipe to compose: `name`, or the recipe file of the run, checkpoint or model in that folder."""
    if name in {recipe.name for recipe in list_recipes()}:
        return name
    try:
        is_folder = Path(name).is_dir()
    except OSError:  # not a valid folder name
        is_folder = False
    return str(Path(name) / RECIPE_FILE) if is_folder else name


@dataclass(frozen=True)
class Memory:
    """The memory that training needs, on this machine.

    Args:
        estimate: in bytes.
        warning: if it may not suffice; None: it does.
        error: if it can't suffice.
    """

    estimate: MemoryEstimate
    warning: str | None = None
    error: RecipeError | None = None


def _memory(recipe: Recipe, registry: Registry) -> Memory | None:
    """The memory that training needs; None: unknown."""
    from cm3run.machine_memory import MachineMemory
    from cm3run.training.memory import check_training_fits, training_memory

    estimate = training_memory(recipe, registry=registry)
    if estimate is None:
        return None
    machine = MachineMemory.find()
    on_cpu = True
    if machine.limit is not None and estimate.total() > machine.limit:
        # only here, because torch takes seconds to import
        from cm3run.devices import device_memory

        machine, on_cpu = device_memory(None)
    try:
        warning = check_training_fits(recipe, machine, on_cpu=on_cpu, registry=registry)
    except RecipeError as error:
        return Memory(estimate, error=error)
    return Memory(estimate, warning)


def _list(args: Namespace) -> int:
    recipes = list_recipes()
    if args.json:
        rows = [
            {"name": one.name, "description": one.description, "path": str(one.path)}
            for one in recipes
        ]
        print(_as_json(rows))
        return 0
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.description}")
    return 0


def _diff(args: Namespace) -> int:
    from cm3core.recipe.merge import compose
    from cm3core.recipe.recipe import ABSENT, diff

    registry = registry_of(args)
    a = compose(recipe_of(args.a), registry=registry)
    b = compose(recipe_of(args.b), args.overrides, registry=registry)
    differences = diff(a, b)
    if args.json:
        rows = [
            {"key": key, **{side: value for side, value in sides.items() if value is not ABSENT}}
            for key, left, right in differences
            for sides in [{"a": left, "b": right}]
        ]
        hashes = {side: {"name": one.name, "hash": one.hash} for side, one in (("a", a), ("b", b))}
        print(_as_json({**hashes, "differences": rows}))
        return 0
    for key, left, right in differences:
        print(f"{key}: {_shown(left)} -> {_shown(right)}")
    if not differences:
        print(f"{a.name} and {b.name} are equal (hash {a.hash})")
    return 0


def _schema(args: Namespace) -> int:
    from cm3apps.recipe_schema import recipe_schema
    from cm3core.files import write_text
    from cm3core.outputs import claim_file

    if args.out is not None:
        claim_file(args.out)
    text = _as_json(recipe_schema(registry_of(args)))
    if args.out is None:
        print(text)
        return 0
    write_text(args.out, f"{text}\n")
    print(args.out)
    return 0


def _values(recipe: Recipe) -> dict[str, Any]:
    """A recipe's name and all values, as its YAML has them."""
    return {"name": recipe.name, **recipe.to_dict()}


def _with_origins_in_json(recipe: Recipe) -> dict[str, Any]:
    """`section.key` -> its value, and the layer that it comes from."""
    return {
        key: {"value": value, "origin": _origin(recipe, key)}
        for key, value in recipe.flat().items()
    }


def _as_json(value: Any) -> str:
    """A value as JSON; numbers that it lacks are texts, as in YAML (".inf")."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _shown(value)
    return value


def with_origins(recipe: Recipe) -> str:
    """One line per key: `section.key = value`, and the layer the value comes from."""
    rows = [
        (f"{key} = {_shown(value)}", _origin(recipe, key)) for key, value in recipe.flat().items()
    ]
    width = min(max(len(text) for text, _ in rows), 60)
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in rows)


def _origin(recipe: Recipe, key: str) -> str:
    """The key's origin, or that of the nearest enclosing key (the entries of a dict share it)."""
    while key not in recipe.origins and "." in key:
        key = key.rpartition(".")[0]
    return recipe.origins.get(key, "default")


def _shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    from cm3core.config.words import shown_value
    from cm3core.recipe.recipe import ABSENT

    return ABSENT if value is ABSENT else shown_value(value)


def _configure_memory(parser: ArgumentParser) -> None:
    """Add the recipe, the number of devices, and the memory of each."""
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument(
        "--devices",
        type=whole_number(1, 2**20),
        default=1,
        metavar="N",
        help="devices that share the training (default: %(default)s)",
    )
    parser.add_argument(
        "--gb",
        type=real_number(0, 1e6, above=True),
        metavar="GB",
        help="memory of a device in 10^9 bytes; a recipe that needs more is refused (default: "
        "this machine's, for one device of its kind)",
    )
    parser.add_argument(
        "--on",
        choices=["gpu", "cpu"],
        help="kind of device (default: gpu for several, else what this machine has)",
    )
    add_overrides(parser)


@dataclass(frozen=True)
class Device:
    """The device that an estimate is compared with."""

    on_cpu: bool
    limit: int | None
    source: str


def _print_memory(args: Namespace, recipe: Recipe, registry: Registry) -> int:
    """Print the table; raises `RecipeError` if training exceeds a device."""
    from cm3run.training.memory import training_memory

    recipe.check()
    device = _device(args)
    section = recipe.train.precision
    bf16 = section == "bf16" or (section == "auto" and not device.on_cpu)
    estimate = training_memory(
        recipe, bf16=bf16, on_cpu=device.on_cpu, devices=args.devices, registry=registry
    )
    if estimate is None:
        raise RecipeError(
            f"recipe {recipe.name}",
            "its memory is unknown: it has no decoder or image tokenizer, or its decoder doesn't "
            "know its number of parameters",
            "add the section, or implement DecoderConfig.num_parameters",
        )
    print(_table(recipe, estimate, args.devices, device, bf16=bf16))
    _refuse(recipe, estimate, args.devices, device)
    return 0


def _device(args: Namespace) -> Device:
    """The named device, or this machine's."""
    from cm3run.devices import device_memory

    on_cpu = None if args.on is None else args.on == "cpu"
    if on_cpu is None and args.devices > 1:
        on_cpu = False
    limit = None if args.gb is None else int(args.gb * 1e9)
    if on_cpu is not None and limit is not None:
        return Device(on_cpu, limit, "a device")
    machine, here = device_memory("cpu" if on_cpu else None)
    if limit is not None:
        return Device(here, limit, "a device")
    if on_cpu is None or on_cpu == here:
        return Device(here, machine.limit, machine.source)
    return Device(on_cpu, None, "")


def _table(
    recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device, *, bf16: bool
) -> str:
    assert recipe.decoder is not None
    length, rows = recipe.decoder.context_length, recipe.train.batch_rows
    share = "" if number == 1 else f", 1/{number:,}"
    lines = [
        f"{recipe.name} on {number:,} {'CPU' if device.on_cpu else 'GPU'}{'s' if number > 1 else ''}, "
        f"{'bf16' if bf16 else 'fp32'} products; GB (10^9 bytes) on each",
        "training",
        _row(f"weights, fp32{share}", estimate.weights),
        _row(f"gradients{share}", estimate.gradients),
        _row(f"{recipe.train.optimizer}'s state{share}", estimate.optimizer),
    ]
    if estimate.decoder is None:
        lines.append("  activations are not known to this decoder")
    what = "activations" if number == 1 else "activations, gathered weights"
    lines.append(_row(f"{what} ({rows:,} x {length:,} tokens)", estimate.activations))
    if device.on_cpu:
        lines.append(_row("program and data", estimate.program))
    lines.append(_row("in all", estimate.total(on_cpu=device.on_cpu)))
    lines += ["generation, on one device", *_generation(recipe, estimate, number, device)]
    if number > 1:
        lines.append(
            f"note: computed, not measured; torchrun with cm3 train --shard {number} divides it like this, and has run "
            "on CPUs only"
        )
    return "\n".join(lines)


def _generation(recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device) -> list[str]:
    """Rows of the table: weights, their working copy, keys and values."""
    assert recipe.decoder is not None
    size = 4 if device.on_cpu else 2
    weights = estimate.weights * number
    read, length = weights * size // 4, recipe.decoder.context_length
    if not device.on_cpu and recipe.decoder.builds_without_weights:
        weights, lines = 0, [_row("weights, bf16", read)]
    else:
        lines = [_row("weights, fp32", weights), _row(f"their copy in {size * 8} bits", read)]
    cache = recipe.decoder.cache_bytes(STREAMS * length, size)
    if cache is None:
        return [*lines, "  keys and values are not known to this decoder"]
    lines.append(_row(f"keys and values ({STREAMS} x {length:,} tokens)", cache))
    return [*lines, _row("in all", weights + read + cache)]


def _row(name: str, num_bytes: int) -> str:
    return f"  {name:<52} {num_bytes / 1e9:>9,.2f}"


def _refuse(recipe: Recipe, estimate: MemoryEstimate, number: int, device: Device) -> None:
    from cm3run.training.memory import advice

    needed = estimate.total(on_cpu=device.on_cpu)
    if device.limit is None or needed <= device.limit:
        return
    more = "" if device.on_cpu else ", or divide it among more devices (--devices)"
    raise RecipeError(
        f"recipe {recipe.name}",
        f"training takes about {needed / 1e9:,.2f} GB on "
        f"{'the device' if number == 1 else f'each of {number:,} devices'}, and {device.source} has "
        f"{device.limit / 1e9:,.2f} GB",
        f"{advice(recipe, estimate)}{more}",
    )
