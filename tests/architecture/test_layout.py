"""What the tree of files must be like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from source_packages import ALL

ROOT = Path(__file__).parents[2]
#: Where the committed text lies (a source distribution has no git to ask).
PLACES = (
    ".ci",
    ".github",
    "cm3core",
    "plugins",
    "kernels",
    "recipes",
    "tests",
    "conftest.py",
    "docs",
    "examples",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CODE_OF_CONDUCT.md",
    "mkdocs.yml",
    "LICENSE",
    "pyproject.toml",
    ".gitignore",
    ".pre-commit-config.yaml",
)
BINARY = {".xz", ".gz", ".png", ".safetensors", ".pyc", ".pt", ".tar", ".jpg", ".npz", ".parquet"}
#: Folders of people and of one machine, at the beginning of a path: `my/home/x` is nobody's.
MACHINE_PATH = re.compile(
    r"(?<![\w.~*}-])(/(?:home|Users|root|work|mnt|data)/[\w.-]+|[A-Z]:\\Users\\)"
)


def texts() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        for file in (path,) if path.is_file() else path.rglob("*"):
            if (
                file.is_file()
                and file.suffix not in BINARY
                and not {"__pycache__", ".hypothesis"} & set(file.parts)
            ):
                yield file


@pytest.mark.parametrize("folder", ["plugins", "kernels", "recipes", "tests"])
def test_folders_that_are_no_packages(folder: str) -> None:
    """A package called `plugins` or `kernels` would shadow others' (transformers imports Hugging
    Face's `kernels`)."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_test_files_have_unique_names_and_folders_are_no_packages() -> None:
    folders = [ROOT / "tests", *ROOT.glob("plugins/cm3-*/tests")]
    assert [path for folder in folders for path in folder.rglob("__init__.py")] == []
    names = [path.name for folder in folders for path in folder.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_paths_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in MACHINE_PATH.finditer(line)
    ]
    assert found == []


def test_the_search_for_paths_finds_them() -> None:
    home = "/" + "home/me/x"
    assert MACHINE_PATH.search(f'open("{home}")') is not None
    assert MACHINE_PATH.search(f"my{home}") is None


def test_every_module_says_what_it_is_for() -> None:
    """A module's first statement is its docstring; an empty `__init__.py` has nothing to say."""
    sources = {
        path: path.read_text(encoding="utf-8").lstrip()
        for folder in ALL.values()
        for path in folder.rglob("*.py")
    }
    assert [
        path.relative_to(ROOT)
        for path, text in sources.items()
        if text and not text.startswith('"""')
    ] == []


def test_what_the_formatter_skips_says_why() -> None:
    """A table may be easier to read than what the formatter makes of it; a reason says so."""
    bare = re.compile(r"#\s*fmt:\s*(skip|off)\s*$")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []
