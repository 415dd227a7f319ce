"""`cm3 plugin check`: check a plugin, for its author and for CI."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from typing import TYPE_CHECKING

from cm3apps.cli import add_overrides, real_number, whole_number
from cm3apps.cli._numbers import MAX_MINUTES
from cm3core.errors import PluginError

if TYPE_CHECKING:
    from cm3apps.plugin_check.verdicts import Report, Verdict

LINE = "check a plugin: API, hooks, names, keys, import time, laws of its components"
EXAMPLE = """  cm3 plugin check ./mine.py
  cm3 plugin check ./cm3-mine --quick
  cm3 plugin check cm3-mine dataset.path=./pictures --json"""


def configure(actions: _SubParsersAction[ArgumentParser]) -> None:
    """The action `check`."""
    parser = actions.add_parser(
        "check",
        help=LINE,
        description=LINE,
        epilog=f"examples:\n{EXAMPLE}",
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
    parser.set_defaults(act=run)


def run(args: Namespace) -> int:
    """Print a line per verdict; return 0 when nothing fails, else 1."""
    from cm3apps.plugin_check.checking import Options, check
    from cm3apps.plugin_check.verdicts import to_json

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
            "give the reason why the law does not apply, in quotes",
        )
    return component, law, reason.strip()
