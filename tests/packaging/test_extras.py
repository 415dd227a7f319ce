"""Extras that documentation and messages name: they exist, and they are named in the one way that works in
any folder once cm3leon is installed from a checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
#: Of work on cm3leon itself, which needs the checkout.
OF_THE_CHECKOUT = {"test", "dev", "docs"}
#: The distributions beside this one, which pip finds in the checkout alone.
BESIDE = {"icons", "lab", "mcp", "postgres", "published", "ray", "serve", "titan"}
#: What `all` leaves out besides: a CUDA build of PyTorch brings the one, and the other needs such a build.
OF_A_GPU = {"triton", "xformers"}
#: Installs cm3leon itself, with the curves of the quickstart's report.
FIRST = {("README.md", ".", "plots")}
NAMED = re.compile(r"'(cm3leon|\.)\[([\w,]+)\]'")


def named() -> list[tuple[str, str, str]]:
    """(file, what is installed, extra) of every mention."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "mkdocs.yml"]
    for folder in ("docs", "cm3core", "plugins", "kernels"):
        paths += [p for end in ("md", "py", "html") for p in (ROOT / folder).rglob(f"*.{end}")]
    return [
        (str(path.relative_to(ROOT)), match[1], extra)
        for path in paths
        for match in NAMED.finditer(path.read_text(encoding="utf-8"))
        for extra in match[2].split(",")
    ]


def test_extras_that_are_named_exist() -> None:
    mentions = named()
    assert ("docs/tuning.md", "cm3leon", "lora") in mentions
    assert [one for one in mentions if one[2] not in EXTRAS] == []


def test_only_work_in_the_checkout_installs_the_folder() -> None:
    """`pip install '.[lora]'` works in the checkout alone, and there replaces an editable installation."""
    wrong = {one for one in named() if one[1] == "." and one[2] not in OF_THE_CHECKOUT}
    assert wrong == FIRST


def test_all_is_every_extra_of_a_user() -> None:
    requirements = map(Requirement, EXTRAS["all"])
    taken = set().union(*(one.extras for one in requirements if one.name == "cm3leon"))
    assert taken == set(EXTRAS) - OF_THE_CHECKOUT - BESIDE - OF_A_GPU - {"all"}


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_each_range_has_a_lower_bound(which: str) -> None:
    """`.ci/run lowest` tests it; `.ci/run newest` leaves the upper ones out."""
    extras = sorted(
        set(EXTRAS) - {"titan"}
    )  # which needs a newer torch, and has a test step of its own
    command = [sys.executable, str(ROOT / ".ci" / "ranges.py"), which, *extras]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ranges = {one.name: one.specifier for one in map(Requirement, found)}
    assert {bound.operator for one in ranges.values() for bound in one} <= {">=", "=="}
    assert ranges["torch"] == SpecifierSet({"lowest": "==2.10", "newest": ">=2.10"}[which])
    assert {"pluggy", "starlette", "ruff", "mkdocs", "ray"} <= set(ranges)
    assert "cm3leon" not in ranges
