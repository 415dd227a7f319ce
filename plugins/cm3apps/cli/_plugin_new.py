"""`cm3 plugin new`: write a working plugin project of any kind. Needs no torch."""

from __future__ import annotations

import shlex
from argparse import Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path
from typing import Any

from cm3apps.cli import registry_of
from cm3core.errors import PluginError

#: The kinds that have templates, each with the first sentence of its hook's documentation. A test compares the two:
#: the command is set up without the hooks.
KINDS = {
    "text_tokenizer": "text <-> ids",
    "image_tokenizer": "pixels <-> a grid of codes",
    "layout": "the sequence protocol by which documents become ids",
    "embedder": "text or picture -> a unit vector in a shared space",
    "retriever": "query document -> memory documents",
    "objective": "sequence -> the masked sequence to train on",
    "decoder": "tokens -> hidden states -> logits",
    "attention": "attention functions that decoders call",
    "sampler": "logits of the guidance streams -> next token",
    "reranker": "completions of one request -> a score each",
    "upscaler": "a picture -> the same, several times as large",
    "dataset": "where documents come from",
    "extractor": "a picture or a text -> the features that metrics compare",
    "metric": "samples of an evaluation -> scores",
    "task": "fields of a record -> the document to train on, and the prompt",
    "condition": "a picture or a text -> a picture of its structure",
    "tracker": "the events of a training run -> a record elsewhere",
}
EXAMPLE = "cm3 plugin new nibble --kind text_tokenizer"


def configure(actions: _SubParsersAction[Any]) -> None:
    """Add the action to those of `cm3 plugin`."""
    parser = actions.add_parser(
        "new",
        help="start a new plugin project",
        formatter_class=RawDescriptionHelpFormatter,
        description="Writes a package with one small, working component, its conformance test, README,\n"
        f"changelog, licence (MIT) and CI.\n\nkinds:\n{_kinds()}",
        epilog=f"example:\n  {EXAMPLE}",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="the component's name in recipes; the package is named cm3-NAME",
    )
    parser.add_argument("--kind", metavar="KIND", help="the kind of component, see above")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="the project's folder, which must not exist yet (default: cm3-NAME)",
    )
    parser.add_argument(
        "--author",
        default="",
        metavar="'NAME <MAIL>'",
        help="for pyproject.toml and LICENSE; the address is optional",
    )
    parser.set_defaults(act=run)


def _kinds() -> str:
    width = max(map(len, KINDS))
    return "\n".join(f"  {kind:<{width}}  {line}" for kind, line in KINDS.items())


def run(args: Namespace) -> int:
    """Write the project and print the commands to run next."""
    from cm3apps.scaffold import plan_project, template_kinds, write_project

    if args.kind is None:
        raise PluginError(
            f"cm3 plugin new {shlex.quote(args.name)}",
            "no kind is given",
            f"give --kind, one of {', '.join(template_kinds())}",
        )
    plan = plan_project(
        args.name, args.kind, registry_of(args, quiet=True), folder=args.out, author=args.author
    )
    files = write_project(plan)
    folder = str(plan.folder)
    print(
        f"{folder}: the {plan.fields['words']} {plan.name!r}, {len(files)} files\n"
        f"  start in {plan.package}/__init__.py\n\n"
        f"next:\n  cd {shlex.quote(folder)}\n  pip install -e '.[test]'\n  python -m pytest\n\n"
        f"README.md explains how to use, check and publish it"
    )
    return 0
