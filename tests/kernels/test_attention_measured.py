"""Other kernels than this project's for the attention of a training step: the same function, and chosen only for a
device where they were measured to be the fastest."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from attention_cases import start_of
from cm3kernels import dispatch
from cm3kernels.attention import AttentionPlan, attention, sdpa
from messages import tells

flex = importlib.import_module("cm3kernels.attention.flex")


def inputs(layout: str) -> tuple[list[torch.Tensor], AttentionPlan]:
    """q, k and v of two rows with grouped heads, and their plan."""
    generator = torch.Generator().manual_seed(0)
    start = start_of(layout, 40)
    starts = None if start is None else start.expand(2, 40)
    tensors = [torch.randn(2, 40, heads, 16, generator=generator) for heads in (4, 2, 2)]
    return tensors, AttentionPlan(40, 40, starts)


def expected(tensors: list[torch.Tensor], plan: AttentionPlan) -> torch.Tensor:
    return attention(*tensors, kv_start=plan.kv_start, scale=0.3, implementation="reference")


@pytest.mark.parametrize("layout", ["none", "retrieved", "padded"])
def test_cudnn_s_call_is_the_function(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call, by another backend of torch's function; queries that see nothing have no gradient."""
    monkeypatch.setattr(sdpa, "CUDNN", SDPBackend.MATH)
    tensors, plan = inputs(layout)
    tensors = [x.requires_grad_() for x in tensors]
    out, _ = sdpa.attention_cudnn(*tensors, plan=plan, scale=0.3, return_lse=False)
    right = expected(tensors, plan)
    torch.testing.assert_close(out, right, atol=1e-5, rtol=0)
    pairs = zip(
        *(torch.autograd.grad(x.square().sum(), tensors) for x in (out, right)), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# its call is tested, which needs no compilation
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", ["none", "retrieved", "padded"])
def test_flex_s_call_is_the_function(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call, not compiled; the block mask is made once for a plan."""
    options: list[Any] = []

    def uncompiled(*args: Any, kernel_options: Any, **named: Any) -> Any:
        options.append(kernel_options)
        return flex_attention(*args, **named)

    monkeypatch.setattr(flex, "compiled", lambda: uncompiled)
    tensors, plan = inputs(layout)
    for call in (flex.attention_flex, flex.attention_flex_flash):
        out, _ = call(*tensors, plan=plan, scale=0.3, return_lse=False)
        torch.testing.assert_close(out, expected(tensors, plan), atol=1e-5, rtol=0)
    assert options == [{}, {"BACKEND": "FLASH"}]
    assert plan.once("blocks", lambda: None) is not None


def on_a_card(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """Queries on an H100, which need not be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    q = torch.empty(1, 20, 2, 64, dtype=torch.bfloat16, device="meta")
    given = {"device": torch.device("cuda:0"), "shape": q.shape, "dtype": q.dtype}
    return SimpleNamespace(**{**given, "element_size": q.element_size, **changes})


def test_the_table_decides_for_training_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    q = on_a_card(monkeypatch)
    assert dispatch.MEASURED == {}  # until `on_gpu` has measured one
    assert dispatch.measured_attention(q, trains=True) is None
    monkeypatch.setitem(dispatch.MEASURED, (9, 0), "flex")
    assert dispatch.measured_attention(q, trains=True) == "flex"
    chosen = dispatch.choose("attention", "auto", dispatch.ATTENTION, q, first="flex")
    assert chosen is flex.attention_flex
    assert dispatch.measured_attention(q, trains=False) is None
    for other in ({"element_size": lambda: 4}, {"device": torch.device("cpu")}):
        assert dispatch.measured_attention(on_a_card(monkeypatch, **other), trains=True) is None


def test_what_the_table_names_and_can_t_run_is_passed_over_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    q = on_a_card(monkeypatch)
    dispatch.choose("attention", "auto", dispatch.ATTENTION, q, first="flex_flash")
    assert "'triton' runs on cuda:0; 'flex_flash' can't: the package flash_attn.cute" in caplog.text


@pytest.mark.parametrize("name", ["flex", "flex_flash", "cudnn"])
def test_they_need_a_gpu(name: str) -> None:
    q = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ValueError, match="on cpu") as caught:
        attention(q, q, q, implementation=name)
    assert tells(
        caught.value, f"attention: implementation '{name}' can't ... cpu ... CUDA ... 'sdpa'"
    )
