"""The heads of a decoder's step: normalised, rotated and written to the cache in one launch, compared with torch's many.

Legend: M rows (streams of all pictures), H heads of queries, K of keys and of values, D head dimension, S slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from cm3kernels.store_heads import IMPLEMENTATIONS, HeadNorms, Turn, store_heads
from cm3lab.benchmarks.kernels.ops.attention import LIMITS
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, Shape, ShapeKey, TorchProvider, Where

#: (rows, query heads, key heads, head dimension)
SHAPES: dict[tuple[str, str], list[tuple[int, int, int, int]]] = {
    ("cuda", "full"): [(M, 32, K, 128) for K in (32, 8) for M in (2, 16, 64)],
    ("cuda", "quick"): [(2, 32, 32, 128), (16, 32, 32, 128)],
    ("cpu", "full"): [(2, 16, 16, 64), (16, 16, 16, 64), (16, 16, 4, 64)],
    ("cpu", "quick"): [(16, 16, 16, 64)],
}
#: S.
NUM_SLOTS = 64


class StoreHeadsOp(Op):
    """`cm3kernels.store_heads` and torch's operations."""

    name, baseline, limits = "store_heads", "torch", LIMITS
    keys: ClassVar = {
        "M": ShapeKey("rows: streams of all pictures"),
        "H": ShapeKey("query heads"),
        "K": ShapeKey("key heads"),
        "D": ShapeKey("head dimension"),
    }
    costs = "bytes 2 M (H + 2 K) D w; operations 8 M (H + K) D"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call) for name in IMPLEMENTATIONS
        ]
        self.providers += [TorchProvider("torch", plain, compiled) for compiled in (False, True)]

    def shapes(self, where: Where) -> list[Shape]:
        sizes = [(3, 4, 2, 16)] if where.dry else SHAPES[where.target, where.size]
        return [dict(zip("MHKD", size, strict=True)) for size in sizes]

    def refusal(self, shape: Any) -> str | None:
        if shape["D"] % 2:
            return f"D={shape['D']} is odd, but halves of a head are rotated"
        return None

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        M, H, K, D = (shape[name] for name in "MHKD")
        return 2 * M * (H + 2 * K) * D * dtype.itemsize, 8 * M * (H + K) * D

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        M, H, K, D = (case.parameters[name] for name in "MHKD")
        generator = torch.Generator(where.device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=where.device)

        # In memory head by head, like the decoder's cache.
        keys, values = (
            torch.zeros(K, M * NUM_SLOTS, D, dtype=case.dtype, device=where.device).transpose(0, 1)
            for _ in range(2)
        )
        angles = random(M, D // 2).repeat(1, 2)
        return {
            "qkv": random(M, (H + 2 * K) * D).to(case.dtype),
            "keys": keys,
            "values": values,
            "slots": torch.arange(M, device=where.device) * NUM_SLOTS + 7,
            "weight": random(H + K, D),
            "cosines": angles.cos(),
            "sines": angles.sin(),
        }

    def reference(self, case: Case, inputs: Inputs) -> Any:
        return our_call("reference", case, inputs)()


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, 1, case.parameters["D"], dtype=case.dtype, device=where.device)


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    """Return a call for queries and the pool of keys and of values."""

    def call() -> tuple[Tensor, Tensor, Tensor]:
        keys, values = inputs["keys"], inputs["values"]
        q = store_heads(
            inputs["qkv"],
            keys,
            values,
            inputs["slots"],
            norms=HeadNorms(inputs["weight"]),
            turn=Turn(inputs["cosines"], inputs["sines"]),
            implementation=implementation,
        )
        return q, keys, values

    return call


def plain(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and the pool of keys and of values."""
    keys, values = inputs["keys"], inputs["values"]
    K, D = keys.shape[1:]
    heads = inputs["qkv"].unflatten(1, (-1, D))
    x = layer_norm(heads[:, :-K].float(), (D,), eps=1e-5) * inputs["weight"]
    first, second = x.chunk(2, dim=-1)
    other = torch.cat([-second, first], dim=-1)
    x = (x * inputs["cosines"][:, None] + other * inputs["sines"][:, None]).to(keys.dtype)
    keys.index_copy_(0, inputs["slots"], x[:, -K:])
    values.index_copy_(0, inputs["slots"], heads[:, -K:])
    return x[:, :-K], keys, values
