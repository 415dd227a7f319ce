"""`cm3 kinds`: the kinds of components, and the plugins that provide them. Needs no torch."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from cm3apps.cli import fitted, registry_of

if TYPE_CHECKING:
    from cm3apps.catalog import KindEntry

HELP = "list the kinds of components, and the plugins that provide them"
EXAMPLE = """  cm3 kinds
  cm3 kinds --json"""


def configure(parser: ArgumentParser) -> None:
    """Add an option."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: Namespace) -> int:
    """Print the kinds."""
    from cm3apps.catalog import kind_entries

    entries = kind_entries(registry_of(args))
    if args.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return 0
    print("\n".join(line for entry in entries for line in _lines(entry)))
    print("\n".join(fitted("for details: `cm3 describe KIND` and `cm3 describe KIND/NAME`")))
    return 0


def _lines(entry: KindEntry) -> list[str]:
    provided: dict[str, list[str]] = {}
    for component in entry.components:
        provided.setdefault(component.plugin, []).append(component.name)
    return [
        *fitted(f"{entry.kind}: {entry.summary}"),
        *fitted(f"hook {entry.hook}, interface {entry.interface}, kit {entry.kit or '-'}", "  "),
        *(
            line
            for plugin, names in provided.items()
            for line in fitted(f"{plugin}: {', '.join(names)}", "  ")
        ),
    ]
