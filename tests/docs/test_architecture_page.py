"""docs/architecture.md and its picture say what pyproject.toml's import contracts say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from source_packages import PACKAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
_architecture = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "_architecture.py")))
CONTRACTS = _architecture.contracts()
FLOORS = {
    "Layers of the core": "cm3core",
    "Layers of the engine": "cm3run",
}


def first_cells(heading: str) -> list[str]:
    """The first column of the table below a heading, without its two head rows."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.*?) \|", part, re.MULTILINE)[2:]


@pytest.mark.parametrize("heading", FLOORS)
def test_the_floors_are_the_contracts_layers(heading: str) -> None:
    rows = [re.findall(r"`(\w+)`", cell) for cell in first_cells(heading)]
    assert rows == [
        layer.split(" | ") for layer in _architecture.floors(CONTRACTS, FLOORS[heading])
    ]


def test_the_picture_is_drawn_from_the_contracts() -> None:
    assert _architecture.drawn(CONTRACTS) == PICTURE, "run `python docs/_architecture.py`"
    assert "prefers-color-scheme: dark" in PICTURE


def test_every_contract_is_named() -> None:
    names = [contract["name"] for contract in CONTRACTS]
    assert first_cells("Import contracts") == names


def test_every_path_is_there() -> None:
    named = re.findall(r"`((?:cm3core|plugins|tests)/[\w/.]+)`", PAGE)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert all(f"| `{package}` |" in PAGE for package in PACKAGES)


def test_every_kind_of_bundled_component_is_independent() -> None:
    """The contract lists folders: a new one must be added to it."""
    (listed,) = [
        contract["modules"]
        for contract in CONTRACTS
        if contract["name"] == "kinds are independent of each other"
    ]
    folders = [path.parent for path in (ROOT / "plugins" / "cm3plugins").glob("*/__init__.py")]
    # `icons` and `scenes` have components of several kinds
    shared = {
        f"cm3plugins.{folder}" for folder in ("icons", "indexes", "scenes", "trained", "vision")
    }
    assert {f"cm3plugins.{folder.name}" for folder in folders} - shared == set(listed)
