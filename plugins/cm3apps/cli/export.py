"""`cm3 export`: write a run's model as a folder to share, or to a repository of the Hugging Face Hub."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import add_trust, registry_of
from cm3core.errors import CheckpointError

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3run.hub import Repo

HELP = "write a run's model as a folder to share: its weights, without the optimiser"
EXAMPLE = """  cm3 export runs/apples -o models/apples
  cm3 generate "a red apple" --model models/apples
  cm3 export runs/apples -o models/apples --push me/apples
  cm3 export models/apples --push me/apples"""


def configure(parser: ArgumentParser) -> None:
    """Add the model, its folder and its repository."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, another model's folder, PLUGIN:NAME of a model shipped by a plugin, or hf://USER/NAME",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="the model's folder; an older model there is replaced if you changed nothing in it. With --push, an exported "
        "model needs none",
    )
    parser.add_argument(
        "--dtype",
        choices=["fp16", "bf16", "fp32"],
        help="precision of the stored weights (default: fp16)",
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME[@BRANCH]",
        help="then write the model to this repository of the Hugging Face Hub, in one commit; a missing one is created. "
        "Needs a token that may write (hf auth login, or HF_TOKEN)",
    )
    parser.add_argument(
        "--private", action="store_true", help="with --push: a new repository is private"
    )
    add_trust(parser, plugins=False)


def run(args: Namespace) -> int:
    """Write the model, and print its folder, and the page of the commit."""
    from cm3run.checkpoint import export_model, find_model
    from cm3run.checkpoint.hub_models import target_of_push

    _check_options(args)
    registry = registry_of(args)
    repo = None if args.push is None else target_of_push(args.push)  # before the work
    folder = find_model(args.model, registry)
    if args.out is not None:
        folder = export_model(
            folder,
            args.out,
            args.dtype or "fp16",
            shipped=registry.models().values(),
            trust_endpoints=args.trust_endpoints,
        )
        _write_readme(folder, registry)
        print(folder)
    if repo is not None:
        print(_push(folder, repo, registry, private=args.private))
    return 0


def _check_options(args: Namespace) -> None:
    """Refuse a command without a target, and options without an effect."""
    if args.out is None and args.push is None:
        raise CheckpointError("cm3 export", "has no folder to write", "add -o FOLDER")
    if args.out is None and args.dtype is not None:
        raise CheckpointError(
            f"cm3 export --dtype {args.dtype}",
            "has no effect: without -o, an exported model is pushed as it is",
            "add -o FOLDER, or leave it out",
        )
    if args.private and args.push is None:
        raise CheckpointError(
            "cm3 export --private", "has no effect without --push", "leave it out"
        )


def _write_readme(folder: Path, registry: Registry) -> None:
    from cm3core.files import write_text
    from cm3run.checkpoint.hub_models import README

    write_text(folder / README, _readme(folder, folder.name, folder.name, registry))


def _readme(folder: Path, name: str, address: str, registry: Registry) -> str:
    from cm3apps.cli._readme import readme
    from cm3run.checkpoint import read_recipe, read_state
    from cm3run.training.data_notes import stored_provenance

    recipe = read_recipe(folder, registry)
    return readme(name, address, recipe, read_state(folder), stored_provenance(folder))


def _push(folder: Path, repo: Repo, registry: Registry, *, private: bool) -> str:
    """Write a model folder to a repository; return the commit's page."""
    from cm3apps.cli._readme import own_readme
    from cm3run.checkpoint import OPTIMIZER, STATE, WEIGHTS
    from cm3run.checkpoint.hub_models import push_model

    files = [(folder / name).is_file() for name in (STATE, WEIGHTS, OPTIMIZER)]
    if files != [True, True, False]:
        raise CheckpointError(
            str(folder),
            "is not an exported model, which alone can be pushed",
            f"export it, too: -o FOLDER --push {repo.id}",
        )
    card = own_readme(folder)
    if card is None:
        card = _readme(folder, repo.id, str(repo), registry)
    return push_model(folder, repo, card, private=private)
