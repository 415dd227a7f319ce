"""The precision that a model takes: measured, refused, or left as stored."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import cm3core
from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3plugins.decoders import products as faster
from cm3run.model import Model
from cm3run.model.precision import Agreement, Reference, arranged, drawing, held_out
from messages import tells


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


def test_a_small_decoder_stays_as_stored_where_nothing_is_compiled(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_NATIVE", "0")
    made, told = taken(model, "auto")
    assert made.dtype == torch.float32
    assert told == []


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if decoders were large from one parameter on, on a CPU that multiplies bytes and bfloat16."""
    monkeypatch.setattr(faster, "LARGE_DECODER", 1)
    monkeypatch.setattr(faster, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(faster, "rounds_inputs", lambda device: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return monkeypatch


def test_auto_takes_int8_where_the_cpu_multiplies_bytes_and_predictions_stay(
    model: Model, large: pytest.MonkeyPatch
) -> None:
    made, told = taken(model, "auto")
    assert made.precision == "int8"
    assert len(told) == 1
    assert told[0].startswith("precision int8, which is faster on this machine: 0.0")
    assert tells(told[0], "...  nats per token ... 100.0")


def test_auto_says_nothing_of_changes_that_nobody_sees(
    model: Model, large: pytest.MonkeyPatch
) -> None:
    for divergence, number in ((0.0005, 0), (0.00051, 1)):
        found = Agreement(divergence, 1.0, 1.0, 10)
        large.setattr(Reference, "agreement", lambda self, other, found=found: found)
        made, told = taken(model, "auto")
        assert (made.precision, len(told)) == ("int8", number)
        _, told = taken(model, "int8")
        assert len(told) == 1, "who asks for it is told"


def test_auto_falls_to_bf16_and_to_what_is_stored(model: Model, large: pytest.MonkeyPatch) -> None:
    agreements = {
        "int8": Agreement(0.0101, 0.9, 1.0, 10),
        "bf16": Agreement(0.0006, 1.0, 1.0, 10),
    }
    large.setattr(Reference, "agreement", lambda self, other: agreements[other.precision])
    refused = (
        "precision int8 is not used: 0.0101 nats per token from the exact predictions, 100.0% of sure "
        "tokens the same (at most 0.01 nats, 98%)"
    )
    made, told = taken(model, "auto")
    assert made.precision == "bf16"
    assert told == [
        refused,
        "precision bf16, which is faster on this machine: 0.0006 nats per token from the exact "
        "predictions, 100.0% of sure tokens the same",
    ]
    agreements["bf16"] = Agreement(0.0006, 0.9, 0.97, 10)
    made, told = taken(model, "auto")
    assert made.dtype == torch.float32
    assert told == [
        refused,
        "precision bf16 is not used: 0.0006 nats per token from the exact predictions, 97.0% of sure "
        "tokens the same (at most 0.01 nats, 98%)",
        "precision as stored",
    ]


def test_auto_goes_on_where_a_precision_is_refused(model: Model, large: pytest.MonkeyPatch) -> None:
    decoder = model.components.decoder
    real = type(decoder).for_inference

    def without_room(self: Decoder, precision: str = "auto") -> Any:
        if precision == "int8":
            raise GenerationError("precision", "takes 7.0 GB", "use int4")
        return real(self, precision)

    large.setattr(type(decoder), "for_inference", without_room)
    made, told = taken(model, "auto")
    assert made.precision == "bf16"
    assert told[0] == "precision int8 is not used: takes 7.0 GB"
    with pytest.raises(GenerationError, match=r"takes 7\.0 GB"):  # who asks is refused
        taken(model, "int8")


def test_arrangements_that_are_not_taken_are_gone_before_the_next(
    model: Model, large: pytest.MonkeyPatch
) -> None:
    decoder = model.components.decoder
    real = type(decoder).for_inference
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def counted(self: Decoder, precision: str = "auto") -> Any:
        alive.append(sum(one() is not None for one in made))
        arrangement = real(self, precision)
        if precision != "stored":  # which has no memory of its own
            made.append(weakref.ref(arrangement))
        return arrangement

    large.setattr(type(decoder), "for_inference", counted)
    large.setattr(Reference, "agreement", lambda self, other: Agreement(1.0, 0.0, 0.0, 10))
    gc.disable()
    try:
        kept, told = taken(model, "auto")
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]  # in place, int8, bf16, as stored
    assert kept.dtype == torch.float32
    assert told[-1] == "precision as stored"


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
    assert str(error.value).startswith("precision int4: changes this model's predictions: ")
    assert str(error.value).endswith("(at most 0.05 nats)\n  next: use int8 or bf16")
