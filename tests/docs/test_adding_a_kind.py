"""docs/adding-a-kind.md: its blocks are parts of an example, whose kind everything generic knows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cm3core.plugins import load_registry
from cm3core.recipe import compose, list_recipes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-kind.md"
EXAMPLE = ROOT / "examples" / "plugins" / "cm3-watermark"
#: Runs `cm3` several times in one process; a line ends what each prints.
MANY = """import shlex, sys
from cm3apps.cli.main import main
for line in sys.stdin.read().splitlines():
    code = main(shlex.split(line))
    print(f"## {code}", flush=True)
"""
MARKED = "extends: [tiny]\nwatermark: corner\n"
MORE = "extends: [marked.yaml]\nwatermark:\n  size: 5\n"
SHELLS = ("bash", "zsh", "fish")
KINDS = ("kinds", "describe watermark", "describe corner", "plugin list")
RECIPES = (
    "recipe show tiny",
    "recipe show marked.yaml",
    "recipe show more.yaml",
    "recipe show more.yaml watermark.size=7",
    "recipe show more.yaml watermark=null",
    "recipe diff tiny marked.yaml",
    "recipe show quickstart upscaler=marked upscaler.inner=lanczos upscaler.mark=corner",
)
COMPLETIONS = tuple(f"completion {shell}" for shell in SHELLS)
#: What several tests look at, by one process for all: each would import the core again.
SHOWN = (*KINDS, *RECIPES, *COMPLETIONS)


@dataclass(frozen=True)
class House:
    """Where the example is installed, and a folder to work in."""

    site: Path
    folder: Path
    blocks: list[Any]
    kept: dict[str, tuple[str, int]] = field(default_factory=dict)

    def python(self, script: str, *arguments: str, given: str = "") -> str:
        """What a script prints there."""
        paths = [str(self.site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=self.folder,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "120"},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def cm3(self, *lines: str) -> list[tuple[str, int]]:
        """What each command prints, and its exit code."""
        parts = re.split(r"## (\d+)\n", self.python(MANY, given="\n".join(lines)))
        return [(parts[at], int(parts[at + 1])) for at in range(0, len(parts) - 1, 2)]

    def answers(self, *lines: str) -> list[tuple[str, int]]:
        """As `cm3`, for commands of `SHOWN`, which run in one process at the first call."""
        if not self.kept:
            commands = [*SHOWN, *self.mistaken()]
            self.kept.update(zip(commands, self.cm3(*commands), strict=True))
        return [self.kept[line] for line in lines]

    def shown(self, *lines: str) -> list[str]:
        """What each command of `SHOWN` prints; all must succeed."""
        done = self.answers(*lines)
        assert [code for _, code in done] == [0] * len(lines), done
        return [printed for printed, _ in done]

    def mistaken(self) -> list[str]:
        """The page's commands that are mistakes."""
        (block,) = (one for one in self.blocks if one.left_out and one.language == "bash")
        return [command.removeprefix("cm3 ") for command in block.commands]


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, read_blocks: Callable[[Path], list[Any]]
) -> House:
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    (site / "cm3_watermark").symlink_to(EXAMPLE / "cm3_watermark")
    info = site / "cm3_watermark-0.1.0.dist-info"
    info.mkdir()
    facts = "Metadata-Version: 2.1\nName: cm3-watermark\nVersion: 0.1.0\nRequires-Dist: cm3leon\n"
    (info / "METADATA").write_text(facts)
    (info / "entry_points.txt").write_text("[cm3core.plugins]\nwatermark = cm3_watermark\n")
    (folder / "marked.yaml").write_text(MARKED)
    (folder / "more.yaml").write_text(MORE)
    return House(site, folder, read_blocks(PAGE))


def test_the_blocks_are_parts_of_the_example(house: House) -> None:
    shown = 0
    for block in house.blocks:
        for mark in block.marks:
            if found := re.fullmatch(r"not run: (cm3_watermark/\S+)", mark):
                source = (EXAMPLE / found[1]).read_text(encoding="utf-8")
                for part in re.split(r"\n{3,}", block.text.strip()):
                    assert part.strip() in source, part
                shown += 1
    assert shown == 4


@pytest.mark.slow
def test_the_kind_and_its_component_are_described(house: House) -> None:
    kinds, kind, component, listed = house.shown(*KINDS)
    assert (
        "watermark: Watermarks: a picture -> the same with a mark in it\n"
        "  hook cm3_watermarks, interface cm3_watermark.interface.Watermark, kit "
        "cm3_watermark.testing:WatermarkContract\n"
        "  watermark: corner\n"
    ) in kinds
    assert "  _mark(pixels_HWC): Return the same array, marked.\n" in kind
    assert "  a_mark_is_seen: A black picture does not stay black.\n" in kind
    assert component.startswith("watermark/corner: A white square in the lower right corner.\n")
    assert "\n  size: int, default 2\n      pixels a side.\n" in component
    assert "\n  watermark:\n    name: corner\n    size: 2\n" in component
    assert "\n  watermark: corner\n  kinds: watermark\n" in listed


@pytest.mark.slow
def test_recipes_have_the_section(house: House) -> None:
    plain, marked, more, other, gone, difference, inside = house.shown(*RECIPES)
    assert "watermark" not in plain + gone
    for text, size in ((marked, 2), (more, 5), (other, 7)):
        assert f"\nwatermark:\n  name: corner\n  size: {size}\n" in text
        # behind the other components, in front of the fixed sections
        assert text.index("\ndataset:") < text.index("\nwatermark:") < text.index("\nvocabulary:")
    assert "watermark.size" in difference
    assert "\n  mark:\n    name: corner\n    size: 2\n" in inside


def test_mistakes_are_answered_as_the_page_shows(house: House) -> None:
    (printed,) = (one for one in house.blocks if one.left_out and one.language == "text")
    done = house.answers(*house.mistaken())
    assert {code for _, code in done} == {2}
    expected = re.escape(printed.text).replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, "".join(text for text, _ in done)), done


@pytest.mark.slow
def test_python_reaches_it(house: House) -> None:
    assert house.python(
        "import copy, pickle\n"
        "from dataclasses import replace\n"
        "from cm3core.plugins import load_registry\n"
        "from cm3core.recipe import compose, recipe_from_yaml\n"
        "registry = load_registry()\n"
        "recipe = compose('marked.yaml', ['watermark.size=3'], registry=registry)\n"
        "recipe.check()\n"
        "print(recipe.watermark.size, list(recipe.components)[-1], recipe.section('watermark').size)\n"
        "print(recipe_from_yaml(recipe.to_yaml(), registry).hash == recipe.hash)\n"
        "print(copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe)\n"
        "tiny = compose('tiny', registry=registry)\n"
        "print(tiny.section('watermark'), replace(recipe, brought={}).hash == tiny.hash != recipe.hash)\n"
        "print(recipe.watermark.build().mark(__import__('numpy').zeros((8, 8, 3), 'uint8')).sum())\n"
        "from cm3core.plugins import KINDS\n"
        "print('watermark' in KINDS, hasattr(tiny, 'watermark'))\n"
    ).splitlines() == [
        "3 watermark 3",
        "True",
        "True",
        "None True",
        str(9 * 3 * 255),
        "False False",
    ]


@pytest.mark.slow
def test_recipes_without_the_section_keep_their_hashes(house: House) -> None:
    theirs = house.python(
        "from cm3core.plugins import load_registry\n"
        "from cm3core.recipe import compose, list_recipes\n"
        "registry = load_registry()\n"
        "for recipe in list_recipes():\n"
        "    print(recipe.name, compose(recipe.name, ['dataset=emoji'], registry=registry).hash)\n"
    ).splitlines()
    registry = load_registry()
    assert len(theirs) >= 5
    assert theirs == [
        f"{recipe.name} {compose(recipe.name, ['dataset=emoji'], registry=registry).hash}"
        for recipe in list_recipes()
    ]


@pytest.mark.slow
def test_plugins_of_the_kind_are_checked(house: House) -> None:
    """The one that brings it, and another one that provides a component of it, which is not seen."""
    source = (
        "from dataclasses import dataclass\n"
        "from cm3core.hookspecs import hookimpl\n"
        "from cm3_watermark.interface import Watermark, WatermarkConfig\n"
        "CM3_API = 1\n"
        "class Nothing(Watermark):\n"
        "    def _mark(self, pixels_HWC):\n        return pixels_HWC\n"
        "@dataclass(kw_only=True)\n"
        "class NothingConfig(WatermarkConfig):\n    '''Nothing.'''\n"
        "    def build(self):\n        return Nothing()\n"
        "@hookimpl\n"
        "def cm3_watermarks():\n    return {'nothing': NothingConfig}\n"
    )
    (house.folder / "unseen.py").write_text(source, encoding="utf-8")
    parts = "upscaler.inner=lanczos upscaler.mark=corner --only corner"
    (printed, code), unseen = house.cm3(f"plugin check watermark {parts}", "plugin check unseen.py")
    assert code == 0, printed
    assert "ok    law watermark/corner a_mark_is_seen" in printed
    assert "imports nothing heavy" in printed
    printed, code = unseen
    assert code == 1, printed
    assert "FAIL  law watermark/nothing a_mark_is_seen" in printed


def test_shells_complete_it(house: House) -> None:
    for shell, script in zip(SHELLS, house.shown(*COMPLETIONS), strict=True):
        for words in ("watermark=", "watermark.size=", "watermark/corner"):
            assert words in script, shell
