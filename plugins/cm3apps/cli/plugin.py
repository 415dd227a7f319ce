"""`cm3 plugin list`: every plugin with its version, status and components. Needs no torch.

A plugin that can't be used is listed with the reason. The other actions are separate modules, which
add their parser and set `act`, the function to run.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict

from cm3apps.cli import _plugin_check, _plugin_new, registry_of
from cm3core.plugins.info import PluginInfo, keep_plugins, kept_plugins

HELP = "list plugins and their components, start a new plugin, check one"
EXAMPLE = """  cm3 plugin new nibble --kind text_tokenizer
  cm3 plugin list
  cm3 plugin list -v
  cm3 --plugin ./mine.py plugin list --json"""


def configure(parser: ArgumentParser) -> None:
    """The actions."""
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
    _plugin_new.configure(actions)
    _plugin_check.configure(actions)


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
    """All plugins: as they were described last, if nothing has changed since."""
    if not args.plugin and (kept := kept_plugins()) is not None:
        return kept
    registry = registry_of(args, quiet=True)
    if not args.plugin:
        keep_plugins(registry.plugins, registry.models().values())
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
