"""Settings every test shares. Environment first: some are read when a library is imported."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# threads that spin on two cores slow each other a hundredfold
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Every worker of `pytest -n` has its share of the cores: torch would give each all of them, which
# takes a tenth longer with two workers on two.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // int(workers))))
os.environ.setdefault("CM3_STRICT_PLUGINS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Read when a module with kernels is imported: they run in Triton's interpreter, on CPU tensors. GPU
# runs say TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# `nohup` and a shell's background start pytest with Ctrl-C ignored, which the commands under test
# would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from profiles import use_profiles

use_profiles()

if TYPE_CHECKING:
    from cm3run.model import Model
    from throwaway_plugins import Install
# Importing the tests and what they need leaves millions of objects that live until the end. Looking
# through them for garbage again and again took a third of the collection's time.
gc.disable()

# Which folders the commands under test made is recorded in a folder of these tests, not in the user's.
_STATE = tempfile.TemporaryDirectory(prefix="cm3-tests-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n`: each worker has a run of neighbours, whose fixtures are then made once; who ends
    first takes over half of what another has left. (Not by `addopts`, which would need xdist for
    every pytest.)"""
    if config.getoption("dist") != "load":
        return None  # as asked for
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """From here on, garbage is looked for among what tests make, and not after every 700 objects: that
    took a tenth of the time of many tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The committed test data."""
    return FIXTURES


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where products of few rows are compiled, by one process of a run for all: it takes seconds. A
    cache of a test's own, or of a process that it starts, gets a link `compiled` to it."""
    folder = tmp_path_factory.getbasetemp().parent / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    """The toy model."""
    from toy_model import toy_model

    return toy_model()


@pytest.fixture
def ranked(model, monkeypatch):
    """The toy model with a reranker."""
    from toy_model import Brightness

    monkeypatch.setattr(model.components, "reranker", Brightness(), raising=False)
    return model


@pytest.fixture
def cm3(model, monkeypatch):
    """`cm3 ...` with the toy model behind every `--model`."""
    from cm3apps.cli import main as cli

    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: model)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution with one module and one entry point, as an installer would."""
    from cm3core.plugins.discovery import GROUP

    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def write(
        name: str,
        source: str,
        *,
        module: str | None = None,
        points: str | None = None,
        version: str = "1.2",
    ) -> None:
        module = module or f"throwaway_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            f"[{GROUP}]\n{points or f'{name} = {module}'}\n", encoding="utf-8"
        )
        modules.append(module)
        importlib.invalidate_caches()

    yield write
    for module in modules:
        sys.modules.pop(module, None)
