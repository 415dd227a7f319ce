"""Compiling an entry without its hardware, and reading its resource usage."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kernels.aot.entry import AotEntry

#: Instructions that reveal how a kernel works. Cache hints may stand between the parts: LDG.E.EL.128.
TELLING = {
    name: re.compile(pattern)
    for name, pattern in {
        "HGMMA": r"\bHGMMA\b",
        "HMMA": r"\bHMMA\b",
        "UTCHMMA": r"\bUTCHMMA\b",
        "LDGSTS": r"\bLDGSTS\b",
        "LDG.E.128": r"\bLDG\.E(?:\.\w+)*\.128\b",
        "LDG.E.64": r"\bLDG\.E(?:\.\w+)*\.64\b",
        "STG.E.128": r"\bSTG\.E(?:\.\w+)*\.128\b",
        "LDL": r"\bLDL\b",
        "STL": r"\bSTL\b",
        "FFMA": r"\bFFMA\b",
        "DFMA": r"\bDFMA\b",
        "MUFU.EX2": r"\bMUFU\.EX2\b",
        "BAR.SYNC": r"\bBAR\.SYNC\b",
        "ATOM": r"\b(?:ATOM|ATOMG|ATOMS|RED)\b",
    }.items()
}
#: Tensor core products: HGMMA.64x128x16 of four warps, HMMA.16816 (m 16, n 8, k 16) and HMMA.1688
#: of one.
PRODUCT = re.compile(r"\bHGMMA\.(\d+)x(\d+)x(\d+)|\bHMMA\.(16816|1688)\b")


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel.

    Args:
        registers: 32-bit registers per thread (AMD: vector registers).
        spill: bytes of local memory per thread; anything but 0 is a finding.
        shared: bytes of shared memory per block.
        instructions: number of occurrences of each of `TELLING` (AMD: `v_mfma`).
        multiply_adds: multiply-adds of the tensor core instructions in the code, for one block.
    """

    registers: int
    spill: int
    shared: int
    instructions: dict[str, int]
    multiply_adds: int = 0


def compile_entry(entry: AotEntry, arch: int | str, *, aligned: bool = True) -> Any:
    """Return Triton's compiled kernel for a compute capability (one of `ARCHS`) or an AMD architecture ("gfx942").

    Args:
        entry: entry to compile.
        arch: target hardware; it need not be present.
        aligned: False omits the divisibility by 16: odd strides occur, and must also
            compile.

    Raises:
        TypeError: an argument has neither type nor value; the kernel is an interpreted one.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = entry.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise TypeError(
            f"{entry.name}: {type(kernel).__name__} can't be compiled; unset TRITON_INTERPRET "
            "before Python starts"
        )
    unknown = {*entry.types, *entry.constexprs, *entry.div16} - set(kernel.arg_names)
    missing = [
        name for name in kernel.arg_names if (name in entry.types) == (name in entry.constexprs)
    ]
    if unknown or missing:
        raise TypeError(
            f"{entry.name}: arguments that the kernel lacks: {sorted(unknown)}; "
            f"arguments that need exactly one of type and value: {missing}"
        )
    signature = {name: entry.types.get(name, "constexpr") for name in kernel.arg_names}
    attrs = (
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in entry.div16}
        if aligned
        else {}
    )
    amd = isinstance(arch, str)
    # AMD's compiler has no tf32x3: launchers pass "ieee" there.
    constexprs = {
        name: "ieee" if amd and value == "tf32x3" else value
        for name, value in entry.constexprs.items()
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    # A wavefront has 64 threads, and a block at most 1,024.
    num_warps = min(entry.num_warps, 16) if amd else entry.num_warps
    return triton.compile(
        source,
        target=GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": entry.num_stages},
    )


def measure(
    entry: AotEntry, arch: int | str, *, aligned: bool = True, instructions: bool = True
) -> Usage:
    """Compile and read registers, spills and shared memory; and instructions on request, since disassembling
    takes half a second."""
    compiled = compile_entry(entry, arch, aligned=aligned)
    return _amd_usage(compiled) if isinstance(arch, str) else _nvidia_usage(compiled, instructions)


def _nvidia_usage(compiled: Any, instructions: bool) -> Usage:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        commands: list[list[str | Path]] = [[tools / "cuobjdump", "--dump-resource-usage", path]]
        if instructions:  # same text as cuobjdump's --dump-sass, in half the time
            commands.append([tools / "nvdisasm", "--print-code", "--no-dataflow", path])
        resources, *sass = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    of = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources)}
    text = "".join(sass)
    counts = {
        name: count for name, pattern in TELLING.items() if (count := len(pattern.findall(text)))
    }
    of_a_warp = sum(
        int(m) * int(n) * int(k) // 4 if m else {"16816": 2048, "1688": 1024}[mnk]
        for m, n, k, mnk in PRODUCT.findall(text)
    )
    metadata = compiled.metadata
    return Usage(
        of["REG"],
        of["STACK"] + of["LOCAL"],
        metadata.shared,
        counts,
        metadata.num_warps * of_a_warp,
    )


def _amd_usage(compiled: Any) -> Usage:
    text = compiled.asm["amdgcn"]

    def value(key: str) -> int:
        return int((re.findall(rf"\.{key}:?\s+(\d+)", text) or ["0"])[-1])

    return Usage(
        value("vgpr_count"),
        value("private_segment_fixed_size"),
        compiled.metadata.shared,
        {"v_mfma": text.count("v_mfma")} if "v_mfma" in text else {},
    )


def instructions_of(usage: Usage) -> str:
    """Describe the telling instructions: "HGMMA 4, LDGSTS 8"."""
    return (
        ", ".join(f"{name} {count}" for name, count in usage.instructions.items())
        or "none of the telling instructions"
    )
