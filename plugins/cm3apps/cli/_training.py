"""Shared by commands that train a single component.

It has their arguments, the training budget, the validation split, and the recipe written next to the weights.
"""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

from cm3apps.cli import add_device, add_length, add_overrides, whole_number
from cm3core.errors import RecipeError
from cm3core.files import check_links
from cm3core.outputs import OutputFolder

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: The recipe that names the weights, in the same folder.
RECIPE_FILE = "recipe.yaml"
#: What trainers of components write.
_TRAINED = (
    *("model.safetensors", "state.pt", "log.jsonl", "run.json", "training.json"),
    *("reconstructions.png", "comparison.png", RECIPE_FILE),
)


def claim_training(out: Path) -> None:
    """Before pictures are read: refuse a folder with somebody else's files under the names that a trainer writes, unless
    it has the state of a training, perhaps of another machine, which the trainer checks."""
    from cm3core.plugins.registry import COMPONENTS

    names = () if (out / "state.pt").is_file() else (*_TRAINED, COMPONENTS)
    OutputFolder(out, *names, resumes=True)
    check_links(out)


def action_adder(parser: ArgumentParser) -> Callable[[str, str, str], ArgumentParser]:
    """A function that adds an action to a command, given its name, a line of help and an example."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, example: str) -> ArgumentParser:
        return actions.add_parser(
            name,
            help=line,
            description=line,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )

    return add


def add_training_arguments(parser: ArgumentParser, out_help: str) -> None:
    """Recipe, `--out`, the budget, `--quiet` and overrides."""
    parser.add_argument("recipe", help="a shipped recipe's name, or a path to a YAML file")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help=out_help)
    add_length(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_device(parser, "where it is trained")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help="precision of training, if the component has the key training.precision (default: the "
        "recipe's)",
    )
    add_overrides(parser)


def with_precision(config: Any, precision: str | None) -> Any:
    """The config of a component with this training precision; None keeps its own.

    Raises:
        RecipeError: the component has no key for the precision, or does not support it.
    """
    if precision is None:
        return config
    training = getattr(config, "training", None)
    known = get_type_hints(type(training)) if is_dataclass(training) else {}
    allowed = get_args(known.get("precision"))
    # torch's names for the same precisions
    names = (precision, {"fp32": "float32", "bf16": "bfloat16"}.get(precision))
    value = next((name for name in names if name in allowed), None)
    if value is None:
        raise RecipeError(
            f"--precision {precision}",
            f"{type(config).__name__} trains in "
            + (f"one of {', '.join(allowed)}" if allowed else "a precision of its own"),
            "leave it out" + (", or take one of those" if allowed else ""),
        )
    assert is_dataclass(training)
    return replace(config, training=replace(cast(Any, training), precision=value))


def add_evaluation_arguments(
    parser: ArgumentParser, *, num_help: str, picture: str, picture_help: str
) -> None:
    """`--num`, `--out` and overrides."""
    parser.add_argument(
        "--num",
        type=whole_number(1, 2**31 - 1),
        default=1024,
        help=f"{num_help} (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path(picture),
        metavar="FILE.png",
        help=f"{picture_help} (default: %(default)s)",
    )
    add_device(parser, "where the networks run")
    add_overrides(parser)


def budget_of(args: Namespace, recipe: Recipe, command: str) -> dict[str, Any]:
    """`minutes` and `steps` from the command line, else from the recipe; one of them is None.

    Raises:
        RecipeError: both or neither are given, or the value is not positive.
    """
    minutes, steps = args.minutes, args.steps
    if minutes is None and steps is None:
        minutes, steps = recipe.train.minutes, recipe.train.steps
    if (minutes is None) == (steps is None):
        raise RecipeError(
            command, "the length of training is not given", "give --minutes or --steps"
        )
    if (length := minutes if steps is None else steps) is not None and not length > 0:
        raise RecipeError(
            "--minutes" if steps is None else "--steps", f"is {length}", "use more than 0"
        )
    return {"minutes": minutes, "steps": steps}


def validation_split(recipe: Recipe) -> str | None:
    """The first split that the data set has, of the recipe's validation splits and then "valid"."""
    assert recipe.dataset is not None
    names = (*recipe.train.validation_splits, "valid")
    return next((name for name in names if name in recipe.dataset.splits), None)


def require_section(recipe: Recipe, kind: str) -> None:
    """Raise `RecipeError` if a recipe lacks a component or the component can't be used."""
    if getattr(recipe, kind) is None:
        raise RecipeError(
            f"recipe {recipe.name}",
            f"has no section {kind!r}",
            f"add {kind}=NAME to the command",
        )
    getattr(recipe, kind).check()


def with_weights(config: Any, path: Path) -> Any:
    """The config of a component with the weights that its training wrote; as it is if it has no key `weights`."""
    known = {item.name for item in fields(config)}
    return replace(config, weights=str(path.absolute())) if "weights" in known else config


def write_part(recipe: Recipe, kind: str, trained: Any, folder: Path, registry: Registry) -> None:
    """Write the recipe of a trained part beside its files, so that `kind=FOLDER` takes it.

    Args:
        recipe: it was trained with.
        kind: the part's.
        trained: the part's config, with its files.
        folder: where its files are.
        registry: the components.
    """
    from cm3core.files import write_text
    from cm3core.recipe.recipe import files_of
    from cm3run.trust import reaches_of, record_own

    changed: dict[str, Any] = {kind: trained}
    for name, text in files_of(replace(recipe, **changed), registry).items():
        write_text(folder / name, text)
    record_own(folder, reaches_of(trained))


def place_of(kind: str, folder: Path, registry: Registry) -> str:
    """The folder of a trained part as a recipe names it: a folder may be called like a component.

    >>> from cm3core.plugins import load_registry
    >>> [place_of("text_tokenizer", Path(one), load_registry()) for one in ("bpe", "runs/bpe")]
    ['./bpe', 'runs/bpe']
    """
    from cm3core.recipe.places import is_place

    return str(folder) if is_place(str(folder), kind, registry) else f"./{folder}"


def use_of(
    kind: str, trained: Any, folder: Path, overrides: Sequence[str], registry: Registry
) -> str:
    """The command that uses a trained part, for the last line that a training command prints; "" if the component has
    no keys for its files."""
    from cm3run.parts import own_files

    if not own_files(trained, folder):
        return ""
    data = [one for one in overrides if one.partition("=")[0].partition(".")[0] == "dataset"]
    part = f"{kind}={place_of(kind, folder, registry)}"
    return f"use it: cm3 train tiny {shlex.join([part, *data])}\n"
