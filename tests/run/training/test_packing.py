"""Packing by hand; nothing is lost, split or seen by another; rows fill up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import MaskedSequence
from cm3core.errors import DocumentError
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.training.packing import Packer, collate
from messages import tells

VOCABULARY = CM3LeonVocabulary(num_text=10, num_image=4, num_sentinels=2)


def masked(*tokens: int) -> MaskedSequence:
    row = np.asarray(tokens, np.int32)
    is_image = (row >= VOCABULARY.image.start) & (row < VOCABULARY.image.stop)
    return MaskedSequence(
        row,
        np.where(is_image, row - VOCABULARY.image.start, -1).astype(np.int32),
        np.linspace(0.5, 1, len(row)).astype(np.float32),
    )


def test_by_hand() -> None:
    batch = collate([[masked(2, 5, 14, 11, 2), masked(2, 6, 2)], [masked(2, 12, 2)]], 7, VOCABULARY)
    assert batch.tokens_BT.tolist() == [[2, 5, 14, 11, 2, 6, 1], [2, 12, 1, 1, 1, 1, 1]]
    assert batch.targets_BT.tolist() == [[5, 14, 11, 2, 6, 2, 1], [12, 2, 1, 1, 1, 1, 1]]
    assert batch.weights_BT.tolist() == [
        [0.625, 0.75, 0.875, 1, 0.75, 1, 0],
        [0.75, 1, 0, 0, 0, 0, 0],
    ]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.cells_BT.tolist() == [[-1, -1, -1, 1, -1, -1, -1], [-1, 2, -1, -1, -1, -1, -1]]
    assert batch.kv_start_BT.tolist() == [[0, 0, 0, 0, 4, 4, 6], [0, 0, 2, 2, 2, 2, 2]]
    assert batch.modality_BT.tolist() == [[1, 3, 2, 3, 1, 3, 0], [2, 3, 0, 0, 0, 0, 0]]
    assert batch.num_tokens == 8
    dtypes = [
        tensor.dtype
        for tensor in (batch.tokens_BT, batch.weights_BT, batch.positions_BT, batch.modality_BT)
    ]
    assert dtypes == [torch.int64, torch.float32, torch.int64, torch.int8]


@given(lengths=st.lists(st.integers(2, 12), max_size=40), window=st.integers(1, 8))
def test_every_sequence_is_in_exactly_one_row(lengths: list[int], window: int) -> None:
    packer: Packer[int] = Packer(11, window)
    rows = []
    for key, length in enumerate(lengths):
        packer.add(key, masked(2, *[4 + key % 6] * (length - 2), 2))
        while packer.is_full:
            rows.append(packer.next_row())
    while row := packer.next_row():
        rows.append(row)
    assert all(sum(len(sequence) - 1 for sequence in row) <= 11 for row in rows)
    assert all(rows)
    assert sorted(len(sequence) for row in rows for sequence in row) == sorted(lengths)
    batch = collate(rows, 11, VOCABULARY)
    used = batch.modality_BT != 0
    assert int(used.sum()) == sum(length - 1 for length in lengths)
    index = torch.arange(11).expand(len(rows), 11)
    assert bool((batch.kv_start_BT <= index).all())
    assert bool((batch.positions_BT == index - batch.kv_start_BT)[used].all())
    starts = batch.tokens_BT.gather(1, batch.kv_start_BT) if rows else batch.tokens_BT
    assert bool((starts[used] == 2).all())  # what a token sees begins with its own <eos>


def test_the_oldest_goes_first() -> None:
    packer: Packer[str] = Packer(6, 3)
    for key, length in (("long", 7), ("short", 3), ("also short", 3)):
        packer.add(key, masked(*[2] * length))
    assert [len(sequence) for sequence in packer.next_row()] == [7]
    assert [len(sequence) for sequence in packer.next_row()] == [3, 3]
    assert packer.next_row() == []


def test_a_window_fills_rows() -> None:
    """Rows of 600 with sequences of 200 to 400 inputs: at least 85% full with the default
    window."""
    rng = np.random.default_rng(0)
    packer: Packer[int] = Packer(600)
    used, rows = 0, 0
    for key in range(1000):
        packer.add(key, masked(*[2] * int(rng.integers(201, 402))))
        if packer.is_full:
            used += sum(len(sequence) - 1 for sequence in packer.next_row())
            rows += 1
    assert used / (600 * rows) > 0.85


def test_a_sequence_longer_than_a_row_is_explained() -> None:
    with pytest.raises(DocumentError) as caught:
        Packer(3).add("a/b", masked(2, 4, 4, 4, 2))
    assert tells(
        caught.value, "sequence a/b: 5 tokens, but a ... holds 4 ... decoder.context_length"
    )
