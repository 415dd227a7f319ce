"""Validation counts the query document's own tokens, unmasked, the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3core.document import PixelArray, Span, TokenSequence
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.build import build
from cm3run.training.packing import TrainingBatch
from cm3run.training.preparation import Preparation
from cm3run.training.validation import UnmaskedObjective, Validation, spread
from numbered_documents import Numbers

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


def test_weights_by_hand() -> None:
    """<eos> T <break> I <break> Tq <break> Iq <eos>: loss from the query's text on, to the end."""
    spans = tuple(
        Span(start, start + 1, kind)
        for start, kind in ((1, "text"), (3, "image"), (5, "text"), (7, "image"))
    )
    sequence = TokenSequence(
        np.arange(9, dtype=np.int32), np.full(9, -1, np.int32), spans, query_segment=2
    )
    masked = UnmaskedObjective().mask(sequence, np.random.default_rng(0), 9)
    assert masked.tokens.tolist() == list(range(9))
    assert masked.weights.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_spread() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(2, 4) == [0, 1]
    assert spread(5, 1) == [0]


def test_measures_every_document_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four of five held-out documents of 16 codes; a loss of 0.5 per token is measured as 0.5."""
    registry = load_registry([PARTS / "train_parts.py"])
    recipe = compose(str(PARTS / "squares.yaml"), [f"data.cache_dir={tmp_path}"], registry=registry)
    validation = Validation(
        Preparation(build(recipe, registry, stage="train"), progress=False), progress=False
    )
    counts: list[torch.Tensor] = []

    def forward(batch: TrainingBatch) -> torch.Tensor:
        weights = torch.zeros(4).index_add_(
            0, batch.modality_BT.flatten().long(), batch.weights_BT.flatten()
        )
        counts.append(weights)
        return torch.stack([weights * 0.5, weights], dim=1)

    values = validation.measure(forward)
    assert values == {"validation/held/image_loss": 0.5, "validation/held/text_loss": 0.5}
    assert sum(count[2].item() for count in counts) == 4 * 16
    assert validation.measure(forward) == values
    assert capsys.readouterr().err.count("note: validation split 'absent' is skipped") == 1


def test_encodes_and_retrieves_for_the_documents_it_measures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents 0, 50 and 99 of 100: the batches are those of a split whose pictures are all encoded."""
    registry = load_registry([PARTS / "train_parts.py"])
    given = ["retriever=bm25", "retriever.num_retrieved=1", "train.validation_documents=3"]
    given += [f"data.cache_dir={tmp_path}", "decoder.context_length=128"]
    recipe = compose(str(PARTS / "squares.yaml"), given, registry=registry)
    components = build(recipe, registry, stage="train")
    tokenizer, retriever = components.image_tokenizer, components.retriever
    assert retriever is not None
    held = Numbers(100)
    monkeypatch.setattr(type(components), "split", lambda self, name: held)
    preparation = Preparation(components, progress=False)
    encoded, asked = 0, 0
    encode, retrieve = tokenizer.encode, retriever.retrieve

    def counting_encode(pixels: PixelArray) -> Any:
        nonlocal encoded
        encoded += len(pixels)
        return encode(pixels)

    def counting_retrieve(queries: Sequence[Any], *rest: Any) -> Any:
        nonlocal asked
        asked += len(queries)
        return retrieve(queries, *rest)

    monkeypatch.setattr(tokenizer, "encode", counting_encode)
    monkeypatch.setattr(retriever, "retrieve", counting_retrieve)
    measured: list[TrainingBatch] = []

    def forward(batch: TrainingBatch) -> torch.Tensor:
        measured.append(batch)
        return torch.ones(4, 2)

    validation = Validation(preparation, progress=False)
    validation.splits = ["held"]
    validation.measure(forward)
    assert (encoded, asked) == (3, 3)
    for retrieves in (False, True):
        every = preparation.sequences(held, UnmaskedObjective(), retrieve=retrieves, training=False)
        for batch in preparation.pack(every.fitting([0, 50, 99])):
            assert batch.tokens_BT.equal(measured[0].tokens_BT)
            assert batch.weights_BT.equal(measured.pop(0).weights_BT)
    assert not measured
    assert encoded == 3 + 100
