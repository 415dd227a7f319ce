"""Which tests a change concerns (`.ci/affected.py`), in a small checkout with git."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "affected.py"
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


class Checkout:
    """A checkout whose engine imports one module of the core, and a distribution that imports another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(".ci/affected.py", SCRIPT.read_text(encoding="utf-8"))
        for name in ("boxes", "vocab"):
            self.write(f"cm3core/{name}.py", "")
        self.write("plugins/cm3run/model/loaded.py", "from cm3core import boxes")
        self.write("plugins/cm3-far/cm3far/__init__.py", "import cm3core.vocab")
        for place in ("tests/core", "tests/run/model", "tests/fuzz", "plugins/cm3-far/tests"):
            self.write(f"{place}/test_{Path(place).parts[-2]}.py", "import toy")
        self.write("tests/fixtures/toy.py", "")
        self.write("README.md", "")
        self.git("init", "-q")
        self.first = self.commit()

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "one")
        return self.git("rev-parse", "HEAD")

    def affected(self, *arguments: str) -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, ".ci/affected.py", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split(), done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


ENGINE = ["tests/run", "tests/fuzz"]
EVERY = ["tests/core", "tests/run", "tests/fuzz", "plugins/cm3-far/tests"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plugins/cm3-far/cm3far/more.py", ["plugins/cm3-far/tests"]),
        ("plugins/cm3-far/tests/test_more.py", ["plugins/cm3-far/tests"]),
        ("plugins/cm3run/model/loaded.py", ENGINE),
        ("cm3core/boxes.py", ["tests/core", *ENGINE]),
        ("cm3core/vocab.py", ["tests/core", "tests/fuzz", "plugins/cm3-far/tests"]),
        ("tests/fixtures/toy.py", EVERY),
        ("pyproject.toml", EVERY),
        ("README.md", ["tests/fuzz"]),
        ("CHANGELOG.md", []),
    ],
)
def test_slow_tests_of_what_changed(checkout: Checkout, name: str, expected: list[str]) -> None:
    checkout.write(name, "import this")
    checkout.commit()
    found, said = checkout.affected("slow", checkout.first)
    assert found == expected
    assert all(f"slow tests of {one}: " in said or "slow tests: all" in said for one in found)
    if left := [one for one in EVERY if one not in expected]:
        assert f"differs from {checkout.first}: slow tests of {', '.join(left)}\n" in said


def test_the_base_is_the_newest_proof(checkout: Checkout) -> None:
    assert checkout.affected("slow")[0] == EVERY, "there are no 200 commits"
    checkout.write("plugins/cm3run/model/loaded.py", "import this")
    second = checkout.commit()
    checkout.git("tag", "v1", checkout.first)
    assert checkout.affected("slow")[0] == ENGINE
    checkout.write(".ci/proven", f"{second}\n")
    assert checkout.affected("slow")[0] == []
    checkout.write(".ci/proven", f"{'0' * 40}\n")
    assert checkout.affected("slow")[0] == ENGINE, "a commit that is not here proves nothing"
    checkout.git("tag", "v2")
    assert checkout.affected("slow")[0] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plugins/cm3run/model/loaded.py", {"tests/run/model"}),
        ("plugins/cm3-far/cm3far/far.py", {"plugins/cm3-far/tests/test_cm3-far.py"}),
        ("tests/fuzz/test_more.py", {"tests/fuzz/test_more.py"}),
        ("tests/fixtures/toy.py", set()),
        ("README.md", {"tests/docs/test_words.py"}),
    ],
)
def test_plain_tests_of_what_changed(checkout: Checkout, name: str, expected: set[str]) -> None:
    checkout.write(name, "import this")
    found, said = checkout.affected("plain", "HEAD")
    always = {"tests/docs/test_generated.py", "tests/architecture/test_layout.py"}
    assert set(found) - always == expected
    assert bool(expected) != (f"no plain tests of its own: {name}" in said)


def test_without_git_everything_runs(checkout: Checkout) -> None:
    shutil.rmtree(checkout.folder / ".git")
    assert checkout.affected("slow")[0] == EVERY
    assert checkout.affected("plain")[0] == ["tests", "plugins/cm3-far/tests"]
