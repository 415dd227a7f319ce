"""docs/adding-a-kind.md: its four steps, written into a copy of the core, make a kind that
everything generic knows."""

from __future__ import annotations

import os
import re
import shutil
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
#: Runs `cm3` several times in one process; a line ends what each prints.
MANY = """import shlex, sys
from cm3core.cli.main import main
for line in sys.stdin.read().splitlines():
    code = main(shlex.split(line))
    print(f"## {code}", flush=True)
"""
#: A recipe over the page's own.
MORE = "extends: [marked.yaml]\nwatermark:\n  size: 5\n"
SHELLS = ("bash", "zsh", "fish")
KINDS = (
    "--plugin corner.py kinds",
    "--plugin corner.py describe watermark",
    "--plugin corner.py describe corner",
    "--plugin corner.py plugin list",
)
RECIPES = (
    "--plugin corner.py recipe show tiny",
    "--plugin corner.py recipe show marked.yaml",
    "--plugin corner.py recipe show more.yaml",
    "--plugin corner.py recipe show more.yaml watermark.size=7",
    "--plugin corner.py recipe show more.yaml watermark=null",
    "--plugin corner.py recipe diff tiny marked.yaml",
)
COMPLETIONS = tuple(f"--plugin corner.py completion {shell}" for shell in SHELLS)
#: What several tests look at, by one process for all: each would import the core again.
SHOWN = (*KINDS, *RECIPES, *COMPLETIONS)


@dataclass(frozen=True)
class House:
    """A copy of the core with the page's kind, and a folder to work in."""

    core: Path
    folder: Path
    blocks: list[Any]
    kept: dict[str, tuple[str, int]] = field(default_factory=dict)

    def python(self, script: str, *arguments: str, given: str = "") -> str:
        """What a script prints there."""
        paths = [str(self.core), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
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
            (self.folder / "more.yaml").write_text(MORE, encoding="utf-8")
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
    core, folder = tmp_path_factory.mktemp("house"), tmp_path_factory.mktemp("work")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cm3core", core / "cm3core", ignore=ignored)
    shutil.copytree(ROOT / "recipes", core / "recipes")
    (core / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "_generate.py", core / "docs")
    blocks = read_blocks(PAGE)
    for block in blocks:
        for mark in block.marks:
            if found := re.fullmatch(r"not run: a new file, (\S+)", mark):
                assert not (ROOT / found[1]).exists()
                (core / found[1]).write_text(block.text, encoding="utf-8")
            elif found := re.fullmatch(r"not run: goes into (\S+)", mark):
                put_into(core / found[1], block.text)
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return House(core, folder, blocks)


def put_into(path: Path, text: str) -> None:
    """A hook goes to the end of its file, a row to the end of its table, with its import above."""
    source = path.read_text(encoding="utf-8")
    if path.name == "kinds.py":
        imports, row = text.split("\n\n", 1)
        known, end = "from cm3core import interfaces as base\n", ")\n#: Name -> kind"
        assert source.count(known) == source.count(end) == 1
        source = source.replace(known, f"{known}{imports}\n").replace(
            end, f"{row.rstrip()},\n{end}"
        )
    else:
        source += f"\n\n{text}"
    path.write_text(source, encoding="utf-8")


def test_four_places_are_all_that_differs(house: House) -> None:
    core = house.core / "cm3core"
    changed = [
        path.relative_to(core).as_posix()
        for path in sorted(core.rglob("*"))
        if path.is_file()
        and path.suffix != ".pyc"
        and not (
            (own := ROOT / "cm3core" / path.relative_to(core)).is_file()
            and own.read_bytes() == path.read_bytes()
        )
    ]
    assert changed == [
        "hookspecs.py",
        "interfaces/watermark.py",
        "plugins/kinds.py",
        "testing/watermark.py",
    ]
    where = house.python("import cm3core; print(cm3core.__file__)").strip()
    assert where == str(core / "__init__.py")


def test_the_kind_and_its_component_are_described(house: House) -> None:
    kinds, kind, component, listed = house.shown(*KINDS)
    assert (
        "watermark: Watermarks: a picture -> the same with a mark in it\n"
        "  hook cm3_watermarks, interface Watermark, kit cm3core.testing.watermark:WatermarkContract\n"
        "  corner: corner\n"
    ) in kinds
    assert "  _mark(pixels_HWC): The same array, marked.\n" in kind
    assert "  a_mark_is_seen: A black picture does not stay black.\n" in kind
    assert component.startswith("watermark/corner: A white square in the lower right corner.\n")
    assert "pixels a side" in component
    assert "\n  size: int, default 2\n      pixels a side.\n" in component
    assert "\n  watermark:\n    name: corner\n    size: 2\n" in component
    assert "\n  watermark: corner\n" in listed


def test_recipes_have_the_section(house: House) -> None:
    plain, marked, more, other, gone, difference = house.shown(*RECIPES)
    assert "watermark" not in plain + gone
    for text, size in ((marked, 2), (more, 5), (other, 7)):
        assert f"\nwatermark:\n  name: corner\n  size: {size}\n" in text
        # behind the other components, in front of the fixed sections
        assert text.index("\ndataset:") < text.index("\nwatermark:") < text.index("\nvocabulary:")
    assert "watermark.size" in difference


def test_mistakes_are_answered_as_the_page_shows(house: House) -> None:
    (printed,) = (one for one in house.blocks if one.left_out and one.language == "text")
    done = house.answers(*house.mistaken())
    assert {code for _, code in done} == {2}
    expected = re.escape(printed.text).replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, "".join(text for text, _ in done)), done


def test_python_reaches_it(house: House) -> None:
    assert house.python(
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from cm3core.plugins import load_registry\n"
        "from cm3core.recipe import compose, recipe_from_yaml\n"
        "registry = load_registry([Path('corner.py')])\n"
        "recipe = compose('marked.yaml', ['watermark.size=3'], registry=registry)\n"
        "recipe.check()\n"
        "print(recipe.watermark.size, list(recipe.components)[-1])\n"
        "print(recipe_from_yaml(recipe.to_yaml(), registry).hash == recipe.hash)\n"
        "tiny = compose('tiny', registry=registry)\n"
        "print(tiny.watermark, replace(recipe, watermark=None).hash == tiny.hash != recipe.hash)\n"
        "print(recipe.watermark.build().mark(__import__('numpy').zeros((8, 8, 3), 'uint8')).sum())\n"
    ).splitlines() == ["3 watermark", "True", "None True", str(9 * 3 * 255)]


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


def test_a_plugin_of_the_kind_is_checked(house: House) -> None:
    wrong = (house.folder / "corner.py").read_text(encoding="utf-8").replace("= 255", "= 0")
    (house.folder / "unseen.py").write_text(wrong, encoding="utf-8")
    (printed, code), unseen = house.cm3("plugin check corner.py", "plugin check unseen.py")
    assert code == 0, printed
    assert "watermark/corner" in printed
    printed, code = unseen
    assert code == 1, printed
    assert "a_mark_is_seen" in printed


def test_shells_complete_it(house: House) -> None:
    for shell, script in zip(SHELLS, house.shown(*COMPLETIONS), strict=True):
        for words in ("watermark=", "watermark.size=", "watermark/corner"):
            assert words in script, shell


def test_the_plugin_reference_has_a_chapter(house: House) -> None:
    page = house.python(
        "import sys; sys.path.insert(0, sys.argv[1]); import _generate; print(_generate.page())",
        str(house.core / "docs"),
    )
    chapter = page.split("\n## `watermark`\n")[1]
    for text in ("def cm3_watermarks()", "### Interface: `Watermark`", "`a_mark_is_seen`"):
        assert text in chapter
