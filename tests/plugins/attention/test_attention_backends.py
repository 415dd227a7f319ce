"""The bundled attention backends obey the kit where they run, and say why where they can't; wrong
inputs are named."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.errors import DeviceError, MissingPackageError
from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3kernels.attention.plan import visible_mask
from cm3kits.attention import AttentionContract, dense_attention
from cm3plugins.attention import (
    FlexAttentionConfig,
    ReferenceAttentionConfig,
    SDPAAttentionConfig,
    TritonAttentionConfig,
    XFormersAttentionConfig,
)
from messages import tells

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None


class TestSDPAAttention(AttentionContract):
    config = SDPAAttentionConfig()


class TestReferenceAttention(AttentionContract):
    config = ReferenceAttentionConfig()


class TestReferenceAttentionInDouble(AttentionContract):
    dtype = torch.float64
    tolerance = 1e-12

    config = ReferenceAttentionConfig()


@pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETS),
    reason="needs Triton and TRITON_INTERPRET=1 (its kernels: tests/kernels)",
)
class TestTritonAttention(AttentionContract):
    """Interpreted, some 20 ms a head and tile: few examples. The kernels have tests of their
    own."""

    head_dims = (8, 32)
    max_examples = 2

    config = TritonAttentionConfig()


class TestFlexAttention(AttentionContract):
    """Traced anew for every shape: few examples. Without a backward on the CPU: the law of
    gradients is the refusal below."""

    head_dims = (8, 32)
    max_examples = 2

    config = FlexAttentionConfig()

    def waive_gradients_equal_the_oracles(self) -> str:
        return "flex has no backward on the CPU; that it refuses is tested"

    def waive_a_query_costs_what_it_sees(self) -> str:
        return "the work of what torch.compile has compiled can't be counted"

    def waive_gradients_of_padding_are_finite(self) -> str:
        return self.waive_gradients_equal_the_oracles()


def test_worked_example() -> None:
    """Two keys with scores 0 and log 3 (scale 1) weigh 1/4 and 3/4; kv_start 1 leaves the second
    alone."""
    q = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    k = torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).view(1, 2, 1, 1)
    v = torch.tensor([8.0, 4.0]).view(1, 2, 1, 1)
    for backend in (
        SDPAAttentionConfig().build(),
        ReferenceAttentionConfig().build(),
        FlexAttentionConfig().build(),
    ):
        out = backend.attend(q, k, v, scale=1.0)
        torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 8.0 / 4 + 4.0 * 3 / 4]))
        out = backend.attend(q, k, v, scale=1.0, kv_start_BT=torch.tensor([[0, 1]]))
        torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 4.0]))


@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_is_as_good_as_its_rounding(packed: bool) -> None:
    q, k, v = (
        torch.randn(1, 33, 2, 32, generator=torch.Generator().manual_seed(i)).bfloat16()
        for i in range(3)
    )
    kv_start = torch.arange(33)[None] // 11 * 11 if packed else None
    expected = dense_attention(q.double(), k.double(), v.double(), kv_start)
    for config in (SDPAAttentionConfig(), ReferenceAttentionConfig(), FlexAttentionConfig()):
        out = config.build().attend(q, k, v, kv_start_BT=kv_start)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "config", [SDPAAttentionConfig(), ReferenceAttentionConfig(), FlexAttentionConfig()]
)
def test_autocast_decides_the_dtype(config: AttentionConfig) -> None:
    """A norm of q and k gives float32 beside v's bfloat16."""
    q, v = torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = config.build().attend(q, q, v)
    expected = config.build().attend(q.bfloat16(), q.bfloat16(), v)
    torch.testing.assert_close(
        out, expected, atol=8e-3, rtol=0
    )  # torch 2.10's flex rounds once more


def test_wrong_inputs_are_named() -> None:
    q, k = torch.zeros(1, 2, 3, 8), torch.zeros(1, 5, 2, 8)
    backend = ReferenceAttentionConfig().build()
    with pytest.raises(ValueError) as caught:
        backend.attend(q, k, k)
    assert str(caught.value) == "attention: 3 query heads on 2 key heads"
    with pytest.raises(ValueError) as caught:
        backend.attend(q[:, :, :2], k, k)
    assert str(caught.value) == "attention: 2 queries on 5 keys need an offset"


def test_flex_says_why_it_cannot_train_on_the_cpu() -> None:
    q = torch.zeros(1, 2, 1, 8, requires_grad=True)
    with pytest.raises(DeviceError) as caught:
        FlexAttentionConfig().build().attend(q, q, q)
    assert tells(caught.value, "attention 'flex': FlexAttention has no ... CPU")
    with torch.no_grad():
        assert FlexAttentionConfig().build().attend(q, q, q).shape == q.shape


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_needs_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError) as caught:
        XFormersAttentionConfig().build()
    assert tells(caught.value, "attention 'xformers': there is no CUDA ... CPU")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    found = "cm3core.interfaces.component.find_spec"
    monkeypatch.setattr(found, lambda name: True)
    with pytest.raises(DeviceError) as caught:
        TritonAttentionConfig().build()
    assert tells(caught.value, "attention 'triton': there is no CUDA ... `attention: sdpa`")
    monkeypatch.setattr(found, lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        TritonAttentionConfig().build()
    assert tells(caught.value, "attention: the package 'triton' is not installed")


def test_xformers_missing_is_told_with_each_reason() -> None:
    from cm3plugins.attention.xformers import load_fmha

    with pytest.raises(MissingPackageError) as caught:
        load_fmha(["no_such_package.fmha", "cm3plugins.no_such_module"])
    assert tells(caught.value, "attention 'xformers': no_such_package.fmha: No module")
    assert load_fmha(["no_such_package.fmha", "math"]).__name__ == "math"


class EagerFMHA:
    """xformers' function in plain algebra, for its plans on a CPU: biases become matrices by their
    own `materialize`."""

    def __init__(self, fmha: Any) -> None:
        self.__name__ = fmha.__name__

    @staticmethod
    def memory_efficient_attention(
        q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Any, scale: float | None
    ) -> Tensor:
        matrix = (
            attn_bias
            if isinstance(attn_bias, Tensor)
            else attn_bias.materialize((1, 1, q.shape[1], k.shape[1]), dtype=torch.float32)
        )
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale) + matrix
        return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.fixture(scope="module")
def fmha() -> Iterator[Any]:
    """xformers' module; without a CUDA build of torch it imports all the same, and none of its
    kernels runs."""
    from cm3plugins.attention.xformers import load_fmha

    try:
        yield load_fmha()
    except MissingPackageError as error:
        pytest.skip(
            "xformers and mslk are not installed (pip install --no-deps xformers is enough): "
            f"{error.cause}"
        )


def test_xformers_biases_are_the_visibility_rule(fmha: Any) -> None:
    """Each kind of bias as a matrix, against ours."""
    from cm3plugins.attention.xformers import ALIGNMENT, XFormersAttention, dense_bias

    backend = XFormersAttention(fmha)
    packed = torch.tensor([[0] * 5 + [5] * 4 + [9], [0] * 10])
    plan = backend.plan(num_queries=10, num_keys=10)
    assert torch.equal(plan.bias.materialize((10, 10)) == 0, visible_mask(10, 10, None, None)[0, 0])
    plan = backend.plan(num_queries=10, num_keys=10, kv_start_BT=packed)
    assert plan.joined
    rows = visible_mask(10, 10, packed, None)[:, 0]
    assert torch.equal(plan.bias.materialize((20, 20)) == 0, torch.block_diag(*rows.float()).bool())
    starts, offset = torch.tensor([[3, 20], [0, 9]]), torch.tensor([5, 9])
    mask = backend.plan(num_queries=2, num_keys=13, kv_start_BT=starts, offset_B=offset).bias
    bias = dense_bias(mask, 2, torch.float32)
    assert bias.stride(2) % ALIGNMENT == 0
    assert torch.equal(bias[:, 0, [0]].isfinite(), mask[:, 0, [0]])
    assert not bias[0, :, 1].any(), "a row that sees nothing is never all -inf"


class TestXFormersPlans(AttentionContract):
    """Its plans, joined rows and repeated heads, with plain algebra in place of the kernels."""

    max_examples = 6

    def make(self) -> AttentionBackend:
        from cm3plugins.attention.xformers import XFormersAttention, load_fmha

        try:
            return XFormersAttention(EagerFMHA(load_fmha()))
        except MissingPackageError as error:
            pytest.skip(
                "xformers and mslk are not installed (pip install --no-deps xformers is "
                f"enough): {error.cause}"
            )

    def case(self, data: st.DataObject, *, cached: bool, max_tokens: int = 9) -> Any:
        case = super().case(data, cached=cached, max_tokens=max_tokens)
        if not cached and case.kv_start_BT is not None and data.draw(st.booleans(), label="packed"):
            case.kv_start_BT = (
                torch.arange(case.q_BTHD.shape[1])[None].expand(len(case.q_BTHD), -1) // 4 * 4
            )
        return case
