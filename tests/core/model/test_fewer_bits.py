"""The precision that a model takes: measured, refused, or left as stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cm3core
from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3core.model import Model
from cm3core.model.fewer_bits import arranged, drawing, held_out
from cm3plugins.decoders import packed


@pytest.fixture(scope="module")
def model() -> Model:
    return cm3core.load("bundled:emoji64", device="cpu")


def taken(model: Model, precision: str) -> tuple[Any, list[str]]:
    """The arrangement, and what was told."""
    told: list[str] = []
    parts = model.components
    most = model.recipe.data.max_text_tokens
    made = arranged(
        parts.decoder, precision, lambda: held_out(parts, most), parts.vocabulary, told.append
    )
    return made, told


def test_documents_have_texts_and_codes(model: Model) -> None:
    documents = held_out(model.components, model.recipe.data.max_text_tokens)
    assert [bool((one.cells >= 0).any()) for one in documents] == [True, True, False, False]
    pixels = drawing()
    assert pixels.shape == (256, 256, 3)
    assert len(set(map(tuple, pixels[::8, 90].tolist()))) > 4  # sky, roof, wall, hill


def test_int8_passes_and_says_how_well(model: Model) -> None:
    made, told = taken(model, "int8")
    assert made.precision == "int8"
    assert told[0].startswith("precision int8: 0.0")
    assert told[0].endswith("of sure tokens the same")


def test_a_small_decoder_stays_as_stored(model: Model) -> None:
    made, told = taken(model, "auto")
    assert made.dtype == torch.float32
    assert told == []


def test_auto_takes_bfloat16_where_the_cpu_multiplies_it_and_predictions_stay(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGE_DECODER", 1)
    monkeypatch.setattr(packed, "cpu_multiplies_bf16", lambda: True)
    made, told = taken(model, "auto")
    assert made.dtype == torch.bfloat16
    assert told[0].startswith("precision bf16, which this machine multiplies faster: 0.0")
    monkeypatch.setattr("cm3core.generation.agreement.MOST_DIVERGENCE", 0.0)
    made, told = taken(model, "auto")
    assert made.dtype == torch.float32
    assert told[0].startswith("precision as stored, not bf16: it would be 0.0")
    monkeypatch.setattr(packed, "cpu_multiplies_bf16", lambda: False)
    assert taken(model, "auto")[1] == []


def test_harm_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # as if 4 bits were 1
    decoder = model.components.decoder
    real = type(decoder).for_inference

    def coarse(self: Decoder, precision: str = "auto") -> Any:
        if precision != "int4":
            return real(self, precision)
        with torch.no_grad():
            kept = [one.clone() for one in self.module.parameters()]
            for one in self.module.parameters():
                one.copy_(one.sign() * one.abs().mean())
            made = real(self, "bf16")
            for one, before in zip(self.module.parameters(), kept, strict=True):
                one.copy_(before)
        return made

    monkeypatch.setattr(type(decoder), "for_inference", coarse)
    with pytest.raises(GenerationError) as error:
        taken(model, "int4")
    assert str(error.value).startswith("precision int4: changes what this model predicts: ")
    assert str(error.value).endswith("(at most 0.05 nats)\n  next: use int8 or bf16")
