"""Print the requirements of pyproject.toml at one end of their ranges, for pip.

python .ci/ranges.py lowest EXTRA... constraints: NAME==1.2 for NAME>=1.2
python .ci/ranges.py newest EXTRA... requirements without their upper bounds

Both are of cm3leon and of the extras that are named.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
#: The distributions of this repository, by name.
OURS: dict[str, dict[str, Any]] = {
    project["name"]: project
    for path in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"))
    for project in [tomllib.loads(path.read_text())["project"]]
}


def requirements(extras: Sequence[str]) -> Iterator[Requirement]:
    """What cm3leon and the extras need of others, through each other and our other distributions."""
    waiting = [f"cm3leon[{','.join(extras)}]"]
    seen: set[tuple[str, str]] = set()
    while waiting:
        one = Requirement(waiting.pop())
        if one.name not in OURS:
            yield one
            continue
        project = OURS[one.name]
        parts = {"": project["dependencies"], **project.get("optional-dependencies", {})}
        for part in {"", *one.extras}:
            if (one.name, part) not in seen:
                seen.add((one.name, part))
                waiting += parts[part]


def lower(requirement: Requirement) -> SpecifierSet:
    """Its lower bounds, or the one version that it takes."""
    kept = [str(one) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
    if not kept:
        raise SystemExit(f"pyproject.toml: {requirement} has no lower bound")
    return SpecifierSet(",".join(kept))


def lowest(extras: Sequence[str]) -> Iterator[str]:
    """Where a package is required twice, the higher of the lower bounds."""
    found: dict[str, Version] = {}
    for one in requirements(extras):
        bounds = [Version(bound.version) for bound in lower(one)]
        found[one.name] = max([*bounds, found.get(one.name, bounds[0])])
    yield from (f"{name}=={version}" for name, version in sorted(found.items()))


def newest(extras: Sequence[str]) -> Iterator[str]:
    """Sorted, each once."""
    found = set()
    for one in requirements(extras):
        one.specifier = lower(one)
        found.add(str(one))
    yield from sorted(found)


if __name__ == "__main__":
    which, *extras = sys.argv[1:]
    print("\n".join({"lowest": lowest, "newest": newest}[which](extras)))
