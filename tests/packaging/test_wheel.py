"""The wheel holds what a user needs and nothing else, and works where there is no checkout."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from source_packages import PACKAGES

ROOT = Path(__file__).parents[2]
ASSETS = {
    "cm3plugins/datasets/emoji/assets/ATTRIBUTION.md",
    "cm3plugins/datasets/emoji/assets/manifest.json",
    "cm3plugins/datasets/emoji/assets/entries.jsonl.xz",
    "cm3plugins/datasets/emoji/assets/svg-noto.jsonl.xz",
    "cm3plugins/datasets/emoji/assets/licenses/Apache-2.0.txt",
    "cm3plugins/datasets/emoji/concepts/quickstart.txt",
    "cm3plugins/image_tokenizers/vqgan/assets/emoji64/model.safetensors",
    "cm3plugins/embedders/light_encoder/assets/light_encoder.safetensors",
    "cm3plugins/embedders/light_encoder/assets/emoji.safetensors",
    "cm3plugins/embedders/light_encoder/assets/looks.safetensors",
    "cm3plugins/embedders/minilm/assets/minilm.safetensors",
    "cm3plugins/embedders/minilm/assets/tokenizer.json",
    "cm3plugins/embedders/minilm/assets/LICENSE",
    "cm3plugins/embedders/clip/assets/bpe_simple_vocab_16e6.txt.gz",
    "cm3plugins/upscalers/edsr/assets/emoji256/model.safetensors",
}


def test_the_wheel_holds_what_is_needed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {
        f"cm3core/recipes/{path.relative_to(ROOT / 'recipes').as_posix()}"
        for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert recipes <= names
    assert names >= ASSETS
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    sources = {
        path.relative_to(folder.parent).as_posix()
        for folder in PACKAGES.values()
        for path in folder.rglob("*.py")
    }
    assert sources <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"tests", "docs", "bench", "__pycache__"}
    assert not [name for name in names if name.endswith((".pyc", ".pem", ".log"))]
    assert wheel.stat().st_size < 50e6


@pytest.mark.slow
def test_the_installed_package_is_the_one_that_runs(clean: Path, run: Callable[..., str]) -> None:
    script = (
        "from importlib.util import find_spec\n"
        "print(*(find_spec(name).origin for name in ('cm3core', 'cm3plugins', 'cm3apps', 'cm3kernels')))"
    )
    for path in run(clean, "python", "-c", script).split():
        assert Path(path).is_relative_to(clean.parent)


def test_recipes_are_those_of_the_checkout(clean: Path, run: Callable[..., str]) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; from cm3apps.cli.main import main; from "
        "cm3core.recipe import library; "
        "library.recipes_directory = lambda: __import__('pathlib').Path(sys.argv[1], 'recipes'); "
        "main(['recipe', 'list'])"
    )
    paths = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "kernels")]
    here = subprocess.run(
        [str(clean / "python"), "-c", script, *paths],
        check=True,
        capture_output=True,
        text=True,
        cwd=clean,
    ).stdout
    assert run(clean, "cm3", "recipe", "list") == here
    listed = {line.split()[0] for line in here.splitlines()}
    assert listed >= {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_commands_of_the_installed_package(clean: Path, run: Callable[..., str]) -> None:
    assert "cm3 COMMAND --help" in run(clean, "cm3", "--help")
    listing = run(clean, "cm3", "plugin", "list", "-v")
    assert listing.startswith("bundled ")
    assert listing.splitlines()[0].endswith("  loaded")
    assert "tiny: valid" in run(clean, "cm3", "recipe", "check", "tiny")


@pytest.mark.slow
def test_bundled_weights_are_found_in_the_installed_package(
    clean: Path, run: Callable[..., str]
) -> None:
    script = (
        "from cm3core.plugins import load_registry\nfrom cm3core.recipe import compose\n"
        "recipe = compose('scenes-small', registry=load_registry())\n"
        "print(recipe.image_tokenizer.build().codebook_size, len(recipe.dataset.build()) > 100)"
    )
    assert run(clean, "python", "-c", script).split() == ["4096", "True"]
