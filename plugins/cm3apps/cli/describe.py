"""`cm3 describe`: a component's keys, origin, laws and recipe section; or a kind's. No torch."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from cm3apps.cli import fitted, registry_of, wrapped

if TYPE_CHECKING:
    from cm3apps.catalog import ComponentEntry, Key, KindEntry

HELP = "explain a component, its keys and its recipe section; or a kind"
EXAMPLE = """  cm3 describe sampler/cd_k
  cm3 describe emoji
  cm3 describe image_tokenizer
  cm3 --plugin ./mine.py describe mine --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the name and an option."""
    parser.add_argument(
        "name", metavar="NAME", help="KIND/NAME, NAME, PLUGIN/NAME, KIND/PLUGIN/NAME, or KIND"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: Namespace) -> int:
    """Print the component's or kind's entry."""
    from cm3apps.catalog import component_entry, find, kind_entry

    registry = registry_of(args)
    kind, name = find(args.name, registry)
    if name:
        component = component_entry(kind, name, registry)
        print(
            json.dumps(asdict(component), indent=2)
            if args.json
            else "\n".join(_component(component))
        )
    else:
        entry = kind_entry(kind, registry)
        print(json.dumps(asdict(entry), indent=2) if args.json else "\n".join(_kind(entry)))
    return 0


def _component(entry: ComponentEntry) -> Iterator[str]:
    yield from wrapped(
        f"{entry.kind}/{entry.name}: {entry.summary or '(its config has no docstring)'}"
    )
    for paragraph in filter(None, entry.text.split("\n\n")):
        yield from wrapped(paragraph, "  ")
    version = f" {entry.version}" if entry.version else ""
    yield from fitted(
        f"plugin {entry.plugin}{version} ({entry.origin}), config {entry.config}", "  "
    )
    if entry.needs:
        several = "s" if len(entry.needs) > 1 else ""
        yield from fitted(f"needs the section{several} {', '.join(entry.needs)}", "  ")
    for line in entry.in_short:
        yield from wrapped(f"by default: {line}", "  ")
    yield from _keys("keys", entry.keys)
    yield from _texts("laws of its kind's conformance kit", entry.laws)
    yield from ("", "in a recipe", *(f"  {line}" for line in entry.snippet.splitlines()))


def _kind(entry: KindEntry) -> Iterator[str]:
    yield from fitted(f"{entry.kind}: {entry.summary}")
    yield from fitted(
        f"hook {entry.hook}, interface {_module_and(entry.interface)}, config "
        f"{_module_and(entry.config)}",
        "  ",
    )
    yield from fitted(f"kit {entry.kit}" if entry.kit else "without a kit", "  ")
    yield ""
    yield "components"
    for component in entry.components:
        yield from wrapped(
            f"{component.name} ({component.plugin}): {component.summary}", "  ", "      "
        )
        for line in component.in_short:
            yield from wrapped(f"by default: {line}", "      ")
    yield from _texts("an implementation must define", entry.methods)
    yield from _keys("keys of all components", entry.keys)
    yield from _texts("laws of the conformance kit", entry.laws)


def _module_and(name: str) -> str:
    """A class with its module, unless that is `cm3core.interfaces`."""
    return name if "." in name else f"cm3core.interfaces.{name}"


def _keys(heading: str, keys: Sequence[Key]) -> Iterator[str]:
    if keys:
        yield ""
        yield heading
    for key in keys:
        value = "required" if key.required else f"default {_shown(key.default)}"
        yield from fitted(f"{key.name}: {key.type}, {value}", "  ", "        ")
        if key.text:
            yield from wrapped(key.text, "      ")


def _shown(value: object) -> str:
    """A value as YAML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _texts(heading: str, texts: Mapping[str, str]) -> Iterator[str]:
    if texts:
        yield ""
        yield heading
    for name, text in texts.items():
        yield from wrapped(f"{name}: {text}", "  ", "      ")
