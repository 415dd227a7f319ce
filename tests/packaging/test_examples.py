"""examples/plugins: whole distributions, built, installed beside our wheel and used as a
stranger's."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import tokenize
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from source_packages import PACKAGES

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))
NAMES = [folder.name for folder in FOLDERS]
#: Lines of code that an example may have: it is to be read in one sitting.
MOST_LINES, MOST_BYTES = 150, 2_000_000
#: As many examples of a law as in the tests of the bundled components, and garbage is looked for as there.
CONFTEST = """import gc
from hypothesis import settings
settings.register_profile("cm3", deadline=None, max_examples=15)
settings.load_profile("cm3")
def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
"""
#: What stands above the blocks of a README whose commands are run here, and not by tests/docs.
RUN_HERE = "<!-- not run: tests/packaging/test_examples.py runs it -->"


def package_of(folder: Path) -> Path:
    """The folder of an example's package."""
    return folder / folder.name.replace("-", "_")


def num_lines(package: Path) -> int:
    """Logical lines of code, however the formatter wraps them, and the lines of docstrings."""
    number = 0
    for path in package.rglob("*.py"):
        source, first = path.read_text(encoding="utf-8"), True
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NEWLINE:
                number, first = number + 1, True
            elif token.type not in {
                tokenize.COMMENT,
                tokenize.NL,
                tokenize.INDENT,
                tokenize.DEDENT,
            }:
                if first and token.type == tokenize.STRING:
                    number += sum(bool(line.strip()) for line in token.string.splitlines()) - 1
                first = False
    return number


def ours_in(source: str) -> list[tuple[str, str]]:
    """(module, name) of everything of ours that a module imports; the name of `import module` is
    ""."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return [(module, name) for module, name in found if module.partition(".")[0] in PACKAGES]


def public_names() -> dict[str, set[str]]:
    """Module -> names, from docs/plugins/public-names.md."""
    page = (ROOT / "docs" / "plugins" / "public-names.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (`.*?) \|", page, re.MULTILINE)
    return {module: set(re.findall(r"`(\w+)`", names)) for module, names in rows}


def commands_in(page: str) -> list[str]:
    """The `cm3` commands of a page that are run here."""
    blocks = re.findall(
        re.escape(RUN_HERE) + r"\n```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    return [
        line
        for block in blocks
        for line in re.sub(r"\\\n\s*", " ", block).splitlines()
        if line.startswith("cm3 ")
    ]


@pytest.fixture(scope="module")
def wheels(
    build: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Each example's wheel, built from a copy."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    copies = [shutil.copytree(folder, source / folder.name, ignore=ignored) for folder in FOLDERS]
    return dict(zip(NAMES, build(out, *copies), strict=True))


@pytest.fixture(scope="module")
def environment(
    wheels: dict[str, Path], new_environment: Callable[[], Path], install: Callable[..., None]
) -> Path:
    """An environment with our wheel and all examples; its folder of commands."""
    commands = new_environment()
    install(commands, *wheels.values())
    return commands


def test_there_are_four_and_the_page_names_them() -> None:
    assert NAMES == ["cm3-fsq", "cm3-sqlite-search", "cm3-top-n-sigma", "cm3-watermark"]
    page = (ROOT / "docs" / "plugins" / "examples.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[`([\w-]+)`\].*\| (\d+) \|$", page, re.MULTILINE))
    assert rows == {folder.name: str(num_lines(package_of(folder))) for folder in FOLDERS}, (
        "names and lines in the page's table"
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_an_example_is_whole_and_short(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "tests",
        package_of(folder).name,
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == folder.name
    assert list(project["entry-points"]["cm3core.plugins"].values()) == [package_of(folder).name]
    assert f"## {project['version']}" in (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"pip install {folder.name}" in (folder / "README.md").read_text(encoding="utf-8")
    assert 20 < num_lines(package_of(folder)) < MOST_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_an_example_imports_only_what_is_public(folder: Path) -> None:
    public, imports = public_names(), []
    for path in folder.rglob("*.py"):
        imports += [
            (path.name, module, name) for module, name in ours_in(path.read_text(encoding="utf-8"))
        ]
    assert len(imports) > 5
    assert [one for one in imports if one[2] not in public.get(one[1], set())] == []


def test_private_imports_are_seen() -> None:
    source = (
        "from cm3plugins.samplers.planned import PlannedSampler\nimport "
        "cm3run.training.sequences\nimport torch\n"
        "def f():\n    from cm3core.files import atomic_path, _secret\n"
    )
    found = ours_in(source)
    assert sorted(found) == [
        ("cm3core.files", "_secret"),
        ("cm3core.files", "atomic_path"),
        ("cm3plugins.samplers.planned", "PlannedSampler"),
        ("cm3run.training.sequences", ""),
    ]
    public = public_names()
    assert [one for one in found if one[1] in public.get(one[0], set())] == [
        ("cm3core.files", "atomic_path")
    ]


def test_lines_and_commands_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""One.\n\nTwo."""\n\n# no\nx = 1  # three\n')
    assert num_lines(tmp_path) == 3
    assert commands_in(
        f"{RUN_HERE}\n```bash\npip install x\ncm3 a \\\n  b\n```\n\n```bash\ncm3 c\n```\n"
    ) == ["cm3 a  b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_holds_the_package_and_its_licence(wheels: dict[str, Path], name: str) -> None:
    package = package_of(ROOT / "examples" / "plugins" / name)
    with zipfile.ZipFile(wheels[name]) as archive:
        names = [path for path in archive.namelist() if ".dist-info/" not in path]
        licences = [path for path in archive.namelist() if path.endswith("licenses/LICENSE")]
    kept = [
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sorted(names) == sorted(path.relative_to(package.parent).as_posix() for path in kept)
    assert len(licences) == 1
    assert wheels[name].stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_they_are_found(environment: Path, run: Callable[..., str]) -> None:
    listing = run(environment, "cm3", "plugin", "list")
    for block in (
        "fsq 0.1.0  loaded\n  image_tokenizer: fsq\n",
        "sqlite-search 0.1.0  loaded\n  retriever: sqlite\n",
        "top-n-sigma 0.1.0  loaded\n  sampler: top_n_sigma\n",
        "watermark 0.1.0  loaded\n  upscaler: marked\n  watermark: corner\n  kinds: watermark\n",
    ):
        assert block in listing


@pytest.mark.slow
def test_their_own_tests_pass_where_they_are_installed(
    environment: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for folder in FOLDERS:
        shutil.copytree(folder / "tests", tmp_path / folder.name)
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    shown = run(environment, "python", "-m", "pytest", *options, *NAMES, cwd=tmp_path)
    assert int(re.search(r"(\d+) passed", shown)[1]) > 60  # type: ignore[index]  # no match fails too
    assert "skipped" not in shown


@pytest.mark.slow
def test_what_their_readmes_show_works(
    environment: Path,
    run: Callable[..., str],
    tmp_path: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process for all commands: each alone would import torch."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "compiled").symlink_to(compiled)
    commands = [
        command
        for folder in FOLDERS
        for command in commands_in((folder / "README.md").read_text(encoding="utf-8"))
    ]
    assert len(commands) >= 2 * len(FOLDERS)
    script = (
        "import json, shlex, sys\nfrom cm3apps.cli.main import main\n"
        "for command in json.loads(sys.argv[1]):\n    print('$', command)\n"
        "    if main(shlex.split(command)[1:]):\n        sys.exit(1)\n"
    )
    arguments = ("-c", script, json.dumps(commands))
    shown = run(environment, "python", *arguments, cwd=tmp_path)
    assert "scenes-small: valid" in shown
    assert "tiny: valid" in shown
    assert "verdict: exact" in shown
    assert "retrieved 1: " in shown
    assert re.search(r"^sqlite-search: \d+ ok$", shown, re.MULTILINE)
    assert "trained to step 3 " in shown
