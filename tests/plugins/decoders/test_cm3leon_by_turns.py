"""New tokens of the cm3leon decoder as on a GPU: kernels write the heads, attend, and add what a norm reads. Here they
are interpreted."""

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
from cm3leon_parts import TINY, build
from cm3plugins.decoders import cache as pool
from cm3plugins.decoders.cm3leon import model
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder, CM3LeonInference

OPS = ((model, "add_norm"), (pool, "store_heads"), (pool, "segment_decode"))
NUM_STEPS = 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The kernels run whatever the device, and are counted."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")
    if not interprets():
        pytest.skip("TRITON_INTERPRET is not 1: kernels don't run on the CPU")
    monkeypatch.setattr(pool, "SHARING_PAYS", 0)
    found: Counter[str] = Counter()
    for place, name in OPS:
        kernel = partial(getattr(place, name), implementation="triton")

        def counted(
            *arguments: Any, _name: str = name, _kernel: Any = kernel, **options: Any
        ) -> Any:
            found[_name] += 1
            return _kernel(*arguments, **options)

        monkeypatch.setattr(place, name, counted)
    return found


def trained(**options: Any) -> CM3LeonDecoder:
    """A decoder whose branches are not zero, as they are before training."""
    decoder = build(replace(TINY, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in decoder.named_parameters():
            if name.endswith("_norm.weight"):
                one.uniform_(0.5, 1.5, generator=generator)
            else:
                one.normal_(std=0.2, generator=generator)
    return decoder


def arranged(decoder: CM3LeonDecoder, *, on_cpu: bool, precision: str) -> CM3LeonInference:
    inference = decoder.for_inference(precision)
    assert isinstance(inference, CM3LeonInference)
    inference.on_cpu = on_cpu
    # keys and values in the products' dtype, as on a GPU
    dtype = inference.layout.dtype if on_cpu else inference.dtype
    inference.layout = replace(inference.layout, on_cpu=on_cpu, dtype=dtype)
    return inference


def drawn(
    inference: CM3LeonInference, prompts: Sequence[int], rows: Sequence[int]
) -> tuple[list[list[int]], Tensor]:
    """The likeliest tokens of rows after two prompts, and the hidden states of all steps."""
    caches = []
    for number, length in enumerate(prompts):
        cache = inference.allocate_cache(1, 16)
        prompt = torch.arange(length)[None] + 3 * number
        hidden = inference.hidden_states(prompt, cache=cache)
        cache.advance([length])
        caches.append(cache)
    cache = caches[0]
    cache.join(caches[1])
    cache.select(rows)
    cache.reserve([6] * len(rows))
    token_B1 = torch.arange(len(rows))[:, None]  # else rows of one prompt would be alike
    tokens, states = [], []
    for _ in range(NUM_STEPS):
        hidden = inference.hidden_states(token_B1, cache=cache)
        cache.advance([1] * len(rows))
        token_B1 = inference.logits(hidden)[:, -1].argmax(-1, keepdim=True)
        tokens.append(token_B1[:, 0].tolist())
        states.append(hidden.float())
    return tokens, torch.cat(states, 1)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_formulas_have_the_bits_of_layers_one_by_one(
    monkeypatch: pytest.MonkeyPatch, precision: str, qk_norm: bool
) -> None:
    """What the kernels are compared with in `tests/kernels`: sums and norms round where they do elsewhere."""
    decoder = trained(qk_norm=qk_norm)
    monkeypatch.setattr(pool, "SHARING_PAYS", 0)
    inference = arranged(decoder, on_cpu=False, precision=precision)
    tokens, states = drawn(inference, (5, 3), (0, 0, 1))
    monkeypatch.setattr(pool.Reading, "by_turns", False)
    expected, before = drawn(inference, (5, 3), (0, 0, 1))
    assert tokens == expected
    assert torch.equal(states, before)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True, "activation": "gelu"}], ids=["plain", "head norms"]
)
def test_tokens_are_those_of_the_cpu(calls: Counter[str], options: dict[str, Any]) -> None:
    """Three rows, two of which share a prompt; in float32, where both round alike but for the order of sums."""
    decoder = trained(**options)
    expected, states = drawn(arranged(decoder, on_cpu=True, precision="fp32"), (5, 3), (0, 0, 1))
    assert not calls
    tokens, ours = drawn(arranged(decoder, on_cpu=False, precision="fp32"), (5, 3), (0, 0, 1))
    assert tokens == expected
    torch.testing.assert_close(ours, states, rtol=1e-4, atol=1e-5)
    layers = NUM_STEPS * TINY.num_layers
    assert calls == {
        "add_norm": 2 * layers + NUM_STEPS,
        "store_heads": layers,
        "segment_decode": layers,
    }


@pytest.mark.slow
@torch.inference_mode()
def test_tokens_read_ahead_are_those_of_steps(calls: Counter[str]) -> None:
    decoder = trained(qk_norm=True)
    inference = arranged(decoder, on_cpu=False, precision="fp32")
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
    assert calls["store_heads"] == 5 * TINY.num_layers


@pytest.mark.slow
@torch.inference_mode()
def test_shifted_tokens_take_the_way_of_before(calls: Counter[str]) -> None:
    """Their keys come from another input than queries and values."""
    decoder = trained(token_shift=True)
    expected, _ = drawn(arranged(decoder, on_cpu=True, precision="fp32"), (5, 3), (0, 1))
    tokens, _ = drawn(arranged(decoder, on_cpu=False, precision="fp32"), (5, 3), (0, 1))
    assert tokens == expected
    assert set(calls) == {"segment_decode"}
