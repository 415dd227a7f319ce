"""`cm3 provenance`: what a model was trained on, or what made a picture, with licences."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.cli import registry_of
from cm3core.errors import CM3Error, DataError

if TYPE_CHECKING:
    from cm3core.attribution import FileFacts
    from cm3core.interfaces.dataset import Provenance

HELP = "show the licences and sources of a model's data, or of what made a picture"
EXAMPLE = """  cm3 provenance bundled:emoji64
  cm3 provenance runs/apples
  cm3 provenance out/000.png
  cm3 provenance out/000.svg
  cm3 provenance out/set.zip"""
#: Keys of a picture's metadata that are shown, in order.
_SHOWN = (
    "original",
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
    """The model, or the file."""
    parser.add_argument(
        "what",
        metavar="MODEL|FILE",
        help="a run's folder, a checkpoint or PLUGIN:NAME; or a picture that cm3 generate or cm3 serve wrote (PNG, SVG, "
        "JPEG, WebP), or a zip of them, of which nothing but the file is read",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="of a picture that an earlier version wrote, without licences: look for its documents in this model's "
        "memory",
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
    found = _of_file(args) if Path(args.what).is_file() else _of_model(args)
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


def _of_file(args: Namespace) -> dict[str, Any]:
    """What a picture says of itself, or each picture of a zip."""
    from cm3core.attribution import facts_in, facts_in_zip, is_zip

    content = _content(args.what)
    if is_zip(content):
        known = facts_in_zip(content, args.what)
        return {"files": [{"file": name, **_of_picture(args, one)} for name, one in known.items()]}
    return _of_picture(args, facts_in(content, args.what))


def _content(path: str) -> bytes:
    from cm3core.files import check_regular
    from cm3core.images import check_file_bytes

    check_regular(path, path)
    try:
        check_file_bytes(Path(path).stat().st_size, path)
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(path, f"can't be read ({error.strerror})", "correct the path") from error


def _of_picture(args: Namespace, facts: FileFacts) -> dict[str, Any]:
    """A picture's metadata, and the documents that were in front as its file names them; of a file that names nothing
    but their ids, as `--model` has them."""
    from cm3core.attribution import nearest

    found: dict[str, Any] = {key: facts.texts[key] for key in _SHOWN if key in facts.texts}
    if facts.is_credited:
        near = nearest(facts.credits)
        if near is not None:
            found["nearest"] = f"nearly a copy of {near.named}" if near.is_copy else near.named
            found["nearness"] = round(near.nearness or 0.0, 3)
        found["documents"] = [one.as_json() for one in facts.credits]
        return found
    ids = [one.id for one in facts.credits]
    known = _from_model(args, facts.texts, ids) if ids and args.model is not None else {}
    if ids and args.model is None:
        print(
            "note: the picture was written by an earlier version and has no licences; --model MODEL looks for its "
            "documents in a model's memory",
            file=sys.stderr,
        )
    elsewhere = "not in the picture" if args.model is None else "not in the memory"
    found["documents"] = [
        {"id": name, **(vars(known[name]) if name in known else {"licence": elsewhere})}
        for name in ids
    ]
    return found


def _from_model(
    args: Namespace, texts: Mapping[str, str], ids: Sequence[str]
) -> dict[str, Provenance]:
    """Where documents are from, as the memory of `--model` says."""
    from cm3core.model.model import load
    from cm3core.training.licences import of_documents

    model = load(args.model, registry=registry_of(args), trust_plugins=args.trust_plugins)
    if model.recipe.hash != texts.get("recipe_hash"):
        print(
            f"warning: {args.model} has another recipe than the one that made the picture; its documents may differ",
            file=sys.stderr,
        )
    return of_documents(model.components.memory, ids)


def _lines(found: dict[str, Any]) -> list[str]:
    from cm3core.cli._model import printable

    lines = []
    for key, value in found.items():
        if key == "files":
            lines += [line for one in value for line in ["", *_lines(one)]][1:]
        elif isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: nothing")
            lines += [f"  {printable(_row(one))}" for one in value]
        else:
            lines.append(f"{key}: {printable(str(value))}")
    return lines


def _row(values: dict[str, Any]) -> str:
    """A document, or how many a data set has of one licence and source."""
    number = f"{values['documents']:,} documents" if "documents" in values else values.get("id", "")
    near = f"nearness {values['nearness']:.2f}" if "nearness" in values else ""
    keys = ("licence", "source", "attribution", "collection", "title", "link", "licence_link")
    words = (number, *(values.get(key) for key in keys), near)
    return ", ".join(dict.fromkeys(str(word) for word in words if word))
