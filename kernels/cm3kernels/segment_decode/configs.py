"""Launches of the `segment_decode` kernels, by head dimension and element size. No Triton here."""

from __future__ import annotations

from dataclasses import dataclass

#: Head dimensions compiled ahead of time. Any other up to the largest also runs, with the launch of the next
#: one of these.
HEAD_DIMS = (32, 64, 80, 96, 128)
#: A whole row of keys must fit in registers.
LARGEST_HEAD_DIM = HEAD_DIMS[-1]
#: Minimum number of columns of Triton's products.
LEAST_BLOCK = 16


@dataclass(frozen=True)
class SegmentConfig:
    """Launch of the kernel over items: keys read at once, warps, stages of the pipeline."""

    block_keys: int
    num_warps: int
    num_stages: int


#: (head dimension, bytes per element) -> launch; the same for every tile, since a longer one adds arithmetic
#: but no loads. Float32 products are exact ("ieee", no tensor cores), and the accumulators of the longest tile
#: only fit the registers of 8 warps.
CONFIGS = {
    (dim, num_bytes): SegmentConfig(64, 4, 3)
    if num_bytes == 2
    else SegmentConfig(32, 8, 3 if dim == 32 else 2)
    for dim in HEAD_DIMS
    for num_bytes in (2, 4)
}


def config_of(dim: int, num_bytes: int) -> SegmentConfig:
    """Return the launch of any head dimension up to `LARGEST_HEAD_DIM`."""
    return CONFIGS[min(known for known in HEAD_DIMS if known >= dim), num_bytes]


def block_dim(dim: int) -> int:
    """Return the columns of the tile for a head, a power of two.

    >>> block_dim(5), block_dim(64), block_dim(80)
    (16, 64, 128)
    """
    return max(LEAST_BLOCK, 1 << (dim - 1).bit_length())
