"""Compile every kernel and shipped launch configuration without a GPU, and compare with a budget.

    python -m cm3kernels.aot             compile all entries, compare with budget.json
        python -m cm3kernels.aot --changed   compile only entries that differ from the record, and one entry of
                                             each kernel (`--changed nothing`: without these)
    python -m cm3kernels.aot --write     record the kernels' present usage
    python -m cm3kernels.aot --only attention --show
                                         some entries, with the instructions found; compares nothing

Each op's `triton.py` lists its kernels in `aot_entries()`. A compiled kernel shows what a passing
interpreter run can't: registers, spills, shared memory, products smaller than the hardware's, the
instructions that make it fast. Triton's wheel includes the tools. Runs in its own process, never
interpreted: under TRITON_INTERPRET a kernel can't be compiled.
"""

from cm3kernels.aot.budget import (
    BUDGET,
    as_budget,
    findings,
    read_budget,
    triton_series,
    triton_version,
    unchanged,
    write_budget,
)
from cm3kernels.aot.command import main
from cm3kernels.aot.compiling import Usage, compile_entry, measure
from cm3kernels.aot.entry import ARCHS, AotEntry, collect, fingerprint
from cm3kernels.aot.jobs import Result, jobs_of, remaining, run

__all__ = [
    "ARCHS",
    "BUDGET",
    "AotEntry",
    "Result",
    "Usage",
    "as_budget",
    "collect",
    "compile_entry",
    "findings",
    "fingerprint",
    "jobs_of",
    "main",
    "measure",
    "read_budget",
    "remaining",
    "run",
    "triton_series",
    "triton_version",
    "unchanged",
    "write_budget",
]
