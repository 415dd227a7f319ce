"""`cm3 plugin new`: write a working plugin project of any kind. Needs no torch."""

from __future__ import annotations

import inspect
import shlex
from argparse import Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path
from typing import Any

from cm3apps.cli import registry_of
from cm3apps.config_docs import summary
from cm3apps.scaffold import plan_project, template_kinds, write_project
from cm3core import hookspecs
from cm3core.errors import PluginError
from cm3core.plugins.kinds import KINDS

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
    """A line for each kind that has a template: its name and its hook's first sentence."""
    kinds = template_kinds()
    width = max(map(len, kinds))
    lines = []
    for kind in kinds:
        hook = getattr(hookspecs, KINDS[kind].hook)
        sentence = summary(inspect.getdoc(hook) or "").partition(". ")[0].removesuffix(".")
        lines.append(
            f"  {kind:<{width}}  "
            f"{sentence.partition(': ')[2] or sentence[:1].lower() + sentence[1:]}"
        )
    return "\n".join(lines)


def run(args: Namespace) -> int:
    """Write the project and print the commands to run next."""
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
