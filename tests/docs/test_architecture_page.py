"""docs/architecture.md and its picture say what pyproject.toml's import contracts say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
CONTRACTS: list[dict[str, Any]] = SETTINGS["importlinter"]["contracts"]
(LAYERS,) = [
    [layer.split(" | ") for layer in contract["layers"]]
    for contract in CONTRACTS
    if contract["type"] == "layers" and contract["containers"] == ["cm3core"]
]


def first_cells(heading: str) -> list[str]:
    """The first column of the table below a heading, without its two head rows."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.*?) \|", part, re.MULTILINE)[2:]


def test_the_floors_are_the_contracts_layers() -> None:
    rows = [re.findall(r"`(\w+)`", cell) for cell in first_cells("Floors of the core")]
    assert rows == LAYERS


def test_the_picture_has_the_same_floors() -> None:
    names = re.findall(r'<text class="name"[^>]*>([^<]*)</text>', PICTURE)
    assert [name.split(" | ") for name in names] == LAYERS
    assert "prefers-color-scheme: dark" in PICTURE


def test_every_contract_is_named() -> None:
    names = [contract["name"] for contract in CONTRACTS]
    assert first_cells("Who may import whom") == names


def test_every_path_is_there() -> None:
    named = re.findall(r"`((?:cm3core|tests)/[\w/.]+)`", PAGE)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    packages = {"cm3core", "plugins/cm3plugins", "plugins/cm3apps", "kernels/cm3kernels"}
    assert set(SETTINGS["hatch"]["build"]["targets"]["wheel"]["packages"]) == packages
    assert all(f"| `{Path(package).name}` |" in PAGE for package in packages)


def test_every_kind_of_bundled_component_is_independent() -> None:
    """The contract lists folders: a new one must be added to it."""
    (listed,) = [
        contract["modules"]
        for contract in CONTRACTS
        if contract["name"] == "kinds are independent of each other"
    ]
    folders = [path.parent for path in (ROOT / "plugins" / "cm3plugins").glob("*/__init__.py")]
    shared = {"cm3plugins.indexes", "cm3plugins.trained", "cm3plugins.vision"}
    assert {f"cm3plugins.{folder.name}" for folder in folders} - shared == set(listed)
