"""Settings for all tests, in `tests` and in `plugins/cm3-*/tests`. The environment comes first, because some variables are read
when a library is imported."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# threads that spin on two cores slow each other a hundredfold
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Every worker of `pytest -n` gets its share of the cores: torch would give each worker all of them, which
# takes a tenth longer with two workers on two cores.
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
# Importing the tests and their modules leaves millions of objects that live until the end. Repeated garbage
# collection over them took a third of pytest's collection time.
gc.disable()

# The commands under test record the folders they made in a folder of the tests, not in the user's.
_STATE = tempfile.TemporaryDirectory(prefix="cm3-tests-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name

FIXTURES = Path(__file__).parent / "tests" / "fixtures"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`, give each worker neighbouring tests, so that their fixtures are made once; a worker that
    finishes first takes over half of another's remaining tests. (`addopts` would require xdist for every
    pytest.)"""
    if config.getoption("dist") != "load":
        return None  # as asked for
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


#: Laws that build a component for each of its keys, in another process, or for many sizes. Of bundled components they are
#: slow tests; that the laws find mistakes is tested by tests/kits.
SLOW_LAWS = {
    "test_another_process_agrees",
    "test_every_key_counts",
    "test_scoring_costs_what_it_reads",
    "test_the_fingerprint_covers_every_key",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow laws of bundled components, before tests are chosen by their marks."""
    for item in items:
        if item.name in SLOW_LAWS and "kits" not in item.path.parts:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """From now on, collect garbage only among the objects of tests, and not after every 700 objects, which took a
    tenth of the time of many tests."""
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
    """The folder in which one process compiles the products of few rows for all tests of a run, which takes seconds.
    A test's own cache, or that of a process it starts, gets a link `compiled` to it."""
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
    """Run `cm3 ...` with the toy model for every `--model`."""
    from cm3apps.cli import main as cli

    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: model)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution with one module and one entry point, like an installer."""
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
