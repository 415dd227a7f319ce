"""The ops that this project benchmarks. Each file ends with its registrations; this module is the hook's
target."""

from __future__ import annotations

from cm3run.benchmarks import BenchmarkRegistry


def add(registry: BenchmarkRegistry) -> None:
    """Add every bundled op."""
    from cm3lab.benchmarks.kernels.ops.add_norm import AddNormOp
    from cm3lab.benchmarks.kernels.ops.attention import AttentionOp
    from cm3lab.benchmarks.kernels.ops.few_rows import FewRowsOp
    from cm3lab.benchmarks.kernels.ops.guided_sample import GuidedSampleOp
    from cm3lab.benchmarks.kernels.ops.linear_cross_entropy import LinearCrossEntropyOp
    from cm3lab.benchmarks.kernels.ops.segment_decode import SegmentDecodeOp
    from cm3lab.benchmarks.kernels.ops.silu_gate import SiluGateOp
    from cm3lab.benchmarks.kernels.ops.store_heads import StoreHeadsOp

    step = AddNormOp(), StoreHeadsOp(), SegmentDecodeOp(), SiluGateOp(), FewRowsOp()
    for op in (AttentionOp(), *step, GuidedSampleOp(), LinearCrossEntropyOp()):
        registry.add_op(op)
