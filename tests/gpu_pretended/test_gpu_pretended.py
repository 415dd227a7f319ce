"""Training, validation, decoding with graph capture and the image tokenizer on pretended cards (see
pretended_cuda.py): no device is mixed with another, nothing waits in a step, and launches stay
within budget.json.

    python tests/gpu_pretended/test_gpu_pretended.py     write the budget anew
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
BUDGET = HERE / "budget.json"
COMMAND = "python tests/gpu_pretended/test_gpu_pretended.py"
#: Operations that one of torch's functions is made of change with its versions.
SERIES = ".".join(torch.__version__.split(".")[:2])
COMPILER = shutil.which("c++")

Log = dict[str, Any]


def why_not() -> str | None:
    """Why the cards can't be pretended here."""
    if not sys.platform.startswith("linux"):
        return "a library is preloaded, which is done as on Linux"
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this torch was built for GPUs: its own device guard would be replaced"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'cm3leon[triton]'"
    if COMPILER is None:
        return "no C++ compiler (c++) to build the device guard"
    return None


def compile_guard(folder: Path) -> Path | None:
    """The library; None where torch's headers or the compiler don't suffice."""
    assert COMPILER is not None
    library, home = folder / "guard.so", Path(torch.__file__).parent
    flags = ["-O0", "-shared", "-fPIC", "-std=c++20", f"-I{home}/include", f"-L{home}/lib"]
    linked = [f"-Wl,-rpath,{home}/lib", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(
        [COMPILER, *flags, str(HERE / "guard.cpp"), "-o", str(library), *linked],
        capture_output=True,
        text=True,
        check=False,
    )
    return library if done.returncode == 0 else None


def run_scenarios(library: Path, script: Path = HERE / "scenarios.py") -> dict[str, Log]:
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    compiled = compile_guard(tmp_path_factory.mktemp("guard"))
    if compiled is None:
        pytest.skip("the device guard does not compile against this torch's headers")
    return compiled


@pytest.fixture(scope="module")
def logs(library: Path) -> dict[str, Log]:
    return run_scenarios(library)


def test_nothing_mixes_devices_or_launches_on_another(logs: dict[str, Log]) -> None:
    """Decoding and the image tokenizer run on the second card."""
    assert {name: log["mixed"] for name, log in logs.items() if log["mixed"]} == {}
    assert {name: log["unguarded"] for name, log in logs.items() if log["unguarded"]} == {}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_step_never_waits(logs: dict[str, Log], optimizer: str) -> None:
    """The batch's seven tensors are copied from pinned memory; nothing is read back."""
    log = logs[f"training step, {optimizer}"]
    assert log["waits"] == log["blocking_copies"] == {}
    assert sum(log["pinned_copies"].values()) == 7
    assert {"forward_kernel", "grad_keys_kernel", "grad_queries_kernel", "_loss_kernel"} <= set(
        log["kernels"]
    )


def test_validation_waits_only_when_its_metrics_are_read(logs: dict[str, Log]) -> None:
    assert logs["validation"]["waits"] == {}
    assert sum(logs["reading metrics"]["waits"].values()) == 1  # one copy


def test_a_captured_step_holds_launches_only(logs: dict[str, Log]) -> None:
    """One graph for the whole picture of 256 codes; it neither copies nor waits."""
    assert {name: log["uncaptured"] for name, log in logs.items() if log["uncaptured"]} == {}
    pictures = [logs[f"decoding a picture, step {number}"] for number in (1, 2, 3)]
    assert [len(log["graphs"]) for log in pictures] == [1, 0, 0]
    # the first token of each run of 16 comes from the step before
    assert [log["replays"] * 2 + 2 for log in pictures] == [log["tokens"] for log in pictures]


def test_text_is_captured_and_read_every_sixteen_tokens(logs: dict[str, Log]) -> None:
    """Two texts: the first tokens alone, since no text may end before them; then sixteen of each per look. What the host
    reads and sends is what it does for a row of a picture."""
    texts = [logs[f"decoding a text, step {number}"] for number in (1, 2, 3)]
    assert [log["replays"] for log in texts] == [0, 15, 15]
    assert [log["tokens"] for log in texts] == [2, 32, 32]
    assert [len(log["graphs"]) for log in texts] == [0, 1, 0]
    found, picture = texts[-1], logs["decoding a picture, step 3"]
    for what, most in (("waits", 2), ("blocking_copies", 5)):
        assert sum(found[what].values()) == sum(picture[what].values()) <= most
    # beside the replays, ten a token copy its inputs and outputs, and one token is drawn and read as before
    assert found["launches"] <= 32 / 2 * 11


def test_a_window_of_codes_is_one_captured_pass(logs: dict[str, Log]) -> None:
    """Read back once: the draws and their log-probabilities. All guesses are right here, since every value that is read
    is the same, so a pass draws eight codes of both pictures."""
    windows = [logs[f"decoding a picture by windows, step {number}"] for number in (2, 3)]
    assert [log["replays"] for log in windows] == [1, 1]
    assert [log["tokens"] for log in windows] == [16, 16]
    assert [sum(log["waits"].values()) for log in windows] == [2, 2]


def test_a_model_that_generates_has_its_weights_once(logs: dict[str, Log]) -> None:
    """2 bytes a parameter, and 4 of the few that are no matrices; training's 4 only once a likelihood is asked for.
    Loading needs more for one layer's joined products at a time."""
    found = logs["loading a model"]["memory"]
    number, weights = found["parameters"], found["weight_bytes"]
    assert 2 * number < weights < 2.15 * number
    live = found["generating"]["live"] - found["image_tokenizer"]
    assert weights <= live <= 1.01 * weights
    assert found["generating"]["peak"] <= found["generating"]["live"] + 0.12 * number
    more = found["with_likelihood"]["live"] - found["generating"]["live"]
    assert 4 * number <= more <= 4.04 * number


@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        ("step 1", "more layers"),
        ("step 1", "more layers with head norms"),
        ("llama", "llama with more layers"),
    ],
)
def test_a_layer_of_a_captured_step_is_ten_launches(
    logs: dict[str, Log], fewer: str, more: str
) -> None:
    """Two norms with the sum before them, four products, the activation, the write of the heads, and attention with its
    merge; norms and rotations of the heads take no more."""
    [few], [many] = (logs[f"decoding a picture, {name}"]["graphs"] for name in (fewer, more))
    assert many - few == 2 * 10
    kernels = logs[f"decoding a picture, {more}"]["kernels"]
    assert kernels["_store_heads_kernel"] == kernels["_segment_kernel"]


def test_launches_are_within_the_budget(logs: dict[str, Log]) -> None:
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    if SERIES not in budget:
        pytest.skip(f"no budget for torch {SERIES}: {COMMAND}")
    assert counts(logs) == budget[SERIES], f"if this is intended: {COMMAND}, and say why"


def test_faults_are_seen(library: Path) -> None:
    """Launches without a guard, a CPU tensor among the device's, values read, copies that are not
    pinned, a value read while capturing."""
    found = run_scenarios(library, HERE / "faults.py")
    assert set(found) == {"unguarded", "mixed", "waits", "blocking_copies", "uncaptured"}
    assert [fault for fault, log in found.items() if not log[fault]] == []


#: Providers of the benchmark that read values on the host, so that a graph can't have them; on a GPU, events time them.
READING = {
    "guided_sample forward cm3/eager",
    "guided_sample forward cm3/reference",
    *(f"linear_cross_entropy {direction} cm3/torch" for direction in ("forward", "both")),
    # its mask is built in each call
    *(f"attention {direction} cm3/reference" for direction in ("forward", "both")),
}


def test_the_kernel_benchmark_takes_the_card_s_path(library: Path) -> None:
    """Each provider is prepared, run, and captured in a graph, in every direction."""
    logs = run_scenarios(library, HERE / "benchmark.py")
    assert {name: log["mixed"] for name, log in logs.items() if log["mixed"]} == {}
    assert {name: log["unguarded"] for name, log in logs.items() if log["unguarded"]} == {}
    assert {name for name, log in logs.items() if log["uncaptured"]} == READING
    assert {log["method"] for log in logs.values()} == {"graph"}
    ours = {name: log["kernels"] for name, log in logs.items() if name.endswith("cm3/triton")}
    assert sorted(ours) == [
        "add_norm forward cm3/triton",
        "attention backward cm3/triton",
        "attention both cm3/triton",
        "attention forward cm3/triton",
        "guided_sample forward cm3/triton",
        "linear_cross_entropy both cm3/triton",
        "linear_cross_entropy forward cm3/triton",
        "segment_decode forward cm3/triton",
        "silu_gate forward cm3/triton",
        "store_heads forward cm3/triton",
    ]
    # timed backwards: one forward, then gradients alone
    backward = ours["attention backward cm3/triton"]
    assert (backward["forward_kernel"], backward["grad_keys_kernel"]) == (1, 4)
    both = ours["attention both cm3/triton"]
    assert both["forward_kernel"] == both["grad_keys_kernel"] == 4


def counts(logs: dict[str, Log]) -> dict[str, Any]:
    return {
        name: {key: log[key] for key in ("launches", "bytes", "replays", "graphs")}
        | {key: sum(log[key].values()) for key in ("waits", "pinned_copies", "blocking_copies")}
        for name, log in logs.items()
    }


def write_budget() -> None:
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_guard(Path(folder))
        assert compiled is not None, "guard.cpp does not compile"
        found = counts(run_scenarios(compiled))
    budget = json.loads(BUDGET.read_text(encoding="utf-8")) if BUDGET.exists() else {}
    text = json.dumps({**budget, SERIES: found}, indent=1, sort_keys=True)
    BUDGET.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_budget()
