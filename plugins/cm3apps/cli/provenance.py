"""`cm3 provenance`: show a model's training data, or how a picture was made, with licences."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import add_trust, registry_of
from cm3core.errors import CM3Error, DataError
from cm3run.json_text import parse_json
from cm3run.printing import printable

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import Provenance
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.attribution import FileFacts

HELP = "show the licences and sources of a model's data, or how a picture was made"
EXAMPLE = """  cm3 provenance bundled:emoji64
  cm3 provenance runs/apples
  cm3 provenance out/000.png
  cm3 provenance out/000.svg
  cm3 provenance out/set.zip"""
#: The keys of a picture's metadata to show, in order.
_SHOWN = (
    "original",
    "adapted",
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
    """Add the model or file."""
    parser.add_argument(
        "what",
        metavar="MODEL|FILE",
        help="a run's folder, a checkpoint, PLUGIN:NAME or hf://USER/NAME; or a picture (PNG, SVG, JPEG, "
        "WebP) or zip that cm3 generate or cm3 serve wrote: nothing but this file is "
        "read then",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="for a picture by an earlier version, without licences: look up its "
        "documents in this model's memory",
    )
    parser.add_argument(
        "--bank",
        metavar="FOLDER",
        help="for such a picture: look them up in this memory bank instead",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_trust(parser)


def run(args: Namespace) -> int:
    """Print what is known."""
    found = _of_file(args) if Path(args.what).is_file() else _of_model(args)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(found)))
    return 0


def _of_model(args: Namespace) -> dict[str, Any]:
    """Print the run's record of its data, and the targets outside its folder that the model names. Nothing is built."""
    from cm3run.checkpoint import find_checkpoint, find_model, lasting_name, read_recipe, read_state
    from cm3run.checkpoint.carried import with_trusted
    from cm3run.hub import is_address
    from cm3run.training.data_notes import stored_provenance

    for option, given in (("--model", args.model), ("--bank", args.bank)):
        if given is not None:
            raise CM3Error(
                option, "needs a picture", f"leave it out, or name a picture, not {args.what}"
            )
    registry = registry_of(args)
    folder = find_checkpoint(find_model(args.what, registry))
    registry = with_trusted(registry, folder, args.trust_plugins)
    recipe = read_recipe(folder, registry, trust_endpoints=args.trust_endpoints)
    known = stored_provenance(folder)
    facts: dict[str, Any] = {
        "model": lasting_name(args.what, registry) if is_address(args.what) else str(args.what),
        "step": read_state(folder).step,
        "recipe": recipe.name,
        "recipe_hash": recipe.hash,
        "data set": recipe.component_names.get("dataset", ""),
    }
    if "trained_on" in known:
        facts["trained on"] = known["trained_on"]
    else:
        print(
            f"note: {folder} has no provenance.json, which lists its training data: copy the file of its run "
            "beside it",
            file=sys.stderr,
        )
    if known.get("memory") is not None:
        shipped = str(args.what) in registry.models()
        facts["retrieves from" if shipped else "retrieved from in training"] = known["memory"]
    return {**facts, "outside": _outside(folder, recipe, registry, args.trust_endpoints)}


def _outside(
    folder: Path, recipe: Recipe, registry: Registry, trust_endpoints: Sequence[str]
) -> list[dict[str, Any]]:
    """The targets outside its folder that a model names, and whether they would be used."""
    from cm3run.checkpoint.adapters import base_reaches
    from cm3run.checkpoint.layout import read_state
    from cm3run.trust import trust_of
    from cm3run.trust.guard import recipe_reaches

    trust = trust_of(folder, registry.models().values(), trust_endpoints)
    named = [
        *recipe_reaches(recipe, refused=True),
        *base_reaches(read_state(folder).base, registry),
    ]
    return [
        {
            "key": one.key,
            "how": one.how,
            "target": one.target,
            "why": one.why,
            "used": "only with --trust-endpoints" if trust.refused([one]) else "when needed",
        }
        for one in named
        if one.key != "train.start_from"  # no command that uses a model reads it
    ]


def _of_file(args: Namespace) -> dict[str, Any]:
    """Print the metadata of a picture, or of each picture in a zip."""
    from cm3run.attribution import facts_in, facts_in_zip, is_zip

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
    """Print a picture's metadata and the prepended documents from its file; if the file has only their ids, the documents
    come from `--model`."""
    found = told_of(facts)
    if facts.is_credited:
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


def told_of(facts: FileFacts) -> dict[str, Any]:
    """A picture's metadata, and the prepended documents if the file has more than their ids."""
    from cm3run.attribution import nearest

    found: dict[str, Any] = {key: facts.texts[key] for key in _SHOWN if key in facts.texts}
    if "answer" in facts.texts:
        found["answer"] = _answer(facts.texts["answer"])
    if facts.is_credited:
        near = nearest(facts.credits)
        if near is not None:
            found["nearest"] = f"nearly a copy of {near.named}" if near.is_copy else near.named
            found["nearness"] = round(near.nearness or 0.0, 3)
        found["documents"] = [one.as_json() for one in facts.credits]
    return found


def _answer(stored: str) -> object:
    """What the memory had for the prompt, as the file says it."""
    try:
        return parse_json(stored, "answer", form=Any)
    except DataError:  # from anyone's file
        return stored


def _from_model(
    args: Namespace, texts: Mapping[str, str], ids: Sequence[str]
) -> dict[str, Provenance]:
    """The sources of documents, from the memory of `--model`."""
    from cm3run.model.model import load
    from cm3run.training.data_notes import of_documents

    model = load(
        args.model,
        registry=registry_of(args),
        bank=args.bank,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    if model.recipe.hash != texts.get("recipe_hash"):
        print(
            f"warning: {args.model} has a different recipe from the model that made the picture; its documents may differ",
            file=sys.stderr,
        )
    return of_documents(model.components.memory, ids)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in found.items():
        if key == "files":
            lines += [line for one in value for line in ["", *_lines(one)]][1:]
        elif key == "answer" and isinstance(value, dict):
            lines.append(f"answer: {printable(str(value.get('text', '')))}")
        elif isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: nothing")
            lines += [f"  {printable(_row(one))}" for one in value]
        else:
            lines.append(f"{key}: {printable(str(value))}")
    return lines


def _row(values: object) -> str:
    """A line for a document, for the documents of one licence and source, or for an outside target of a model."""
    if not isinstance(values, dict):
        return str(values)
    if "target" in values:
        why = f" ({values['why']})" if values["why"] else ""
        return f"{values['key']} {values['how']} {values['target']}{why}: {values['used']}"
    counted = values.get("documents")
    number = f"{counted:,} documents" if isinstance(counted, int) else values.get("id", "")
    near = f"nearness {values['nearness']:.2f}" if "nearness" in values else ""
    keys = ("licence", "source", "attribution", "collection", "title", "link", "licence_link")
    words = (number, *(values.get(key) for key in keys), near)
    return ", ".join(dict.fromkeys(str(word) for word in words if word))
