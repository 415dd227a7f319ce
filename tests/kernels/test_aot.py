"""Every kernel and shipped configuration compiles for sm_80, sm_90, sm_100 and sm_120 (and gfx942) without a
GPU, and within its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

from cm3kernels import aot
from cm3kernels.aot import AotEntry, Result, Usage
from messages import tells

#: Triton's interpreter and its compiler can't share a process.
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
ENTRY = AotEntry("op.kernel.d64", None, {}, {}, expects={90: ("HGMMA",)}, multiply_adds=1000)
USAGE = Usage(
    registers=100,
    spill=0,
    shared=50_000,
    instructions={"HGMMA": 4, "LDGSTS": 8},
    multiply_adds=1000,
)


def recorded(**changes: int) -> dict[str, Any]:
    return {"op.kernel.d64": {"sm_90": {"registers": 100, "spill": 0, "shared": 50_000, **changes}}}


#: `.ci/run newest` and `.ci/run lowest` have others; the extra `test` allows what is recorded.
needs_recorded_triton = pytest.mark.skipif(
    aot.triton_series() not in aot.read_budget(),
    reason=f"no budget is recorded for Triton {aot.triton_series()}",
)


@needs_recorded_triton
@pytest.mark.parametrize("always", ["nothing", pytest.param("kernel", marks=pytest.mark.slow)])
def test_all_kernels_are_within_their_budget(always: str) -> None:
    """The one expensive test: about a second for each entry and target that is compiled, in two
    processes. An entry whose fingerprint is the recorded one is not compiled again, except
    for one of each kernel among the slow tests."""
    command = [sys.executable, "-m", "cm3kernels.aot", "--changed", always]
    done = subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{done.stdout}\n{done.stderr[-3000:]}\n"
        "if this is intended: `python -m cm3kernels.aot --write`, and say why in the commit"
    )


def test_the_tests_are_run_with_the_triton_that_is_recorded() -> None:
    """pip installs the newest one that the extra `test` allows."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    [triton] = [
        one
        for one in map(Requirement, tomllib.loads(text)["project"]["optional-dependencies"]["test"])
        if one.name == "triton"
    ]
    major, minor = max(map(Version, aot.read_budget())).release
    assert f"<{major}.{minor + 1}" in map(str, triton.specifier)


def test_every_kernel_is_recorded_for_all_nvidia_targets() -> None:
    """Where a launch differs between capabilities, its entries cover all of them together."""
    recorded = {f"sm_{arch}" for arch in aot.ARCHS}
    for series in aot.read_budget().values():
        targets: dict[str, set[str]] = {}
        for name, of in series["entries"].items():
            op, kernel, *_ = name.split(".")
            targets.setdefault(f"{op}.{kernel}", set()).update(of)
        assert {kernel: of for kernel, of in targets.items() if of != recorded} == {}


def test_no_recorded_kernel_spills() -> None:
    assert all(
        usage["spill"] == 0
        for series in aot.read_budget().values()
        for targets in series["entries"].values()
        for usage in targets.values()
    )


@pytest.mark.parametrize(
    ("usage", "budget", "expected"),
    [
        (USAGE, recorded(), []),
        (Usage(105, 0, 52_500, USAGE.instructions), recorded(), []),
        (
            Usage(106, 0, 50_000, USAGE.instructions),
            recorded(),
            ["op.kernel.d64 on sm_90: registers 106, recorded 100"],
        ),
        (
            Usage(100, 0, 52_501, USAGE.instructions),
            recorded(),
            ["op.kernel.d64 on sm_90: shared 52501, recorded 50000"],
        ),
        (
            Usage(100, 8, 50_000, USAGE.instructions),
            recorded(),
            ["op.kernel.d64 on sm_90: spills 8 bytes per thread"],
        ),
        (
            Usage(100, 0, 232_449, USAGE.instructions),
            recorded(shared=232_448),
            ["op.kernel.d64 on sm_90: needs 232449 bytes of shared memory, but a block has 232448"],
        ),
        (
            Usage(100, 0, 50_000, {"HMMA": 9}),
            recorded(),
            ["op.kernel.d64 on sm_90: HGMMA does not occur (HMMA 9)"],
        ),
        (
            Usage(100, 0, 50_000, USAGE.instructions, 1500),
            recorded(),
            [
                "op.kernel.d64 on sm_90: multiplies 1.50 times what its tiles need: they have "
                "too few rows for its warps"
            ],
        ),
        (USAGE, {}, ["op.kernel.d64 on sm_90: is not in the budget"]),
        (
            USAGE,
            {**recorded(), "op.old": {}},
            ["op.old: is in the budget, but no kernel has this entry any more"],
        ),
        (None, recorded(), ["op.kernel.d64 on sm_90: does not compile: CompilationError: why"]),
    ],
)
def test_what_counts_as_a_finding(
    usage: Usage | None, budget: dict[str, Any], expected: list[str]
) -> None:
    result = Result("op.kernel.d64", "sm_90", usage, "" if usage else "CompilationError: why")
    assert aot.findings([ENTRY], [result], budget) == expected


def test_unaligned_and_amd_results_are_only_asked_to_compile() -> None:
    spilling = Usage(255, 400, 10**6, {})
    results = [
        Result("op.kernel.d64", target, spilling) for target in ("gfx942", "sm_90 unaligned")
    ]
    assert aot.findings([ENTRY], results, recorded()) == []


def test_budget_file_is_written_and_read(tmp_path: Path) -> None:
    budget = {
        "3.7": {
            "triton": "3.7.1",
            "entries": aot.as_budget(
                [Result("op.kernel.d64", "sm_90", USAGE), Result("op.kernel.d64", "gfx942", USAGE)]
            ),
        }
    }
    aot.write_budget(budget, tmp_path / "budget.json")
    text = (tmp_path / "budget.json").read_text()
    assert json.loads(text) == budget == aot.read_budget(tmp_path / "budget.json")
    assert (
        '"sm_90": { "instructions": { "HGMMA": 4, "LDGSTS": 8 }, "multiply_adds": 1000, '
        '"registers": 100, "shared": 50000, "spill": 0 }'
    ) in text
    assert [path.name for path in tmp_path.iterdir()] == ["budget.json"]


def test_jobs_cover_all_and_compile_each_kernel_unaligned_and_for_amd_once() -> None:
    kernel = object()
    entries = [
        AotEntry("a", kernel, {}, {}, archs=aot.ARCHS),
        AotEntry("b", kernel, {}, {}, archs=(90,)),
    ]
    assert aot.jobs_of(entries) == [
        *(("a", arch, True) for arch in (80, 90, 100, 120)),
        ("a", "gfx942", True),
        ("a", 90, False),
        ("b", 90, True),
    ]
    assert len(aot.jobs_of(entries, extended=True)) == 9
    assert ("c", 120, False) in aot.jobs_of([AotEntry("c", kernel, {}, {}, archs=(100, 120))])


def test_only_missing_targets_are_compiled() -> None:
    """A capability that is new to the budget; AMD and unaligned only with something to compile."""
    entries = [
        AotEntry("a", object(), {}, {}, archs=aot.ARCHS),
        AotEntry("b", object(), {}, {}, archs=(90,)),
    ]
    known = [Result("a", f"sm_{arch}", USAGE) for arch in (80, 90, 120)]
    known.append(Result("b", "sm_90", USAGE))
    left = [("a", 100, True), ("a", "gfx942", True), ("a", 90, False)]
    assert aot.remaining(aot.jobs_of(entries), known) == left
    known.append(Result("a", "sm_100", USAGE))
    assert aot.remaining(aot.jobs_of(entries), known) == []


PLANTED = """
import json
import triton, triton.language as tl
from cm3kernels import aot

@triton.jit
def copy(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + index, tl.load(x_ptr + index, mask=index < n, other=0.0), mask=index < n)

@triton.jit
def spilling(x_ptr, out_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index)
    tl.store(out_ptr + index, tl.where(x > tl.sum(x, 0), x, tl.exp(x) / tl.max(x, 0)))

@triton.jit
def chained(x_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + index)
    x = tl.dot(tl.dot(x, x, input_precision="ieee").to(x.dtype), x, input_precision="ieee")
    tl.store(out_ptr + index, x)

TYPES = {"x_ptr": "*fp32", "out_ptr": "*fp32"}
good = aot.AotEntry(
    "copy", copy, {**TYPES, "n": "i32"}, {"BLOCK": 1024}, ("x_ptr", "out_ptr", "n"),
    expects={90: ("LDG.E.128", "HGMMA")},
)
bad = aot.AotEntry("spilling", spilling, TYPES, {"BLOCK": 8192}, ("x_ptr", "out_ptr"), num_warps=1)
idle = [
    aot.AotEntry(
        f"chained.w{warps}", chained, {"x_ptr": "*bf16", "out_ptr": "*fp32"}, {"N": 64},
        ("x_ptr", "out_ptr"), num_warps=warps, multiply_adds=2 * 64**3,
    )
    for warps in (4, 8)
]
entries = [good, bad, *idle]
results = [aot.Result(entry.name, "sm_90", aot.measure(entry, 90)) for entry in entries]
print(json.dumps(aot.findings(entries, results, aot.as_budget(results))))
try:
    aot.compile_entry(aot.AotEntry("copy", copy, TYPES, {"BLOCK": 64, "BLOK": 64}), 90)
except TypeError as error:
    print(error)
"""


@pytest.mark.slow
def test_planted_kernels_are_found(tmp_path: Path) -> None:
    """Actually compiled: one lacks an instruction that it should have, one keeps too much in
    registers, one has four warps more than its 64 rows can occupy."""
    (tmp_path / "planted.py").write_text(PLANTED)
    command = [sys.executable, str(tmp_path / "planted.py")]
    done = subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, wrong = done.stdout.splitlines()
    missing, spills, repeated = json.loads(found)
    assert missing.startswith("copy on sm_90: HGMMA does not occur (LDG.E.128 ")
    assert spills.startswith("spilling on sm_90: spills ")
    assert repeated.startswith("chained.w8 on sm_90: multiplies 1.50 times what its tiles need")
    assert wrong == (
        "copy: arguments that the kernel lacks: ['BLOK']; arguments that need exactly one "
        "of type and value: ['n']"
    )


def entry_of(name: str, key: str, **changes: Any) -> AotEntry:
    """An entry whose kernel has that source."""
    kernel = KERNELS.setdefault(key, SimpleNamespace(cache_key=key))
    return AotEntry(name, kernel, {"x": "*fp32"}, {"BLOCK": 64}, archs=(90,), **changes)


KERNELS: dict[str, Any] = {}


def test_only_what_is_the_same_needs_no_compiling() -> None:
    entries = [entry_of("first", "source"), entry_of("second", "source")]
    budget = aot.as_budget([Result(entry.name, "sm_90", USAGE) for entry in entries], entries)
    # the first of a kernel is always compiled
    assert aot.unchanged(entries, budget) == [Result("second", "sm_90", USAGE)]
    assert aot.unchanged(entries, budget, always="nothing") == [
        Result(name, "sm_90", USAGE) for name in ("first", "second")
    ]
    for change in ({"num_warps": 8}, {"num_stages": 3}, {"div16": ("x",)}):
        assert aot.unchanged([entries[0], entry_of("second", "source", **change)], budget) == []
    KERNELS["source"].cache_key = "edited"
    assert aot.unchanged(entries, budget) == []
    assert aot.unchanged(entries, {}) == []


def test_an_interpreted_kernel_is_refused() -> None:
    with pytest.raises(TypeError) as caught:
        aot.compile_entry(AotEntry("op", test_an_interpreted_kernel_is_refused, {}, {}), 90)
    assert tells(caught.value, "op: function can't be ... TRITON_INTERPRET")
