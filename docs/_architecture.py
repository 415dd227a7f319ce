"""Draw images/architecture.svg, the packages and their layers, from the import contracts in pyproject.toml.

python docs/_architecture.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURE = HERE / "images" / "architecture.svg"
#: Package -> its description, and the colour of its box.
WHAT = {
    "cm3lab": ("separate distribution: benchmarks", "tools"),
    "cm3published": ("distribution: published models", "beside"),
    "cm3postgres": ("distribution: PostgreSQL", "beside"),
    "cm3serve": ("distribution: server, agents", "beside"),
    "cm3titan": ("distribution: torchtitan", "beside"),
    "cm3icons": ("distribution: icons, their models, recipes and judges", "beside"),
    "cm3apps": ("the command cm3, quickstart, evaluation", "tools"),
    "cm3plugins": ("the bundled components, one folder per kind", "beside"),
    "cm3kits": ("the laws of components, for plugin authors", "beside"),
    "cm3run": ("the engine: models, generation, training, checkpoints", "work"),
    "cm3core": ("the contracts for plugins and recipes; no torch", "language"),
    "cm3kernels": ("pure functions on tensors: torch and Triton", "kernels"),
}
STYLE = """
    text { font-family: system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; font-size: 13px; fill: #1f2328 }
    .page { fill: #ffffff; stroke: #d0d7de }
    .floor { fill: #ffffff; fill-opacity: 0.55 }
    .tools { fill: #ddf4ff } .work { fill: #dafbe1 }
    .language { fill: #fff1c9 } .beside { fill: #fbefff } .kernels { fill: #ffebe9 }
    .title { font-size: 15px; font-weight: 600 }
    .name { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 11px }
    .what { fill: #59636e; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .page { fill: #0d1117; stroke: #3d444d }
      .floor { fill: #000000; fill-opacity: 0.25 }
      .tools { fill: #10304d } .work { fill: #12361f }
    .language { fill: #3d2f0b } .beside { fill: #2a1e42 } .kernels { fill: #3c1618 }
      .what { fill: #9198a1 }
    }
"""


def floors(contracts: list[dict[str, Any]], package: str) -> list[str]:
    """The layers of a package's contract, top first; [] if it has none."""
    return next(
        (
            contract["layers"]
            for contract in contracts
            if contract["type"] == "layers" and contract.get("containers") == [package]
        ),
        [],
    )


def drawn(contracts: list[dict[str, Any]]) -> str:
    """The picture: a package's box contains its layers and stands on the packages it imports."""
    parts, y = [], 52
    (packages,) = [one["layers"] for one in contracts if one["name"] == "packages"]
    for row in [*(layer.split(" | ") for layer in packages), ["cm3kernels"]]:
        width = (928 - 12 * (len(row) - 1)) // len(row)
        height = max(44 + 24 * len(floors(contracts, package)) for package in row)
        right, down = (134, 26) if len(row) < 3 else (14, 45)  # beside the name, or below it
        height += down - 26
        for column, package in enumerate(row):
            x, (what, colour) = 16 + column * (width + 12), WHAT[package]
            parts += [
                f'  <rect class="{colour}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>',
                f'  <text class="title" x="{x + 14}" y="{y + 26}">{package}</text>',
                f'  <text class="what" x="{x + right}" y="{y + down}">{what}</text>',
            ]
            for number, floor in enumerate(floors(contracts, package)):
                top = y + 38 + 24 * number
                parts += [
                    f'  <rect class="floor" x="{x + 12}" y="{top}" width="{width - 24}" height="21" rx="3"/>',
                    f'  <text class="name" data-package="{package}" x="{x + 22}" y="{top + 15}">{floor}</text>',
                ]
        y += height + 10
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {y + 6}" width="960" height="{y + 6}" role="img"',
            '     aria-label="The packages and their layers; each imports only what is below it">',
            f"  <style>{STYLE}  </style>",
            f'  <rect class="page" x="0.5" y="0.5" width="959" height="{y + 5}" rx="8"/>',
            '  <text class="what" x="16" y="32">packages and layers import what is below them, and nothing above or beside '
            "them; only cm3plugins and cm3apps call cm3kernels</text>",
            *parts,
            "</svg>",
            "",
        ]
    )


def contracts() -> list[dict[str, Any]]:
    """The import contracts of pyproject.toml."""
    settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return list(settings["tool"]["importlinter"]["contracts"])


if __name__ == "__main__":
    PICTURE.write_text(drawn(contracts()), encoding="utf-8")
