"""Launch configurations of the attention kernels: a table, no tuning at run time.

Registers limit the choice: 64 K per multiprocessor, 255 per thread.
`python -m cm3kernels.aot --only attention` prints each configuration's usage; none spills. Head
dimensions are padded to 32, 64 or 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kernels._host import interprets

#: Head dimensions for which kernels are compiled; others are padded to the next.
BLOCKS_D = (32, 64, 128)
#: float32 products on tensor cores use three of tf32's: each factor is split into two of 11 bits, so a
#: product's error is about 2^-22, compared with float32's own 2^-24 and plain tf32's 2^-11. "ieee" uses
#: no tensor cores; AMD's compiler has no tf32x3.
PRECISION = "ieee" if torch.version.hip else "tf32x3"


@dataclass(frozen=True)
class Launch:
    """Launch of a kernel: queries and keys per tile, warps per block, stages of the pipeline of
    loads; and how float32 is multiplied."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    precision: str = PRECISION


#: kernel -> bytes per element -> padded head dimension -> launch. `SM80` has what sm_80 needs instead of it (163
#: KiB of shared memory, products from registers), `SM100` what sm_100 does. sm_120 multiplies as sm_80 does, with 99
#: KiB: `SM120`, then `SM80`. A product that feeds another has at least 16 rows (queries; in `grad_keys` keys) per warp:
#: with fewer, warps repeat each other's work (`AotEntry.multiply_adds`).
SM90: dict[str, dict[int, dict[int, Launch]]] = {
    "forward": {
        2: {32: Launch(128, 64, 4, 3), 64: Launch(128, 64, 8, 3), 128: Launch(128, 64, 8, 3)},
        4: {32: Launch(64, 32, 4, 2), 64: Launch(64, 32, 4, 2), 128: Launch(16, 32, 4, 2)},
    },
    "decode": {
        2: {32: Launch(16, 64, 4, 3), 64: Launch(16, 64, 4, 4), 128: Launch(16, 64, 4, 2)},
        4: {32: Launch(16, 32, 4, 3), 64: Launch(16, 32, 4, 3), 128: Launch(16, 32, 4, 2)},
    },
    "grad_keys": {
        2: {32: Launch(64, 64, 4, 2), 64: Launch(64, 64, 4, 2), 128: Launch(32, 128, 8, 2)},
        4: {32: Launch(16, 128, 8, 2), 64: Launch(16, 128, 8, 2), 128: Launch(16, 16, 4, 1)},
    },
    "grad_queries": {
        2: {32: Launch(128, 64, 8, 2), 64: Launch(128, 64, 8, 2), 128: Launch(128, 64, 8, 2)},
        4: {32: Launch(16, 32, 4, 2), 64: Launch(16, 32, 4, 2), 128: Launch(16, 32, 4, 2)},
    },
}
SM80: dict[str, dict[int, dict[int, Launch]]] = {
    "forward": {
        2: {128: Launch(128, 32, 8, 3)},
        4: {32: Launch(32, 32, 4, 2), 64: Launch(32, 32, 4, 2)},
    },
    "decode": {2: {128: Launch(16, 32, 4, 3)}},  # 64 keys spill 8 bytes
    "grad_keys": {
        2: {32: Launch(64, 128, 8, 2), 64: Launch(32, 128, 8, 2), 128: Launch(64, 64, 8, 2)},
        4: {32: Launch(16, 16, 2, 1), 64: Launch(16, 16, 2, 1)},
    },
    "grad_queries": {2: {128: Launch(64, 64, 8, 2)}, 4: {128: Launch(16, 32, 4, 1)}},
}
SM100: dict[str, dict[int, dict[int, Launch]]] = {
    "forward": {4: {64: Launch(32, 32, 4, 2)}},
    "decode": {4: {64: Launch(16, 32, 4, 2)}},
    "grad_keys": {2: {32: Launch(64, 128, 8, 2), 128: Launch(64, 128, 8, 2)}},
}
#: With tf32x3, every tile spills.
SM120: dict[str, dict[int, dict[int, Launch]]] = {
    "grad_queries": {4: {128: Launch(16, 32, 8, 1, "ieee")}}
}
#: The launch of `delta_kernel`, which has no keys.
DELTA = Launch(128, 0, 4, 1)
#: In the interpreter a tile's cost does not depend on its size; small ones cover more of the kernels'
#: cases.
INTERPRETED = Launch(32, 32, 4, 1)
#: Up to this many queries (decoding), the kernel uses a small tile of queries.
MOST_DECODED = 16


def block_d(head_dim: int) -> int:
    """Return the padded head dimension."""
    return next(block for block in BLOCKS_D if head_dim <= block)


def table(kernel: str, num_bytes: int, padded: int, *, capability: int) -> Launch:
    """Return the launch of a kernel ("forward", "decode", "grad_keys", "grad_queries") on sm_80, sm_90, sm_100,
    sm_120 and their successors."""
    if capability < 90:
        special = [SM80]
    elif capability < 100:
        special = []
    else:
        special = [SM100] if capability < 120 else [SM120, SM80]
    found = (of.get(kernel, {}).get(num_bytes, {}).get(padded) for of in special)
    return next(filter(None, found), SM90[kernel][num_bytes][padded])


def launch(kernel: str, q: Tensor) -> Launch:
    """Return the launch for a tensor [B, T, H, D], by device, element size and head dimension."""
    if q.device.type == "cpu" and interprets():
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(q.device)
    return table(kernel, q.element_size(), block_d(q.shape[3]), capability=10 * major + minor)
