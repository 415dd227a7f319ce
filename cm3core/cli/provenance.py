"""`cm3 provenance`: what a model was trained on, or what made a picture, with licences."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.cli import registry_of
from cm3core.errors import CM3Error, DataError

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import Provenance

HELP = "show the licences and sources of a model's data, or of what made a picture"
EXAMPLE = """  cm3 provenance bundled:emoji64
  cm3 provenance runs/apples
  cm3 provenance out/000.png
  cm3 provenance out/000.png --model runs/apples"""
#: Keys of a picture's metadata that are shown, in order.
_SHOWN = (
    "prompt",
    "seed",
    "model",
    "step",
    "recipe_hash",
    "sampler",
    "candidate",
    "bank",
    "software",
)


def configure(parser: ArgumentParser) -> None:
    """The model or picture."""
    parser.add_argument(
        "what",
        metavar="MODEL|PICTURE",
        help="a run's folder, a checkpoint or PLUGIN:NAME; or a PNG that cm3 generate wrote",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="of a picture: where its model is now (default: the name in the picture)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--trust-plugin",
        action="append",
        default=[],
        dest="trust_plugins",
        metavar="SHA256",
        help="run the plugin file in the checkpoint that has this hash; read it first",
    )


def run(args: Namespace) -> int:
    """Print what is known."""
    found = _of_picture(args) if Path(args.what).is_file() else _of_model(args)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(found)))
    return 0


def _of_model(args: Namespace) -> dict[str, Any]:
    """Counts of the data set's and the memory's licences."""
    from cm3core.checkpoint import find_checkpoint, find_model
    from cm3core.model.model import load
    from cm3core.training.licences import counted, stored_provenance

    if args.model is not None:
        raise CM3Error(
            "--model", "goes with a picture", f"leave it out, or name a picture, not {args.what}"
        )
    registry = registry_of(args)
    model = load(args.what, registry=registry, trust_plugins=args.trust_plugins)
    recipe = model.recipe
    facts = {
        "model": model.name,
        "step": model.step,
        "recipe": recipe.name,
        "recipe_hash": recipe.hash,
    }
    retrieves = recipe.retriever is not None and recipe.retriever.num_retrieved > 0
    facts["data set"] = recipe.component_names.get("dataset", "")
    try:
        return {
            **facts,
            "trained on": counted(model.components.source),
            "retrieves from": counted(model.components.memory) if retrieves else [],
        }
    except DataError as error:  # the data are elsewhere; what the run wrote of them came along
        known = stored_provenance(find_checkpoint(find_model(args.what, registry)))
        if "trained_on" not in known:
            raise
        print(
            f"note: the data are not here ({error.place}: {error.cause}); this is what the run noted",
            file=sys.stderr,
        )
        of_training = {"retrieved from in training": known.get("memory", [])} if retrieves else {}
        return {**facts, "trained on": known["trained_on"], **of_training}


def _of_picture(args: Namespace) -> dict[str, Any]:
    """A picture's metadata, and the provenance of the documents that were prepended."""
    from cm3core.images import read_png_metadata
    from cm3core.model.model import load
    from cm3core.training.licences import of_documents

    metadata = read_png_metadata(args.what)
    if "recipe_hash" not in metadata:
        raise DataError(
            args.what, "does not say what made it", "name a PNG that cm3 generate wrote"
        )
    ids = _ids(metadata.get("retrieved", "[]"), args.what)
    found: dict[str, Any] = {key: metadata[key] for key in _SHOWN if key in metadata}
    known: dict[str, Provenance] = {}
    if ids:
        name = args.model or metadata.get("model", "")
        model = load(
            name,
            registry=registry_of(args),
            bank=metadata.get("bank"),
            trust_plugins=args.trust_plugins,
        )
        if model.recipe.hash != metadata["recipe_hash"]:
            print(
                f"warning: {name} has another recipe than the one that made the picture; its documents may differ",
                file=sys.stderr,
            )
        known = of_documents(model.components.memory, ids)
    found["documents"] = [
        {"id": name, **(vars(known[name]) if name in known else {"licence": "not in the memory"})}
        for name in ids
    ]
    return found


def _ids(text: str, place: str) -> list[str]:
    try:
        ids = json.loads(text)
        assert isinstance(ids, list)
        assert all(isinstance(one, str) for one in ids)
    except (ValueError, AssertionError, RecursionError) as error:
        raise DataError(place, "its metadata are damaged", "generate the picture again") from error
    return list(ids)


def _lines(found: dict[str, Any]) -> list[str]:
    from cm3core.cli._model import printable

    lines = []
    for key, value in found.items():
        if isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: nothing")
            lines += [f"  {_row(one)}" for one in value]
        else:
            lines.append(f"{key}: {printable(str(value))}")
    return lines


def _row(values: dict[str, Any]) -> str:
    from cm3core.cli._model import printable

    number = f"{values['documents']:,} documents" if "documents" in values else values.get("id", "")
    words: Sequence[Any] = (
        number,
        values.get("licence"),
        values.get("source"),
        values.get("attribution"),
    )
    return printable(", ".join(str(word) for word in words if word))
