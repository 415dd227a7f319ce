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

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements(extras: Sequence[str]) -> Iterator[Requirement]:
    """Those of cm3leon itself, and of extras, of which some name others."""
    waiting, seen = (
        [*PROJECT["dependencies"], *(f"{PROJECT['name']}[{one}]" for one in extras)],
        set(),
    )
    while waiting:
        one = Requirement(waiting.pop())
        if one.name != PROJECT["name"]:
            yield one
        for extra in one.extras - seen if one.name == PROJECT["name"] else ():
            seen.add(extra)
            waiting += EXTRAS[extra]


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
