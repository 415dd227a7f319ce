"""What a device changes: attention, loss, precision, memory for keys and values, heads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cm3core.errors import DeviceError, RecipeError
from cm3core.interfaces.attention import AttentionConfig
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose
from cm3plugins.attention import ByDeviceAttentionConfig, SDPAAttentionConfig, TritonAttentionConfig
from cm3run.devices import (
    cache_limit,
    choose_device,
    choose_precision,
    device_of_process,
    multiplies_bf16,
)
from cm3run.model.model import load
from cm3run.training.memory import training_memory
from messages import tells


def test_what_multiplies_bfloat16_is_asked_of_that_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question that torch answers is of the current device."""
    current = [0]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index or 0

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert not multiplies_bf16(torch.device("cuda:0"))
    assert multiplies_bf16(torch.device("cuda:1"))
    assert choose_precision("auto", torch.device("cuda:1")) == (
        torch.bfloat16,
        "bf16 autocast (card 1 supports it)",
    )


def test_a_model_s_device_is_tried_out() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError) as caught:
        load(device="cuda:99")
    assert str(caught.value).startswith("device 'cuda:99': can't be used here (")
    with pytest.raises(DeviceError) as caught:
        choose_device("meta")
    assert tells(caught.value, "device 'meta': can't be used ... Tensor.item ... GPU")


def test_keys_and_values_share_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 float32 numbers, twice: 8,000 of 20,000 bytes; half of the rest."""
    decoder = nn.Linear(100, 10, bias=False)
    monkeypatch.setenv("CM3_MEMORY_GB", "0.00002")
    assert cache_limit(decoder, torch.device("cpu")) == 6_000
    monkeypatch.setenv("CM3_MEMORY_GB", "0.000005")
    assert cache_limit(decoder, torch.device("cpu")) == 0
    assert cache_limit(decoder, torch.device("meta")) is None


def test_attention_by_device() -> None:
    chosen: AttentionConfig = ByDeviceAttentionConfig()
    assert isinstance(chosen.for_device("cuda"), TritonAttentionConfig)
    assert isinstance(chosen.for_device("cpu"), SDPAAttentionConfig)
    assert chosen.build().is_plain_softmax
    q = torch.randn(2, 7, 2, 16, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[0, 0, 0, 3, 3, 3, 3], [0] * 7])
    same = (
        config.build().attend(q, q, q, kv_start_BT=start)
        for config in (ByDeviceAttentionConfig(), SDPAAttentionConfig())
    )
    assert torch.equal(*same)


def test_a_gpu_s_training_memory_counts_no_mask_and_larger_chunks_of_the_loss() -> None:
    """8 rows of 4,096 tokens, 24 layers of 16 heads: on a CPU the probabilities of documents of at most 1,024
    tokens in blocks of 128 queries, 2 bytes each, which are more than a mask: (1024 + 128) / 2 keys a query. A
    chunk's logits: 32 MiB there, 1 GiB on a GPU, and their gradient as large."""
    recipe = compose("cm3leon-350m", registry=load_registry())
    cpu, gpu = (training_memory(recipe, on_cpu=on_cpu) for on_cpu in (True, False))
    assert cpu is not None
    assert gpu is not None
    assert cpu.activations - gpu.activations == 24 * 8 * 4096 * 16 * 576 * 2 - 2 * (2**30 - 2**25)


def test_heads_that_the_backend_can_t_take_are_refused_with_the_recipe() -> None:
    recipe = compose(
        "tiny",
        ["attention=triton", "decoder.d_model=288", "decoder.num_heads=2"],
        registry=load_registry(),
    )
    with pytest.raises(RecipeError) as caught:
        recipe.check()
    assert tells(caught.value, "attention: 'triton' supports heads ... most 128 ... have 144")


def test_heads_that_no_kernel_takes_are_attended_to_as_a_whole_on_a_gpu() -> None:
    from cm3plugins.decoders.cache import CacheLayout

    backend = SimpleNamespace(is_plain_softmax=True)
    parts = {
        (dim, on_cpu): CacheLayout(
            1, 1, dim, torch.float32, torch.device("cpu"), backend, on_cpu
        ).in_parts
        for dim in (5, 128, 129)
        for on_cpu in (False, True)
    }
    assert [key for key, value in parts.items() if not value] == [(129, False)]


@pytest.mark.parametrize(
    ("device", "number", "expected"),
    [
        (None, 8, ["cuda:0", "cuda:1", "cuda:7", "cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:1", "cuda:0"]),
        (None, 0, [None] * 4),
        ("cuda", 0, ["cuda"] * 4),
        ("cpu", 8, ["cpu"] * 4),
        ("cuda:3", 8, ["cuda:3"] * 4),
    ],
)
def test_processes_take_gpus_in_turn(
    device: str | None, number: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    assert [device_of_process(device, process) for process in (0, 1, 7, 8)] == expected
