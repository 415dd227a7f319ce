"""docs/data.md says what the data sets do: its examples are read, its keys exist, its commands
run."""

from __future__ import annotations

import doctest
import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image as Pictures

from cm3apps.cli.main import main
from cm3plugins import cm3_datasets
from cm3plugins.datasets import file_source, webdataset
from cm3plugins.datasets.file_source import FileSourceConfig
from cm3plugins.datasets.folder import FolderSourceConfig
from cm3plugins.datasets.jsonl import JSONLSourceConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text(encoding="utf-8")
#: What is for tuning alone is on a page of its own.
TUNING = (DOCS / "tuning.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page's examples name, below my/pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "my" / "pictures"
    (folder / "dogs").mkdir(parents=True)
    for number, name in enumerate(("cat.jpg", "dogs/rex.png", "1.png", "2.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Pictures.fromarray(pixels).save(folder / name)
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_manifests_of_the_page_are_read(pictures: Path) -> None:
    (pictures / "all.jsonl").write_text("".join(blocks("json")))
    source = JSONLSourceConfig(path=str(pictures / "all.jsonl"), split="all").build()
    assert source.skipped == []
    assert [source.id(index) for index in range(len(source))] == ["rex", "cat.jpg", "story-1"]


@pytest.mark.parametrize("name", ["captions.csv", "captions.json", "captions.jsonl"])
def test_captions_files_of_the_page_are_read(pictures: Path, name: str) -> None:
    """Each file's first form, without the column of remarks."""
    for unused in ("1.png", "2.png"):
        (pictures / unused).unlink()
    (block,) = [block for block in blocks("text") if "captions.csv" in block]
    entry = re.search(rf"^{re.escape(name)}( +)(.*(?:\n {{17}}(?!or ).*)*)", block, re.MULTILINE)
    assert entry is not None
    content = "\n".join(
        line.strip()
        .removesuffix("other columns: see below; a picture may have several rows")
        .strip()
        for line in entry[2].splitlines()
    )
    (pictures / name).write_text(content + "\n")
    source = FolderSourceConfig(path=str(pictures), split="all").build()
    assert source.id(0) == "cat.jpg"
    assert next(source.texts()) == "a cat asleep"


def test_commands_of_the_page_run(pictures: Path, tmp_path: Path) -> None:
    for name in ("cat.txt", "1.txt", "2.txt", "dogs/rex.txt"):
        (pictures / name).write_text("a text")
    block = blocks("bash")[0]
    commands = [
        shlex.split(line, comments=True)[1:]
        for line in block.splitlines()
        if line.startswith("cm3 data")
    ]
    assert [main(command) for command in commands] == [0, 0]
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.slow
def test_codes_of_their_own(pictures: Path, tmp_path: Path) -> None:
    """The page's commands with two steps."""
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Pictures.fromarray(pixels).save(pictures / f"{number}.png")
    for path in [*pictures.glob("*.*g"), *pictures.glob("dogs/*.png")]:
        path.with_suffix(".txt").write_text("a text")
    (block,) = [block for block in blocks("bash") if "train-image" in block]
    lines = [line.replace("--minutes 10", "--steps 2") for line in block.splitlines()]
    assert [main(shlex.split(line)[1:]) for line in lines] == [0, 0, 0]
    assert (tmp_path / "kept.png").is_file()
    assert (tmp_path / "kept-by-own.png").is_file()


def test_every_data_set_and_key_is_on_the_page() -> None:
    for name, config in cm3_datasets().items():
        assert f"| `{name}` |" in PAGE
        page = (
            PAGE + TUNING
            if "](tuning.md)" in PAGE.split(f"| `{name}` |")[1].split("\n")[0]
            else PAGE
        )
        if issubclass(config, FileSourceConfig):
            assert [
                item.name
                for item in fields(config)
                if f"`{item.name}`" not in page and f"dataset.{item.name}" not in page
            ] == []


@pytest.mark.parametrize("module", [file_source, webdataset])
def test_examples_in_docstrings(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
