"""The entries of `attention` in the budget of compiled kernels: every shipped configuration
(see `cm3kernels.aot`)."""

from __future__ import annotations

from collections.abc import Iterator

from cm3kernels.aot import ARCHS, AotEntry
from cm3kernels.attention._backward import delta_kernel
from cm3kernels.attention._forward import forward_kernel
from cm3kernels.attention._grad_keys import grad_keys_kernel
from cm3kernels.attention._grad_queries import grad_queries_kernel
from cm3kernels.attention.configs import DELTA, Launch, block_d, table

#: Kernel -> its function, and the number of products in its code (each loop occurs twice, with and
#: without a mask).
KERNELS = {
    "forward": (forward_kernel, 4),
    "decode": (forward_kernel, 4),
    "grad_keys": (grad_keys_kernel, 8),
    "grad_queries": (grad_queries_kernel, 6),
}


def aot_entries() -> list[AotEntry]:
    """Return every shipped configuration, with everything that changes the code: packed rows or plain causal
    ones, and grouped heads in `grad_keys`, where they lengthen the loop. float16 compiles to the same code as
    bfloat16."""
    entries = [
        entry
        for dtype, num_bytes in (("bf16", 2), ("fp32", 4))
        for head_dim in (32, 64, 96, 128)
        for entry in _entries(dtype, num_bytes, head_dim)
    ]
    pointers = {
        name: "*fp32" if "lse" in name or "delta" in name else "*bf16"
        for name in delta_kernel.arg_names
        if name.endswith("_ptr")
    }
    strides = {name: "i32" for name in delta_kernel.arg_names if name.startswith("g_")}
    constants = {"HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_Q": DELTA.block_q, "WIDE": False}
    return [
        *entries,
        *(
            AotEntry(
                f"attention.delta.bf16.d128{'.lse' if with_lse else ''}",
                delta_kernel,
                {**pointers, **strides, "T": "i32"},
                {**constants, "HAS_GRAD_LSE": with_lse},
                (*pointers, *strides),
                DELTA.num_warps,
                DELTA.num_stages,
                archs=ARCHS,
            )
            for with_lse in (False, True)
        ),
    ]


def _entries(dtype: str, num_bytes: int, head_dim: int) -> Iterator[AotEntry]:
    for name in KERNELS:
        launches: dict[Launch, list[int]] = {}
        for arch in (90, *ARCHS):  # the entry of sm_90 has the plain name
            archs = launches.setdefault(
                table(name, num_bytes, block_d(head_dim), capability=arch), []
            )
            archs += [] if arch in archs else [arch]
        for packed in (True, False):
            for group in (1, 8) if name == "grad_keys" else (1,):
                label = f"{head_dim}{'' if packed else '.causal'}{'.grouped' if group > 1 else ''}"
                for shape, archs in launches.items():
                    of = "" if 90 in archs else f".sm{min(archs)}"
                    yield _entry(
                        name,
                        dtype,
                        f"{label}{of}",
                        head_dim,
                        shape,
                        tuple(sorted(archs)),
                        packed,
                        group,
                    )


def _entry(
    name: str,
    dtype: str,
    label: str,
    head_dim: int,
    shape: Launch,
    archs: tuple[int, ...],
    packed: bool,
    group: int,
) -> AotEntry:
    kernel, num_products = KERNELS[name]
    inner, whole = {"lse_ptr", "delta_ptr"}, {"start_ptr", "offset_ptr", "tiles_ptr", "counts_ptr"}
    pointers = {
        name: "*fp32" if name in inner else "*i32" if name in whole else f"*{dtype}"
        for name in kernel.arg_names
        if name.endswith("_ptr")
    }
    strides = {
        name: "i32" for name in kernel.arg_names if name.endswith(("_row", "_token", "_head"))
    }
    lengths = {name: "i32" for name in kernel.arg_names if name in ("T", "S")}
    constants: dict[str, object] = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d(head_dim),
        "BLOCK_Q": shape.block_q,
        "BLOCK_K": shape.block_k,
        "HAS_START": packed,
        "HAS_OFFSET": name == "decode",
        "WIDE": False,
        "PRECISION": shape.precision,
    }
    # wgmma needs tiles of at least 64 rows; float32 has products of 16 at the largest head
    # dimension, too few for four warps.
    expects = (
        {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",), 120: ("HMMA",)}
        if dtype == "bf16" and name != "decode"
        else {}
    )
    multiply_adds = (
        num_products * shape.block_q * shape.block_k * block_d(head_dim) if dtype == "bf16" else 0
    )
    return AotEntry(
        f"attention.{name}.{dtype}.d{label}",
        kernel,
        {**pointers, **strides, **lengths, "scale": "fp32"},
        {name: value for name, value in constants.items() if name in kernel.arg_names},
        (*pointers, *strides),
        shape.num_warps,
        shape.num_stages,
        {arch: names for arch, names in expects.items() if arch in archs},
        archs,
        multiply_adds,
    )
