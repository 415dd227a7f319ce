"""An entry of the budget, one kernel with one launch configuration; and the list of all entries."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Compute capabilities for which kernels are compiled: of each instruction set for products (mma.sync, wgmma, tcgen05,
#: mma.sync with less shared memory) the first.
ARCHS = (80, 90, 100, 120)


@dataclass(frozen=True)
class AotEntry:
    """A kernel with a launch configuration, specialised as by the launcher.

    Args:
        name: unique among all, "op.kernel.configuration": `attention.forward.bf16.d64`.
        kernel: the `@triton.jit` function.
        types: run-time argument -> type: "*bf16", "*fp32", "i32", "i64", "fp32". Every other
            argument is in `constexprs`.
        constexprs: values of the compile-time arguments. A stride that is 1 at run time becomes a
            constant: put it here.
        div16: arguments that are multiples of 16 at run time (pointers, most strides). Without them loads
            are narrow, and the figures describe a kernel that never runs.
        num_warps, num_stages: launch settings.
        expects: compute capability (one of `ARCHS`) -> names in `TELLING` that must occur.
        archs: capabilities on which this configuration is launched.
        multiply_adds: of all `tl.dot` in the code, each counted once, for one block; 0: not checked. If a
            tile is too small for its warps, they repeat each other's products: the result is right, but the
            tensor cores do twice the work.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, object]
    div16: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    expects: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    archs: tuple[int, ...] = ARCHS
    multiply_adds: int = 0


def collect() -> list[AotEntry]:
    """Return the entries of all ops, sorted by name. Raises `ValueError` if two have the same name."""
    entries: list[AotEntry] = []
    for op in pkgutil.iter_modules([str(Path(__file__).parents[1])]):
        name = f"cm3kernels.{op.name}.triton"
        if op.ispkg and importlib.util.find_spec(name) is not None:
            entries += importlib.import_module(name).aot_entries()
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"aot_entries: several entries are called {', '.join(twice)}")
    return sorted(entries, key=lambda entry: entry.name)


def fingerprint(entry: AotEntry) -> str:
    """Hash everything that the compiler receives: the source of the kernel and of functions that it calls, types,
    constants, launch. With the same version of Triton, equal fingerprints compile to equal
    code."""
    given = (
        entry.kernel.cache_key,
        sorted(entry.types.items()),
        sorted(entry.constexprs.items()),
        entry.div16,
        entry.num_warps,
        entry.num_stages,
    )
    return hashlib.sha256(repr(given).encode()).hexdigest()[:16]
