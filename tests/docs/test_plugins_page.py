"""docs/plugins/tutorial.md as its reader follows it: the package is built, installed, found, used and tested by its kit."""

from __future__ import annotations

import os
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
def package(tmp_path_factory: pytest.TempPathFactory, read_blocks: Callable[[Path], list[Any]]) -> Path:
    """The folder in which the page's package lies, and `site`, into which it is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    for block in read_blocks(PAGE):
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
    (folder / "conftest.py").write_text("from hypothesis import settings\nsettings.register_profile('few', max_examples=20)\n"
                                        "settings.load_profile('few')\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "cm3-nibble")]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def run(package: Path, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package / "site"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *arguments], cwd=package, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_a_plugin(package: Path, read_blocks: Callable[[Path], list[Any]]) -> None:
    (block,) = [block for block in read_blocks(PAGE) if "cm3 plugin list" in block.commands]
    listing, check = (run(package, "-m", "cm3core.cli.main", *shlex.split(command)[1:]) for command in block.commands[:2])
    assert "nibble 0.1  loaded\n  text_tokenizer: nibble\n" in listing
    assert check.startswith("tiny: all values are possible")


def test_the_kit_passes(package: Path) -> None:
    shown = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "cm3-nibble")
    assert "failed" not in shown
    assert " passed" in shown


def test_the_kit_finds_a_tokenizer_that_loses_text(package: Path) -> None:
    """The page's own tokenizer, broken: a kit that passes everything would prove nothing."""
    (package / "test_broken.py").write_text(
        "from cm3core.testing.text_tokenizer import TextTokenizerContract\nfrom cm3_nibble import NibbleTokenizerConfig\n"
        "from cm3_nibble.tokenizer import NibbleTokenizer\n\n\nclass Lossy(NibbleTokenizer):\n"
        "    def _encode(self, text):\n        return super()._encode(text.lower())\n\n\n"
        "class TestLossy(TextTokenizerContract):\n    config = NibbleTokenizerConfig()\n\n"
        "    def make(self):\n        return Lossy(True)\n", encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(package / "site")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "lossless", "test_broken.py"]
    done = subprocess.run(command, cwd=package, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "test_round_trip_is_lossless" in done.stdout
