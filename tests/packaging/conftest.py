"""The wheel, built once, and a clean environment in which it is installed: what the tests of this
folder share."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def install() -> Callable[..., None]:
    """Installs into the environment of a folder of commands, without network and without
    dependencies."""

    def run_pip(commands: Path, *arguments: str | Path) -> None:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(commands / "python"),
            "--disable-pip-version-check",
            "install",
        ]
        subprocess.run(
            [*pip, "--no-deps", "--no-index", *map(str, arguments)], check=True, capture_output=True
        )

    return run_pip


@pytest.fixture(scope="session")
def new_environment(
    wheel: Path, install: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Makes fresh environments with the wheel installed; they see this environment's packages
    behind their own, by a line of a .pth (the .pth files there, of editable installs, are not
    read). Returns the folder of commands of each."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("clean")
        venv.create(folder / "venv", symlinks=True)
        commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        install(commands, wheel)
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(
            "".join(f"{path}\n" for path in sys.path if path.endswith("-packages"))
        )
        return commands

    return make


@pytest.fixture(scope="session")
def clean(new_environment: Callable[[], Path]) -> Path:
    """An environment with nothing but the wheel."""
    return new_environment()


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy keeps: most of a run is torch's and numpy's types, the same in every environment."""
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Runs a command of the clean environment, elsewhere than in the checkout, and returns what it
    prints."""

    def run_command(commands: Path, *arguments: str, cwd: Path | None = None) -> str:
        unwanted = {"PYTHONPATH", "PYTHONHOME", "TRITON_INTERPRET"}
        environ = {name: value for name, value in os.environ.items() if name not in unwanted}
        command = [str(commands / arguments[0]), *arguments[1:]]
        done = subprocess.run(
            command, cwd=cwd or commands, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, (
            f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    return run_command
