"""Shared by the tests of this folder: the wheel, built once, and a clean environment in which it is
installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Builds wheels of folders like pip, but in one process; pip starts three for each.
BUILD = """import os, sys
from hatchling.build import build_wheel
for folder in sys.argv[2:]:
    os.chdir(folder)
    build_wheel(sys.argv[1])
"""
#: Nine tenths of the packages that mypy reads provide none of our types.
UNREAD = """[mypy]
[mypy-torch._inductor.*,torch._dynamo.*,torch._functorch.*,torch._higher_order_ops.*,torch._export.*,torch._numpy.*]
follow_imports = skip
[mypy-torch.distributed.*,torch.distributions.*,torch.fx.*,torch.ao.*,torch.export.*,torch.onnx.*]
follow_imports = skip
[mypy-matplotlib.*,IPython.*,prompt_toolkit.*]
follow_imports = skip
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def build() -> Callable[..., list[Path]]:
    """Builds the wheels of folders into another folder, without network; the wheels, by name."""

    def run_hatchling(out: Path, *folders: Path) -> list[Path]:
        command = [sys.executable, "-c", BUILD, str(out), *map(str, folders)]
        subprocess.run(command, check=True, capture_output=True)
        return sorted(out.glob("*.whl"))

    return run_hatchling


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
def clean(
    wheel: Path, install: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of commands of an environment with only the wheel. It also sees this environment's packages, but for ours:
    a line of a .pth file names a folder of links to them."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", symlinks=True)
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install(commands, wheel)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    others = folder / "others"
    others.mkdir()
    for path in (Path(one) for one in sys.path if one.endswith("-packages")):
        for one in path.iterdir():
            if not re.match(r"_?cm3", one.name) and not (others / one.name).exists():
                (others / one.name).symlink_to(one)
    (packages / "dependencies.pth").write_text(f"{others}\n")
    return commands


@pytest.fixture(scope="session")
def new_environment(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes fresh environments like `clean` for further installations. They are copies, because pip takes seconds
    to install and compile the wheel. Returns the folder of commands of each."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("more")
        shutil.copytree(clean.parent, folder / "venv", symlinks=True)
        commands = folder / "venv" / clean.name
        script = (commands / "cm3").read_text()
        assert str(clean) in script, "it names the interpreter that runs it"
        (commands / "cm3").write_text(script.replace(str(clean), str(commands)))
        return commands

    return make


@pytest.fixture(scope="session")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command `mypy --strict` without project settings. It keeps its cache, because most of a run reads torch's and
    numpy's types, which are the same in every environment."""
    pytest.importorskip(
        "mypy", reason="mypy comes with the extra dev, which a user's test run need not have"
    )
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(UNREAD)
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache")]
    return [sys.executable, "-m", "mypy", "--strict", *options]


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Runs a command of the clean environment outside the checkout, and returns its output."""

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
