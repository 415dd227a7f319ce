"""`cm3 describe`: a component's keys, origin, laws and recipe section; or a kind's, a section's or a key's. No torch."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from cm3apps.cli import fitted, registry_of, wrapped

if TYPE_CHECKING:
    from cm3apps.catalog import ComponentEntry, Key, KeyEntry, KindEntry, SectionEntry
    from cm3core.plugins.registry import Registry

HELP = "explain a component, its keys and its recipe section; or a kind, a section or a key"
EXAMPLE = """  cm3 describe sampler/cd_k
  cm3 describe emoji
  cm3 describe image_tokenizer
  cm3 describe train
  cm3 describe train.learning_rate
  cm3 describe sampler.guidance_scale
  cm3 --plugin ./mine.py describe mine --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the name and an option."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="KIND/NAME, NAME, PLUGIN/NAME, KIND/PLUGIN/NAME, or KIND; a recipe's SECTION, or SECTION.KEY",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: Namespace) -> int:
    """Print what the name names."""
    entry, lines = _described(args.name, registry_of(args))
    print(json.dumps(entry, indent=2) if args.json else "\n".join(lines))
    return 0


def _described(name: str, registry: Registry) -> tuple[object, Iterator[str]]:
    """The entry as JSON types, and as lines."""
    from cm3apps.catalog import component_entry, find, key_entries, kind_entry, section_entry
    from cm3core.recipe.sections import FIXED_SECTIONS

    if name in FIXED_SECTIONS:
        section = section_entry(name)
        return asdict(section), _section(section)
    if "." in name:
        keys = key_entries(name, registry)
        return [asdict(one) for one in keys], _keys_by_path(keys)
    kind, component_name = find(name, registry)
    if component_name:
        component = component_entry(kind, component_name, registry)
        return asdict(component), _component(component)
    entry = kind_entry(kind, registry)
    return asdict(entry), _kind(entry)


def _section(entry: SectionEntry) -> Iterator[str]:
    yield from wrapped(f"{entry.section}: {entry.summary}")
    for paragraph in filter(None, entry.text.split("\n\n")):
        yield from wrapped(paragraph, "  ")
    yield from _keys("keys", entry.keys)
    yield from ("", "in a recipe", *(f"  {line}" for line in entry.snippet.splitlines()))


def _keys_by_path(entries: Sequence[KeyEntry]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        if number:
            yield ""
        yield from _key(replace(entry.key, name=entry.path))
        if entry.of != [entry.path.partition(".")[0]]:
            yield from wrapped(f"of {', '.join(entry.of)}", "    ")


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
        yield from _key(key, "  ")


def _key(key: Key, indent: str = "") -> Iterator[str]:
    value = "required" if key.required else f"default {_shown(key.default)}"
    yield from fitted(f"{key.name}: {key.type}, {value}", indent, f"{indent}      ")
    if key.text:
        yield from wrapped(key.text, f"{indent}    ")


def _shown(value: object) -> str:
    """A value as YAML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _texts(heading: str, texts: Mapping[str, str]) -> Iterator[str]:
    if texts:
        yield ""
        yield heading
    for name, text in texts.items():
        yield from wrapped(f"{name}: {text}", "  ", "      ")
