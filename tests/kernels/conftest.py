"""The environment of kernel tests: an interpreter that is correct for bfloat16, and memory that is never
zero by chance.

run_guarded(body)   fixture: runs Python source in a process with `guarded(tensor)` next to a
                    guard page
device              fixture: "cpu" here, in the interpreter; "cuda" with the marker `gpu`
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from forked_sources import ForkedSources

HERE = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
# set by the conftest.py of the checkout before anything imports Triton
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
NO_TRITON = "Triton is not installed: pip install 'cm3leon[triton]'"
RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]

#: Files whose tests launch or read kernels: without Triton they are skipped, which the header
#: reports.
collect_ignore = [] if HAS_TRITON else [path.name for path in HERE.glob("test_*_triton*.py")]


def pytest_report_header() -> str:
    mode = (
        ("interpreted on the CPU" if INTERPRETS else "compiled, on CUDA")
        if HAS_TRITON
        else f"not tested: {NO_TRITON}"
    )
    return f"triton kernels: {mode}"


def _load(name: str) -> None:
    """Import a module of this folder (which is no package) under its plain name, for the tests next
    to it."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for shared in ("guard_page", "kernel_lint", "segment_cases"):
    _load(shared)
if HAS_TRITON:
    _load("interpreter_bf16")
    _load("interpreter_speed")
    if INTERPRETS:
        sys.modules["interpreter_bf16"].install()
        sys.modules["interpreter_speed"].install()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` and similar functions return NaN (or the largest integer), so that an output that a kernel forgets to
    write is never right by chance.

    torch fills on allocation, so this applies to `empty_like`, `new_empty` and operators as well,
    compiled or not.
    """
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test's tensors: the CPU, interpreted, or CUDA (`-m gpu`, TRITON_INTERPRET=0),
    compiled."""
    name: str = request.param
    if name == "cuda" and (INTERPRETS or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA device and TRITON_INTERPRET=0")
    if name == "cpu" and not INTERPRETS:
        pytest.skip("TRITON_INTERPRET is not 1: kernels don't run on the CPU")
    return name


@pytest.fixture(scope="session")
def run_guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunGuarded]:
    """Run source in a separate process, interpreted, with `torch` and `guarded` imported; the
    caller checks `returncode`.

    A violation ends that process: `returncode == -signal.SIGSEGV`.
    """
    head = (
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport torch\nimport interpreter_bf16\n"
        "import interpreter_speed\nfrom guard_page import guarded\n"
        "interpreter_bf16.install()\ninterpreter_speed.install()\n"
    )
    sources = ForkedSources(head, tmp_path_factory.mktemp("guarded"), {"TRITON_INTERPRET": "1"})
    yield sources.run
    sources.close()
