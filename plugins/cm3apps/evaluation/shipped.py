"""The shipped protocols by name, and protocols in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.evaluation.tasks.base import known_keys
from cm3core._version import DISTRIBUTION, how_to_install
from cm3core.config.schema import default, init_fields, to_plain
from cm3core.errors import DataError, close_match
from cm3core.plugins.folders import folders_of
from cm3core.plugins.registry import Writer, find
from cm3plugins.beside import CM3_BESIDE
from cm3run.evaluation.protocol import Protocol, measured_name, read_protocol, score_configs

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry

FOLDER = Path(__file__).parent / "protocols"


def shipped() -> dict[str, Path]:
    """Name -> file: ours, and those of other distributions whose names are not used by ours."""
    found: dict[str, Path] = {}
    for folder in (FOLDER, *folders_of("protocols")):
        for path in folder.glob("*.json"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def _writer(path: Path) -> Writer:
    """Who wrote a shipped protocol, which resolves its bare names."""
    return Writer(distribution=folders_of("protocols").get(path.parent, DISTRIBUTION))


def find_protocol(name: str) -> Protocol:
    """A shipped protocol, or the protocol in a file.

    In a shipped protocol, or in an unchanged copy of it, bare names refer to its distribution's own components.

    Raises:
        DataError: the name is unknown, or the file is not a protocol.
    """
    if (known := shipped().get(name)) is not None:
        return replace(read_protocol(known), writer=_writer(known))
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        read = read_protocol(path)
        own = shipped().get(read.name)
        if own is not None and read_protocol(own) == read:
            return replace(read, writer=_writer(own))
        return read
    if distribution := CM3_BESIDE.get(f"protocol/{name}"):
        raise DataError(
            f"protocol {name!r}",
            f"the distribution {distribution} has it, but is not installed",
            how_to_install(distribution),
        )
    raise DataError(
        f"protocol {name!r}",
        "is neither a shipped protocol nor a file",
        close_match(name, shipped()),
    )


def shortened(protocol: Protocol, num: int) -> Protocol:
    """A trial of a protocol: its first samples. Name and hash differ, so no score passes for the protocol's.

    Raises:
        DataError: the number of its samples can't be set, or is no larger.
    """
    keys = known_keys(
        str(protocol.task["name"]), {k: v for k, v in protocol.task.items() if k != "name"}
    )
    if "num" not in keys:
        raise DataError("--num", f"{protocol.name} has a fixed set of prompts", "leave it out")
    own = keys["num"]
    if own is not None and num >= own:
        raise DataError(
            "--num", f"{protocol.name} has {own:,} samples", "use fewer, or leave it out"
        )
    return replace(
        protocol,
        name=f"{protocol.name}-first-{num}",
        title=f"a trial, the first {num:,} samples of {protocol.name}: {protocol.title}",
        task={**protocol.task, "num": num},
    )


def told(protocol: Protocol, registry: Registry) -> list[str]:
    """A description of a protocol in lines: its keys, and those of its task and of each score.

    Raises:
        DataError, RecipeError, PluginError: its task or a score has an unknown name, key or value.
    """
    task = {key: value for key, value in protocol.task.items() if key != "name"}
    keys = known_keys(str(protocol.task["name"]), task)
    lines = [
        f"{protocol.name}: {protocol.title}",
        f"  sha256 {protocol.sha256}",
        f"  size {json.dumps(protocol.size)}, seed {protocol.seed}",
        f"  task {protocol.task['name']}: {_keys(keys)}",
    ]
    for place, score in enumerate(protocol.scores):
        where = f"protocol {protocol.name}: scores {place}"
        known = dict(score)
        extractor = known.get("extractor")
        if (
            extractor is not None
            and "path" not in extractor
            and _takes_file(extractor, protocol, registry)
        ):
            known["extractor"] = {**extractor, "path": ""}  # a user's file
        config, other = score_configs(known, registry, where, protocol.writer)
        name = measured_name("metric", score["metric"]["name"], config, registry)
        lines.append(f"  metric {name}: {_keys(to_plain(config.protocol()))}")
        if other is not None and extractor is not None:
            own = {key: value for key, value in extractor.items() if key != "name"}
            lines.append(f"    extractor {extractor['name']}" + (f": {_keys(own)}" if own else ""))
    return lines


def _takes_file(extractor: Mapping[str, Any], protocol: Protocol, registry: Registry) -> bool:
    """Whether an extractor's config has a key `path` without a default."""
    found = find(registry, "extractor", str(extractor["name"]), place="", writer=protocol.writer)
    return any(item.name == "path" and default(item) is MISSING for item in init_fields(found))


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
