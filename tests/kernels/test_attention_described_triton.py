"""The forward pass by tensor descriptors: the bits of the one by pointers, which it leaves what no descriptor takes."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attention_cases import Case, assert_equal, start_of
from attention_cases import small_tiles as small_tiles  # the fixture
from cm3kernels import dispatch
from cm3kernels.attention import attention, configs
from cm3kernels.attention.configs import DESCRIBED, Launch
from messages import tells

triton_ops = import_module("cm3kernels.attention.triton")


class Counted:
    """Counts launches by descriptors."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.number, self._launch = 0, triton_ops._launch_described
        patch.setattr(triton_ops, "_launch_described", self)

    def __call__(self, *arguments: Any) -> None:
        self.number += 1
        self._launch(*arguments)


@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_same_bits_as_by_pointers(data: st.DataObject) -> None:
    """Any starts, grouped heads, tiles, and slices of larger tensors; gradients too, which need the lse."""
    T, D = data.draw(st.integers(17, 40), label="T"), data.draw(st.sampled_from([8, 24, 40]))
    heads = data.draw(st.sampled_from([(1, 1), (2, 1)]), label="heads")
    tile = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16)]), label="tile")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]), label="dtype")
    starts = data.draw(
        st.none() | st.lists(st.integers(-40, T + 1), min_size=T, max_size=T), label="kv_start"
    )
    start = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    case = Case.random(1, T, heads, D, start, "cpu")
    wide = torch.full((1, heads[1], T + 2, D + 8), math.nan, dtype=torch.float64)
    case.k = wide.transpose(1, 2)[:, 1:-1, :, :D].copy_(case.k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "INTERPRETED", Launch(*tile, 4, 1))
        counted = Counted(patch)
        ours, by_pointers = (case.run(name, dtype) for name in ("triton_tma", "triton"))
        assert counted.number == 1
    for name, x, y in zip(["out", "lse", "q", "k", "v"], ours, by_pointers, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("D", [64, 96, 128])
@pytest.mark.parametrize("layout", ["none", "packed", "retrieved"])
def test_equals_the_reference_on_a_gpu(D: int, layout: str, device: str) -> None:
    """bfloat16 as in training; the tiles differ from those by pointers, so the bits may."""
    case = Case.random(2, 1000, (4, 2), D, start_of(layout, 1000), device)
    case.q, case.k, case.v = (x.bfloat16().double() for x in (case.q, case.k, case.v))
    assert_equal(
        case.run("triton_tma", torch.bfloat16), case.run("reference", torch.float64), 1.5e-2
    )


@pytest.mark.parametrize("layout", ["retrieved", "padded"])
def test_equals_the_reference(layout: str) -> None:
    case = Case.random(1, 35, (2, 1), 24, start_of(layout, 35), "cpu")
    assert_equal(case.run("triton_tma", torch.float32), case.run("reference", torch.float64), 4e-6)


def test_keys_that_nobody_sees_may_be_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a cache whose unwritten slots hold NaN, and keys before the first start."""
    counted, generator = Counted(monkeypatch), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 1, 32, generator=generator) for n in (20, 45, 45))
    given = {"offset": torch.tensor([14]), "kv_start": torch.full((1, 20), 9)}
    expected = attention(q, k, v, **given, implementation="reference")
    for unseen in (slice(0, 9), slice(34, None)):
        k[:, unseen] = v[:, unseen] = math.nan
    out = attention(q, k, v, **given, implementation="triton_tma")
    assert counted.number == 1
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)


UNFIT = {
    "tokens 132 bytes apart": torch.randn(1, 20, 33)[:, :, None, :32],
    "an address that is no multiple of 16": torch.randn(1, 20, 1, 36)[..., 1:33],
    "one head for all tokens": torch.randn(1, 1, 1, 32).expand(1, 20, 1, 32),
    "float64": torch.randn(1, 20, 1, 32, dtype=torch.float64),
    "few queries": torch.randn(1, 16, 1, 32),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_a_descriptor_can_t_take_goes_by_pointers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, k = Counted(monkeypatch), UNFIT[name]
    q = torch.randn(k.shape, dtype=k.dtype)
    outs = (attention(q, k, k, implementation=of) for of in ("triton_tma", "triton"))
    assert torch.equal(*outs)
    assert counted.number == 0


def test_nothing_outside_the_tensors_is_touched(
    run_guarded: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """Keys and values are next to a guard page; ragged tiles."""
    done = run_guarded("""
import importlib
from cm3kernels.attention import configs
configs.INTERPRETED = configs.Launch(16, 32, 4, 1)
ops = importlib.import_module("cm3kernels.attention.triton")
for side in ("after", "before"):
    q, k, v = (guarded(torch.randn(1, 19, heads, 20), side) for heads in (2, 1, 1))
    assert ops.descriptors_can(k), k.data_ptr()
    for start in (None, guarded((torch.arange(19)[None] // 10 * 10).int(), side)):
        ops.attention_op._init_fn(q, k, v, start, None, None, None, 0.2, True)
print("all within")
""")
    assert (done.returncode, done.stdout.strip()) == (0, "all within"), done.stderr[-2000:]


def on_a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], **changes: Any) -> Any:
    """Queries on a card of that capability, which need not be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    q = torch.empty(1, 20, 2, 64, dtype=torch.bfloat16, device="meta")
    given = {"device": torch.device("cuda:0"), "shape": q.shape, "dtype": q.dtype}
    return SimpleNamespace(**given, element_size=q.element_size, **changes)


def test_a_card_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = dispatch.ATTENTION["triton_tma"].refusal
    assert refusal(on_a_card(monkeypatch, (9, 0))) is None
    with pytest.raises(ValueError, match="tensor memory accelerator") as caught:
        dispatch.choose(
            "attention", "triton_tma", dispatch.ATTENTION, on_a_card(monkeypatch, (8, 0))
        )
    assert tells(
        caught.value, "attention: implementation 'triton_tma' can't ... A100 ... sm_90 ... 'triton'"
    )


def test_launches_are_those_of_the_card_and_compiled_ahead_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for capability, of in ((9, 0), 90), ((10, 0), 100), ((10, 3), 100), ((12, 1), 120):
        q = on_a_card(monkeypatch, capability)
        assert configs.described_launch(q) == DESCRIBED[of][64]
    q.shape = (1, 20, 2, 32)
    assert configs.described_launch(q) is None  # by pointers
    compiled = {
        (arch, entry.constexprs["BLOCK_D"], entry.constexprs["HAS_START"]): Launch(
            entry.constexprs["BLOCK_Q"],
            entry.constexprs["BLOCK_K"],
            entry.num_warps,
            entry.num_stages,
        )
        for entry in triton_ops.aot_entries()
        if entry.name.startswith("attention.described.")
        for arch in entry.archs
    }
    for arch, launches in DESCRIBED.items():
        for padded, shape in launches.items():
            assert compiled[arch, padded, True] == compiled[arch, padded, False] == shape
