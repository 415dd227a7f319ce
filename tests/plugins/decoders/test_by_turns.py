"""New tokens of decoders as on a GPU: kernels write the heads, attend, and add what a norm reads. Here torch computes them,
and in slow tests they are interpreted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cm3kernels import interprets
from cm3leon_parts import SDPA, VOCABULARY
from cm3leon_parts import TINY as CM3LEON
from cm3plugins.decoders import cache as pool
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.cm3leon import model as cm3leon_model
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.decoders.llama import model as llama_model
from cm3plugins.decoders.packed import PackedInference

LLAMA = LlamaConfig(num_layers=2, d_model=24, num_heads=6, d_ff=40, context_length=24)
GROUPED = replace(LLAMA, num_key_heads=2)
Config = CM3LeonConfig | LlamaConfig
CONFIGS: dict[str, Config] = {
    "cm3leon": CM3LEON,
    "cm3leon, head norms": replace(CM3LEON, qk_norm=True, activation="gelu"),
    "llama": LLAMA,
    "llama, grouped": replace(GROUPED, qk_norm_groups=2),
    "llama, rms": replace(GROUPED, qk_norm="rms_norm", qk_norm_groups=1),
    "llama, biases": replace(GROUPED, qk_norm="none", qkv_bias=True),
    "llama, grid": replace(GROUPED, qk_norm="none", rope="2d", head_dim=8),
}
#: They take the layers one by one: keys of another input, or norms at the ends of branches.
OTHERS: dict[str, Config] = {
    "cm3leon, shifted": replace(CM3LEON, token_shift=True),
    "llama, shifted": replace(LLAMA, token_shift=True),
    "llama, swin": replace(LLAMA, swin_norm=True),
}
OPS = (
    (cm3leon_model, "add_norm"),
    (llama_model, "add_norm"),
    (llama_model, "silu_gate"),
    (pool, "store_heads"),
    (pool, "segment_decode"),
)
NUM_STEPS = 3
#: RMS of a difference over that of the states, by the rounding of products.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(autouse=True)
def _everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SHARING_PAYS", 0)


def counting(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Counter[str]:
    """Calls of the ops from now on, with these options."""
    found: Counter[str] = Counter()
    for place, name in OPS:
        op = partial(getattr(place, name), **options)

        def counted(*arguments: Any, _name: str = name, _op: Any = op, **others: Any) -> Any:
            found[_name] += 1
            return _op(*arguments, **others)

        monkeypatch.setattr(place, name, counted)
    return found


def interpreted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the kernels, which run whatever the device."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")
    if not interprets():
        pytest.skip("TRITON_INTERPRET is not 1: kernels don't run on the CPU")
    return counting(monkeypatch, implementation="triton")


def trained(config: Config) -> Any:
    """A decoder whose branches are not zero, as cm3leon's are before training."""
    torch.manual_seed(0)
    decoder = config.build(VOCABULARY, SDPA, (4, 4)).eval()
    with torch.no_grad():
        for name, one in decoder.named_parameters():
            if "norm" in name and name.endswith("weight"):
                one.uniform_(0.5, 1.5)
            else:
                one.normal_(std=0.2)
    return decoder


def arranged(decoder: Any, *, on_cpu: bool, precision: str) -> PackedInference:
    inference = decoder.for_inference(precision)
    assert isinstance(inference, PackedInference)
    inference.on_cpu = on_cpu
    # keys and values in the products' dtype, as on a GPU
    dtype = inference.layout.dtype if on_cpu else inference.dtype
    inference.layout = replace(inference.layout, on_cpu=on_cpu, dtype=dtype)
    return inference


def drawn(
    inference: PackedInference, rows: Sequence[int] = (0, 0, 1)
) -> tuple[list[list[int]], Tensor]:
    """The likeliest tokens of rows after two prompts, and the hidden states of all steps."""
    caches = []
    for number, length in enumerate((5, 3)):
        cache = inference.allocate_cache(1, 16)
        inference.hidden_states(torch.arange(length)[None] + 3 * number, cache=cache)
        cache.advance([length])
        caches.append(cache)
    cache = caches[0]
    cache.join(caches[1])
    cache.select(rows)
    cache.reserve([NUM_STEPS] * len(rows))
    token_B1 = torch.arange(len(rows))[:, None]  # else rows of one prompt would be alike
    tokens, states = [], []
    for _ in range(NUM_STEPS):
        hidden = inference.hidden_states(token_B1, cache=cache, cells_BT=token_B1 % 16)
        cache.advance([1] * len(rows))
        token_B1 = inference.logits(hidden)[:, -1].argmax(-1, keepdim=True)
        tokens.append(token_B1[:, 0].tolist())
        states.append(hidden.float())
    return tokens, torch.cat(states, 1)


def apart(states: Tensor, expected: Tensor) -> float:
    return float((states - expected).norm() / expected.norm())


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_layers_of_ten_launches_are_layers_of_many(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """By the formulas that kernels are compared with in `tests/kernels`. Without norms of heads and rotations, which
    round once instead of several times, they have the same bits."""
    inference = arranged(trained(CONFIGS[name]), on_cpu=False, precision=precision)
    calls = counting(monkeypatch)
    tokens, states = drawn(inference)
    assert calls["store_heads"] == calls["segment_decode"] == NUM_STEPS * 2
    assert calls["add_norm"] == NUM_STEPS * (2 * 2 + 1)
    monkeypatch.setattr(pool.Reading, "by_turns", False)
    expected, before = drawn(inference)
    assert calls["store_heads"] == NUM_STEPS * 2
    assert apart(states, before) <= (0 if name == "cm3leon" else TOLERANCE[precision])
    if precision == "fp32":
        assert tokens == expected


@torch.inference_mode()
@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_take_their_layers_as_before(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    decoder = trained(OTHERS[name])
    expected, states = drawn(arranged(decoder, on_cpu=True, precision="fp32"))
    calls = counting(monkeypatch)
    tokens, ours = drawn(arranged(decoder, on_cpu=False, precision="fp32"))
    assert tokens == expected
    assert apart(ours, states) <= TOLERANCE["fp32"]
    assert set(calls) == {"segment_decode"}


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_of_the_kernels_are_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Three rows, two of which share a prompt; in float32."""
    decoder = trained(CONFIGS[name])
    expected, states = drawn(arranged(decoder, on_cpu=True, precision="fp32"))
    calls = interpreted(monkeypatch)
    tokens, ours = drawn(arranged(decoder, on_cpu=False, precision="fp32"))
    assert tokens == expected
    assert apart(ours, states) <= TOLERANCE["fp32"]
    assert calls["store_heads"] == NUM_STEPS * 2


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", ["cm3leon, head norms", "llama, grouped"])
def test_tokens_read_ahead_are_those_of_steps(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    inference = arranged(trained(CONFIGS[name]), on_cpu=False, precision="fp32")
    calls = interpreted(monkeypatch)
    chunk_B4 = torch.arange(8).view(2, 4)

    def begun() -> Any:
        cache = inference.allocate_cache(1, 12)
        inference.hidden_states(torch.arange(4)[None], cache=cache)
        cache.advance([4])
        cache.select([0, 0])
        cache.reserve([4, 4])
        return cache

    cache, steps = begun(), []
    for token_B1 in chunk_B4.split(1, dim=1):
        steps.append(inference.hidden_states(token_B1, cache=cache))
        cache.advance([1, 1])
    ahead = inference.hidden_states_ahead(chunk_B4, cache=begun())
    torch.testing.assert_close(ahead, torch.cat(steps, 1), rtol=1e-4, atol=1e-5)
    assert calls["store_heads"] == 5 * 2
