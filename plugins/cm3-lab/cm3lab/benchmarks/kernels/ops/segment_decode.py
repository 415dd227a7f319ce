"""Decode attention of one layer: N candidates of one prompt, each with a conditional and an
unconditional stream.

The conditional streams share the prompt's keys, the unconditional ones three tokens; after that each stream has
its own keys. The usual alternative is a complete cache for each stream: with torch's attention, padded to the
longest, and with our own ("unshared"), which separates the gain from sharing from the kernel's. Legend: R = 2 N
rows, H query heads, K key heads, D head dimension,
P prompt, L generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cm3kernels.segment_decode import IMPLEMENTATIONS, plan_segments, segment_decode
from cm3lab.benchmarks.kernels.ops.attention import LIMITS
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, Provider, Shape, ShapeKey, Where

UNCONDITIONAL_PROMPT = 3
#: (images, prompt, generated, query heads, key heads, head dimension)
SHAPES: dict[tuple[str, str], list[tuple[int, int, int, int, int, int]]] = {
    ("cuda", "full"): [
        (N, P, L, 32, K, 128)
        for N in (1, 8, 32)
        for P in (64, 1024, 3072)
        for L in (16, 512, 1008)
        for K in (32, 8)
    ],
    ("cuda", "quick"): [
        (1, 1024, 512, 32, 32, 128),
        (8, 1024, 512, 32, 32, 128),
        (8, 1024, 512, 32, 8, 128),
    ],
    ("cpu", "full"): [
        (1, 256, 64, 8, 8, 64),
        (8, 256, 64, 8, 8, 64),
        (8, 256, 64, 8, 2, 64),
        (8, 1024, 512, 8, 8, 64),
    ],
    ("cpu", "quick"): [(8, 256, 64, 8, 8, 64)],
}


class SegmentDecodeOp(Op):
    """`cm3kernels.segment_decode` and its alternatives."""

    name, baseline, limits = "segment_decode", "sdpa unshared", LIMITS
    keys: ClassVar = {
        "N": ShapeKey("pictures, two rows each"),
        "P": ShapeKey("tokens of the shared prompt"),
        "L": ShapeKey("generated tokens of a row"),
        "H": ShapeKey("query heads"),
        "K": ShapeKey("key heads"),
        "D": ShapeKey("head dimension"),
    }
    # every key and value once, however many rows read it
    costs = "bytes (2 (P + 3 + 2 N L) K + 4 N H) D w; operations 4 D H N (P + 3 + 2 L)"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call, our_refusal)
            for name in IMPLEMENTATIONS
        ]
        self.providers += [
            UnsharedImplementation(name) for name in IMPLEMENTATIONS if name != "reference"
        ]
        self.providers.append(UnsharedProvider())

    def shapes(self, where: Where) -> list[Shape]:
        sizes = [(2, 20, 7, 4, 2, 32)] if where.dry else SHAPES[where.target, where.size]
        return [dict(zip("NPLHKD", size, strict=True)) for size in sizes]

    def refusal(self, shape: Any) -> str | None:
        if shape["H"] % shape["K"]:
            return f"H={shape['H']} is no multiple of K={shape['K']}"
        return None

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        N, P, L, H, K, D = (shape[name] for name in "NPLHKD")
        num_keys = P + UNCONDITIONAL_PROMPT + 2 * N * L
        pairs = N * (P + UNCONDITIONAL_PROMPT + 2 * L)
        return (2 * num_keys * K + 4 * N * H) * D * dtype.itemsize, 4 * D * H * pairs

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        N, P, L, H, K, D = (case.parameters[name] for name in "NPLHKD")
        generator = torch.Generator(where.device).manual_seed(seed)
        shared = (P, UNCONDITIONAL_PROMPT)
        capacity = -(-L // 64) * 64  # as in an engine: room for the tokens still to come
        starts = [0, P, *(sum(shared) + row * capacity for row in range(2 * N))]
        lengths = [*shared, *[L] * (2 * N)]
        segments = [[int(row >= N), 2 + row] for row in range(2 * N)]
        plan = plan_segments(
            starts,
            [*shared, *[capacity] * (2 * N)],
            segments,
            num_query_heads=H,
            num_key_heads=K,
            device=where.device,
        )

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=where.device).to(case.dtype)

        # In memory head by head, like the decoder's cache.
        keys, values = (random(K, plan.num_slots, D).transpose(0, 1) for _ in range(2))
        return {
            "q": random(2 * N, H, D),
            "keys": keys,
            "values": values,
            "plan": plan,
            "lengths": torch.tensor(lengths, dtype=torch.int32, device=where.device),
        }

    def reference(self, case: Case, inputs: Inputs) -> Any:
        return our_call("reference", case, inputs)()


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, 1, case.parameters["D"], dtype=case.dtype, device=where.device)


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    return lambda: segment_decode(
        inputs["q"],
        inputs["keys"],
        inputs["values"],
        inputs["lengths"],
        inputs["plan"],
        implementation=implementation,
    )


def our_refusal(implementation: str, case: Case, where: Where) -> str | None:
    if implementation == "reference" and where.target == "cuda" and not where.dry:
        return "copies each row's keys, row by row; only for tests"
    return None


def row_slots(inputs: Inputs) -> list[Tensor]:
    """Return the slots that each row reads, in order."""
    plan, lengths = inputs["plan"], inputs["lengths"].tolist()
    return [
        torch.cat(
            [
                torch.arange(plan.starts[segment], plan.starts[segment] + lengths[segment])
                for segment in segments
            ]
        )
        for segments in plan.row_segments
    ]


def unshared_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    """Return a call with the same rows, each with one segment that contains copies of all its keys."""
    slots, device = row_slots(inputs), inputs["q"].device
    capacity = -(-max(map(len, slots)) // 64) * 64
    starts = [row * capacity for row in range(len(slots))]
    index = torch.cat([torch.nn.functional.pad(row, (0, capacity - len(row))) for row in slots]).to(
        device
    )
    plan = plan_segments(
        starts,
        [capacity] * len(slots),
        [[row] for row in range(len(slots))],
        num_query_heads=case.parameters["H"],
        num_key_heads=case.parameters["K"],
        device=device,
    )
    lengths = torch.tensor([len(row) for row in slots], dtype=torch.int32, device=device)
    keys, values = (
        inputs[name].transpose(0, 1)[:, index].transpose(0, 1) for name in ("keys", "values")
    )
    return our_call(
        implementation,
        case,
        {**inputs, "keys": keys, "values": values, "lengths": lengths, "plan": plan},
    )


class UnsharedImplementation(OurImplementation):
    """One of our implementations, with nothing to share."""

    def __init__(self, implementation: str) -> None:
        super().__init__(implementation, IMPLEMENTATIONS, probe, unshared_call, our_refusal)
        self.name += " unshared"


class UnsharedProvider(Provider):
    """torch's attention over a cache for each row, padded to the longest, with a mask."""

    name = "sdpa unshared"

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        slots = row_slots(inputs)
        longest = max(map(len, slots))
        index = torch.stack(
            [torch.nn.functional.pad(row, (0, longest - len(row))) for row in slots]
        ).to(inputs["q"].device)
        mask = torch.arange(longest) < torch.tensor([len(row) for row in slots])[:, None]
        mask = mask[:, None, None].to(inputs["q"].device)
        keys, values = (
            inputs[name][index].transpose(1, 2).contiguous() for name in ("keys", "values")
        )
        q = inputs["q"][:, :, None]
        grouped = q.shape[1] != keys.shape[1]
        return lambda: scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, enable_gqa=grouped
        )[:, :, 0]
