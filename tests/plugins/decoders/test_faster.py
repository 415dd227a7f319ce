"""Which precisions "auto" tries, and in which order."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import cm3core
from cm3plugins.decoders import products as faster
from cm3plugins.decoders.cm3leon import model
from cm3plugins.decoders.products import (
    COMPILED_FROM,
    COMPILED_INT8_FROM,
    LARGE_DECODER,
    faster_on_cpu,
    faster_precisions,
)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("parameters", "stored", "bytes_too", "bf16_too", "expected"),
    [
        (LARGE_DECODER, FP32, True, True, ("int8", "bf16")),
        (LARGE_DECODER - 1, FP32, True, True, ()),
        (LARGE_DECODER, FP32, False, True, ("bf16",)),  # AMX without compiled code
        (LARGE_DECODER, FP32, True, False, ("int8",)),  # VNNI alone
        (LARGE_DECODER, FP32, False, False, ()),
        (LARGE_DECODER, BF16, True, True, ()),  # converted models: as they were published
        (LARGE_DECODER, FP16, True, True, ()),
    ],
)
def test_the_rule(
    parameters: int, stored: torch.dtype, bytes_too: bool, bf16_too: bool, expected: tuple[str, ...]
) -> None:
    assert faster_on_cpu(parameters, stored, bytes_too=bytes_too, bf16_too=bf16_too) == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (COMPILED_FROM - 1, ()),
        (COMPILED_FROM, ("bf16",)),
        (COMPILED_INT8_FROM - 1, ("bf16",)),
        (COMPILED_INT8_FROM, ("int8", "bf16")),
    ],
)
def test_the_rule_where_all_layers_are_one_call(parameters: int, expected: tuple[str, ...]) -> None:
    rule = partial(faster_on_cpu, parameters, bytes_too=True, bf16_too=True, in_one_call=True)
    assert rule(FP32) == expected
    assert rule(BF16) == ()


def test_a_decoder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = cm3core.load("bundled:emoji64", device="cpu").components.decoder
    monkeypatch.setattr(faster, "rounds_inputs", lambda device: True)
    monkeypatch.setattr(faster, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for possible, expected in ((False, ()), (True, ("bf16",))):
        monkeypatch.setattr(model, "can_compile", lambda possible=possible: possible)
        assert decoder.faster_precisions() == expected
    monkeypatch.setattr(faster, "LARGE_DECODER", 1)
    assert decoder.faster_precisions() == ("int8", "bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(faster, "COMPILED_INT8_FROM", 1)
    for possible, expected in ((False, ("bf16",)), (True, ("int8", "bf16"))):
        monkeypatch.setattr(model, "can_compile", lambda possible=possible: possible)
        assert decoder.faster_precisions() == expected


def test_another_device_is_left_to_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnMeta:
        def parameters(self) -> list[torch.Tensor]:
            return [self.head_weight()]

        def head_weight(self) -> torch.Tensor:
            return torch.empty(LARGE_DECODER, 1, device="meta")

    monkeypatch.setattr(faster, "cpu_multiplies_bf16", lambda: True)
    assert faster_precisions(OnMeta()) == ()  # type: ignore[arg-type]  # only what is read of it
