"""Who imports whom, and what stays light: commands that only read recipes must answer without
torch."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cm3apps.cli
import cm3core.config
import cm3core.interfaces
import cm3core.plugins
import cm3core.recipe
from source_packages import BESIDE, PACKAGES

ROOT = Path(__file__).parents[2]
#: Packages without a module that is heavy.
LIGHT_PACKAGES = (cm3apps.cli, cm3core.config, cm3core.interfaces, cm3core.plugins, cm3core.recipe)
HEAVY = ("torch", "faiss", "tokenizers", "PIL", "transformers", "matplotlib", "resvg_py")
#: What describes plugins and composes recipes.
DESCRIBING = (
    "cm3core.interfaces",
    "cm3core.hookspecs",
    "cm3core.plugins.discovery",
    "cm3core.plugins.kinds",
    "cm3core.plugins.registry",
    "cm3core.config",
    "cm3core.recipe.layers",
)


def modules_of(package: ModuleType) -> list[str]:
    """The package and its modules."""
    name, path = package.__name__, package.__path__
    return [name, *(info.name for info in pkgutil.walk_packages(path, f"{name}."))]


LIGHT = [
    "cm3core",
    "cm3core.errors",
    "cm3core.document",
    "cm3core.vocab",
    "cm3core.hookspecs",
    *(name for package in LIGHT_PACKAGES for name in modules_of(package)),
    "cm3plugins",
    "cm3apps",
]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_light_modules_import_nothing_heavy() -> None:
    """In one process, in order: the first module that brings something heavy is named."""
    script = (
        "import importlib, sys\nheavy = set(sys.argv[1].split())\n"
        "for name in sys.argv[2:]:\n    importlib.import_module(name)\n"
        "    if heavy & set(sys.modules): print(name, *(heavy & set(sys.modules))); break\n"
    )
    assert run(script, " ".join(HEAVY), *LIGHT) == ""


def test_describing_and_composing_import_nothing_heavy() -> None:
    """All bundled plugins described, every shipped recipe composed and checked."""
    script = (
        "import sys\nfrom cm3core.plugins import load_registry\nfrom cm3core.recipe import "
        "compose, list_recipes\n"
        "registry = load_registry()\nassert registry.plugins[0].status == 'loaded'\n"
        "for recipe in list_recipes(): compose(recipe.name, ['dataset=emoji'], "
        "registry=registry).check()\n"
        "print(*set(sys.argv[1].split()) & set(sys.modules))"
    )
    assert run(script, " ".join(HEAVY)).split() == []


#: What asks plugins, which are described once.
OF_PLUGINS = ("plugin list", "serve --help")


@pytest.mark.parametrize(
    "command", ["--help", "recipe list", "generate --help", "plugin new --help", *OF_PLUGINS]
)
def test_a_command_that_describes_nothing_imports_no_more_than_python(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own library and the modules of the command itself: each other import takes longer than the answer."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom cm3apps.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(*(name for name in sorted(set(sys.modules) - before)"
        " if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    if command in OF_PLUGINS:
        run(script, *command.split())
    imported = run(script, *command.split()).splitlines()[-1].split()
    assert [
        name
        for name in imported
        if not name.startswith(("cm3core", "cm3run", "cm3apps", "cm3icons", "cm3serve"))
    ] == []
    assert [name for name in imported if name.startswith(DESCRIBING)] == []


def test_import_contracts(tmp_path: Path) -> None:
    """`lint-imports`: the contracts stand in pyproject.toml."""
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--cache-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_xml_is_parsed_in_one_place() -> None:
    """`cm3run.xml_text` refuses declarations; whoever parses beside it would have to, too."""
    parsers = {"fromstring", "XML", "XMLParser", "iterparse", "fromstringlist", "XMLPullParser"}
    found = []
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = getattr(node, "attr", "")
                owner = getattr(getattr(node, "value", None), "id", "")
                if (name in parsers and owner in ("ElementTree", "ET")) or name == "ParserCreate":
                    found.append(path.name)
    assert set(found) == {"xml_text.py"}


#: The types of the door `cm3core.load`.
EXEMPT = {PACKAGES["cm3core"] / "__init__.py"}


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("cm3core", ("cm3run", "cm3plugins", "cm3apps", "cm3kernels", "triton")),
        ("cm3run", ("cm3plugins", "cm3apps", "cm3kernels", "cm3kits", "triton")),
        ("cm3kernels", ("cm3core", "cm3plugins", "cm3apps")),
    ],
)
def test_no_package_names_what_it_may_not_know(package: str, unwanted: tuple[str, ...]) -> None:
    """Also not by a text such as `importlib.import_module("cm3plugins...")`, which import-linter
    can't see."""
    folder = PACKAGES[package]
    found = [
        f"{path.name}: {name}"
        for path in folder.rglob("*.py")
        if path not in EXEMPT
        for name in unwanted
        if f"import {name}" in (text := path.read_text(encoding="utf-8"))
        or f"from {name}" in text
        or f'"{name}' in text
    ]
    assert found == []


#: Everything but the package itself and its own tests.
OUTSIDE_KERNELS = ("cm3core", "plugins", "examples", "docs", "recipes", "tests")


def private_imports(source: str, package: str) -> list[str]:
    """Private modules and names of a package that a module imports or names in a text."""
    if package not in source:
        return []
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += [node.value]
    return [
        name
        for name in names
        if name.startswith(f"{package}.")
        and any(part.startswith("_") and part != "__version__" for part in name.split("."))
    ]


def test_nothing_private_of_the_kernels_is_imported_outside_them() -> None:
    files = [
        path
        for place in OUTSIDE_KERNELS
        for path in (ROOT / place).rglob("*.py")
        if ROOT / "tests" / "kernels" not in path.parents and path != Path(__file__)
    ]
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in files
        if (names := private_imports(path.read_text(encoding="utf-8"), "cm3kernels"))
    }
    assert len(files) > 100
    assert found == {}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("own", ["cm3icons", "cm3serve"])
def test_distributions_use_nothing_private_of_other_packages(own: str, package: str) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in BESIDE[own].rglob("*.py")}
    found = {path.name: private_imports(source, package) for path, source in sources.items()}
    assert len(found) > 20
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import cm3kernels._host", ["cm3kernels._host"]),
        ("def f():\n    from cm3kernels import _host", ["cm3kernels._host"]),
        ("from cm3kernels._host import choose", ["cm3kernels._host.choose"]),
        ("from cm3kernels.attention import _tiles", ["cm3kernels.attention._tiles"]),
        ("import_module('cm3kernels._host')", ["cm3kernels._host"]),
        ("from cm3kernels import attention\nfrom cm3kernels.attention.plan import segments", []),
    ],
)
def test_private_imports_are_found(source: str, found: list[str]) -> None:
    assert private_imports(source, "cm3kernels") == found
