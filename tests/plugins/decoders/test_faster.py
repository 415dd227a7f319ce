"""Which precisions "auto" tries, and in which order."""

from __future__ import annotations

import pytest
import torch

import cm3core
from cm3plugins.decoders import faster
from cm3plugins.decoders.faster import LARGE_DECODER, faster_on_cpu, faster_precisions

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("parameters", "stored", "bytes_too", "bf16_too", "expected"),
    [
        (LARGE_DECODER, FP32, True, True, ("int8", "bf16")),
        (LARGE_DECODER - 1, FP32, True, True, ()),  # the bundled models: as they are, bit for bit
        (LARGE_DECODER, FP32, False, True, ("bf16",)),  # AMX, where int8 was not measured
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


def test_a_decoder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = cm3core.load("bundled:emoji64", device="cpu").components.decoder
    monkeypatch.setattr(faster, "rounds_inputs", lambda device: True)
    monkeypatch.setattr(faster, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert decoder.faster_precisions() == ()
    monkeypatch.setattr(faster, "LARGE_DECODER", 1)
    assert decoder.faster_precisions() == ("int8", "bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert decoder.faster_precisions() == ("bf16",)


def test_another_device_is_left_to_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnMeta:
        def parameters(self) -> list[torch.Tensor]:
            return [self.head_weight()]

        def head_weight(self) -> torch.Tensor:
            return torch.empty(LARGE_DECODER, 1, device="meta")

    monkeypatch.setattr(faster, "cpu_multiplies_bf16", lambda: True)
    assert faster_precisions(OnMeta()) == ()  # type: ignore[arg-type]  # only what is read of it
