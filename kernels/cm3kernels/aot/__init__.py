"""Compile every kernel and shipped launch configuration without a GPU, and hold it to a budget.

    python -m cm3kernels.aot             compile all entries, compare with budget.json
    python -m cm3kernels.aot --changed   compile only what differs from the record, and one entry of
                                         each kernel (`--changed nothing`: without these)
    python -m cm3kernels.aot --write     record what the kernels need now
    python -m cm3kernels.aot --only attention --show
                                         some entries, with the instructions found; compares nothing

Each op's `triton.py` lists its kernels in `aot_entries()`. A compiled kernel shows what a green
interpreter can't: registers, spills, shared memory, products smaller than the hardware's, the
instructions that make it fast. Triton's wheel brings the tools. Runs in a process of its own, never
interpreted: under TRITON_INTERPRET a kernel is no longer something that can be compiled.
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
from cm3kernels.aot.entry import AotEntry, collect, fingerprint
from cm3kernels.aot.jobs import Result, jobs_of, run

__all__ = [
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
    "run",
    "triton_series",
    "triton_version",
    "unchanged",
    "write_budget",
]
