"""docs/plugins/tutorial.md as its reader follows it: the package is built, installed, found, used,
checked, tested by its kit."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugins" / "tutorial.md"


@pytest.fixture(scope="module")
def package(
    tmp_path_factory: pytest.TempPathFactory, read_blocks: Callable[[Path], list[Any]]
) -> Path:
    """The folder in which the page's package lies, and `site`, into which it is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    for block in read_blocks(PAGE):
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
    (folder / "cm3-nibble" / "tests" / "conftest.py").write_text(
        "from hypothesis import settings\nsettings.register_profile('few', "
        "max_examples=20)\nsettings.load_profile('few')\n",
        encoding="utf-8",
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    pip += [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(folder / "site"),
        str(folder / "cm3-nibble"),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def run(package: Path, *arguments: str, fails: bool = False) -> str:
    """What a Python process prints that sees the installed package."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package / "site"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=package, env=environ, capture_output=True, text=True
    )
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    return done.stdout


def block_with(command: str, blocks: list[Any]) -> Any:
    (block,) = [block for block in blocks if command in block.commands]
    return block


@pytest.mark.slow
def test_the_package_is_a_plugin(package: Path, read_blocks: Callable[[Path], list[Any]]) -> None:
    block = block_with("cm3 plugin list", read_blocks(PAGE))
    listing, check = (
        run(package, "-m", "cm3apps.cli.main", *shlex.split(command)[1:])
        for command in block.commands[:2]
    )
    assert "nibble 0.1  loaded\n  text_tokenizer: nibble\n" in listing
    assert check.startswith("tiny: valid")


@pytest.mark.slow
def test_the_kit_passes(package: Path) -> None:
    shown = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "cm3-nibble")
    assert "failed" not in shown
    assert " passed" in shown


@pytest.mark.slow
def test_the_kit_finds_a_tokenizer_that_loses_text(
    package: Path, read_blocks: Callable[[Path], list[Any]]
) -> None:
    """The page's own tokenizer, broken as the page says: a kit that passes everything would prove
    nothing."""
    (package / "test_broken.py").write_text(
        "from cm3kits.text_tokenizer import TextTokenizerContract\nfrom cm3_nibble "
        "import NibbleTokenizerConfig\n"
        "from cm3_nibble.tokenizer import NibbleTokenizer\n\n\nclass Lossy(NibbleTokenizer):\n"
        "    def _encode(self, text):\n        return super()._encode(text.strip())\n\n\n"
        "class TestLossy(TextTokenizerContract):\n    config, max_examples = "
        "NibbleTokenizerConfig(), 200\n\n"
        "    def make(self):\n        return Lossy(True)\n",
        encoding="utf-8",
    )
    # One seed, and many examples: that a text with a blank at an end is drawn is no matter of luck
    options = ["-q", "-p", "no:cacheprovider", "-k", "lossless", "--hypothesis-seed=1"]
    shown = run(package, "-m", "pytest", *options, "test_broken.py", fails=True)
    assert "test_round_trip_is_lossless" in shown
    (page,) = [block.text for block in read_blocks(PAGE) if "Draw 1" in block.text]
    # Which blank character is found first is Hypothesis's affair
    finding = r"^E +expected: (?P<text>.+)\nE +got: ''\n(?:.*\n)*?E +Draw 1: (?P=text)$"
    for told in (page, shown):
        found = re.search(finding, told, re.MULTILINE)
        assert found, told
        assert not ast.literal_eval(found["text"]).strip()


@pytest.mark.slow
def test_the_check_prints_what_the_page_says(
    package: Path, read_blocks: Callable[[Path], list[Any]]
) -> None:
    blocks = read_blocks(PAGE)
    index = blocks.index(block_with("cm3 plugin check nibble", blocks))
    shown = run(
        package, "-m", "cm3apps.cli.main", "plugin", "check", "nibble", "--max-examples", "5"
    )
    lines = shown.splitlines()
    for line in blocks[index + 1].text.splitlines():
        if line != "...":
            pattern = re.escape(line).replace(r"\.\.\.", ".+")
            assert any(re.fullmatch(pattern, found) for found in lines), (
                f"{line}\nis not in\n{shown}"
            )
