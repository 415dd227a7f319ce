"""`cm3 plugin list | new | check`: list every plugin with its version, status and components; write a working plugin
project of any kind; check a plugin, for its author and for CI. Needs no torch.

A plugin that can't be used is listed with the reason.
"""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import (
    MAX_MINUTES,
    add_overrides,
    real_number,
    registry_of,
    whole_number,
)
from cm3core.errors import PluginError
from cm3core.plugins.info import PluginInfo, keep_plugins, kept_plugins

if TYPE_CHECKING:
    from cm3apps.plugin_check.worker import Report, Verdict


HELP = "list plugins and their components, start a new plugin, check one"
EXAMPLE = """  cm3 plugin new nibble --kind text_tokenizer
  cm3 plugin list
  cm3 plugin list -v
  cm3 --plugin ./mine.py plugin list --json"""
#: The kinds that have templates, each with the first sentence of its hook's documentation. A test compares the two:
#: the command is set up without the hooks.
KINDS = {
    "text_tokenizer": "text <-> ids",
    "image_tokenizer": "pixels <-> codes, on a grid or in a sequence",
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
NEW_EXAMPLE = "cm3 plugin new nibble --kind text_tokenizer"
CHECK = "check a plugin: API, hooks, names, keys, import time, laws of its components"
CHECK_EXAMPLE = """  cm3 plugin check ./mine.py
  cm3 plugin check ./cm3-mine --quick
  cm3 plugin check cm3-mine dataset.path=./pictures --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list all plugins",
        description="Lists all plugins, installed or given by --plugin, with their status and components.",
        epilog="example:\n  cm3 plugin list -v",
        formatter_class=RawDescriptionHelpFormatter,
    )
    listing.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also show where each plugin comes from, and the tracebacks of broken ones",
    )
    listing.add_argument("--json", action="store_true", help="print everything as JSON")
    listing.set_defaults(act=_list)
    _configure_new(actions)
    _configure_check(actions)


def run(args: Namespace) -> int:
    """Run the action."""
    act: Callable[[Namespace], int] = args.act
    return act(args)


def _list(args: Namespace) -> int:
    """Print the list; a broken plugin is not an error here."""
    plugins = _described(args)
    if args.json:
        print(json.dumps([asdict(info) for info in plugins], indent=2))
        return 0
    for info in plugins:
        print("\n".join(_lines(info, args.verbose)))
    return 0


def _described(args: Namespace) -> list[PluginInfo]:
    """All plugins, from their last description if nothing has changed since."""
    if not args.plugin and (kept := kept_plugins()) is not None:
        return kept.plugins
    registry = registry_of(args, quiet=True)
    if not args.plugin:
        keep_plugins(registry.plugins, registry.models().values(), registry.command_targets())
    return registry.plugins


def _lines(info: PluginInfo, verbose: bool) -> list[str]:
    lines = [
        f"{info.name} {info.version or '(file)'}  {info.status}"
        + (f": {info.reason}" if info.reason else "")
    ]
    if verbose:
        lines.append(f"  from {info.origin}")
    lines += [f"  {kind}: {', '.join(names)}" for kind, names in info.components.items()]
    if info.kinds:
        lines.append(f"  kinds: {', '.join(info.kinds)}")
    if info.commands:
        lines.append(f"  commands: {', '.join(info.commands)}")
    if info.benchmarks:
        lines.append(f"  benchmarks: {', '.join(info.benchmarks)}")
    if info.models:
        lines.append(f"  models: {', '.join(f'{info.name}:{name}' for name in info.models)}")
    lines += [f"  deprecated: {line}" for line in info.deprecated]
    if verbose and info.traceback:
        lines += [f"  | {line}" for line in info.traceback.rstrip().splitlines()]
    return lines


def _configure_new(actions: _SubParsersAction[Any]) -> None:
    """Add the action to those of `cm3 plugin`."""
    parser = actions.add_parser(
        "new",
        help="start a new plugin project",
        formatter_class=RawDescriptionHelpFormatter,
        description="Writes a package with one small, working component, its conformance test, README,\n"
        f"changelog, licence (MIT) and CI.\n\nkinds:\n{_kinds()}",
        epilog=f"example:\n  {NEW_EXAMPLE}",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="the component's name in recipes; the package is named cm3-NAME",
    )
    parser.add_argument("--kind", metavar="KIND", help="the kind of component, see above")
    parser.add_argument(
        "--form",
        default="",
        metavar="FORM",
        help="of an image tokenizer: 'sequence' for pictures of different numbers of codes, 'places' for several "
        "codes per place (default: a grid of one code per place)",
    )
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
    parser.set_defaults(act=_new)


def _kinds() -> str:
    width = max(map(len, KINDS))
    return "\n".join(f"  {kind:<{width}}  {line}" for kind, line in KINDS.items())


def _new(args: Namespace) -> int:
    """Write the project and print the commands to run next."""
    from cm3apps.scaffold import plan_project, template_kinds, write_project

    if args.kind is None:
        raise PluginError(
            f"cm3 plugin new {shlex.quote(args.name)}",
            "no kind is given",
            f"give --kind, one of {', '.join(template_kinds())}",
        )
    plan = plan_project(
        args.name,
        (args.kind, args.form),
        registry_of(args, quiet=True),
        folder=args.out,
        author=args.author,
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


def _configure_check(actions: _SubParsersAction[ArgumentParser]) -> None:
    """Add the action `check`."""
    parser = actions.add_parser(
        "check",
        help=CHECK,
        description=CHECK,
        epilog=f"examples:\n{CHECK_EXAMPLE}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target",
        metavar="PLUGIN",
        help="an installed distribution or entry point, a module, a folder with a "
        "pyproject.toml, or a .py file",
    )
    parser.add_argument(
        "--quick", action="store_true", help="build nothing and test no laws; takes seconds"
    )
    parser.add_argument(
        "--max-examples",
        type=whole_number(1, 2**20),
        default=25,
        metavar="N",
        help="examples per law (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="check only this component, NAME or KIND/NAME; may be given several times",
    )
    parser.add_argument(
        "--waive",
        action="append",
        default=[],
        metavar="[NAME.]LAW=REASON",
        help="skip a law that does not apply (to one component); may be given several times",
    )
    parser.add_argument(
        "--timeout",
        type=real_number(0, 60 * MAX_MINUTES, above=True),
        default=300.0,
        metavar="SECONDS",
        help="limit for each component's laws, and for commands, benchmarks and models (default: %(default)g)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 for warnings and skipped checks, too"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, at the end")
    add_overrides(parser)
    parser.set_defaults(act=_check)


def _check(args: Namespace) -> int:
    """Print a line per verdict; return 0 if nothing fails, else 1."""
    from cm3apps.plugin_check.checking import Options, check
    from cm3apps.plugin_check.worker import to_json

    options = Options(
        overrides=args.overrides,
        max_examples=args.max_examples,
        quick=args.quick,
        timeout=args.timeout,
        only=args.only,
        waived=[_waiver(text) for text in args.waive],
    )
    reports = check(args.target, options, tell=None if args.json else _print_verdict)
    if args.json:
        print(json.dumps(to_json(args.target, reports, strict=args.strict), indent=2))
    else:
        print(*(report.summary() for report in reports), sep="\n")
    return 0 if all(report.passed(strict=args.strict) for report in reports) else 1


def _print_verdict(report: Report, verdict: Verdict | None) -> None:
    if verdict is None:
        print(f"{report.name} {report.version}".rstrip() + f" ({report.origin})", flush=True)
    else:
        print("\n".join(verdict.lines()), flush=True)


def _waiver(text: str) -> tuple[str, str, str]:
    """ "mine.law=reason" -> ("mine", "law", "reason")."""
    law, equals, reason = text.partition("=")
    component, _, law = law.rpartition(".")
    if not equals or not law.isidentifier() or not reason.strip():
        raise PluginError(
            f"--waive {text}",
            "is not LAW=REASON or NAME.LAW=REASON",
            "give a reason why the law does not apply, in quotes",
        )
    return component, law, reason.strip()
