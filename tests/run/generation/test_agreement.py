"""The gate of fewer bits: divergences by hand, nothing to compare, what passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import NO_CELL, TokenSequence
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.model.precision import MOST_TOKENS, Agreement, Reference
from messages import tells

VOCABULARY = CM3LeonVocabulary(6, 4, num_sentinels=1)


class Table:
    """A decoder whose logits are a row of a table for each token."""

    device = torch.device("cpu")

    def __init__(self, table_VR: torch.Tensor) -> None:
        self.table_VR = table_VR

    def allocate_cache(self, num_rows: int, max_length: int) -> None:
        return None

    def hidden_states(self, tokens_BT: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.table_VR[tokens_BT]

    def logits(self, hidden: torch.Tensor, ids: range | None = None) -> torch.Tensor:
        return hidden if ids is None else hidden[..., ids.start : ids.stop]


def sequence(tokens: list[int], cells: list[int]) -> TokenSequence:
    return TokenSequence(np.array(tokens, np.int32), np.array(cells, np.int32), ())


def compared(exact_VR: torch.Tensor, other_VR: torch.Tensor, one: TokenSequence) -> Agreement:
    exact: Any = Table(exact_VR)
    other: Any = Table(other_VR)
    return Reference(exact, [one], VOCABULARY).agreement(other)


def test_two_texts_and_a_code_by_hand() -> None:
    size = VOCABULARY.size
    exact_VR = torch.full((size, size), -torch.inf)
    exact_VR[:, :2] = 0.0  # two ids, equally probable
    exact_VR[1, 1] = 3.0  # behind 1: sure of 1
    exact_VR[:, VOCABULARY.image.start : VOCABULARY.image.stop] = torch.tensor([1.0, 0, 0, 0])
    exact_VR[:2, VOCABULARY.image.start : VOCABULARY.image.stop] = -torch.inf
    other_VR = exact_VR.clone()
    other_VR[0, 1] = np.log(3)  # 1/2, 1/2 becomes 1/4, 3/4
    other_VR[2, VOCABULARY.image.start + 2] = 2.0  # another code
    code = VOCABULARY.image.start
    # predictions behind 0, 1 (texts) and 2 (a code)
    found = compared(exact_VR, other_VR, sequence([0, 1, 2, code], [NO_CELL] * 3 + [0]))
    of_text = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    p_R = np.exp([1.0, 0, 0, 0]) / (np.e + 3)
    q_R = np.exp([1.0, 0, 2, 0]) / (np.e + 2 + np.e**2)
    of_code = float((p_R * np.log(p_R / q_R)).sum())
    assert found.num == 3
    assert found.divergence == pytest.approx((of_text + 0 + of_code) / 3, abs=1e-6)
    # sure: of 1 behind 1, and of the first code
    assert found.same_where_sure == 0.5
    assert found.same == pytest.approx(1 / 3)
    assert not found.passes
    assert tells(found, f"{found.divergence:.4f} nats per token ... 50.0")


@given(seed=st.integers(0, 1000), spread=st.floats(0, 4))
def test_a_decoder_agrees_with_itself(seed: int, spread: float) -> None:
    table_VR = spread * torch.randn(
        VOCABULARY.size, VOCABULARY.size, generator=torch.Generator().manual_seed(seed)
    )
    one = sequence([0, 1, 2, VOCABULARY.image.start], [NO_CELL] * 3 + [0])
    found = compared(table_VR, table_VR + 2.0, one)  # a constant changes no probability
    assert found.divergence == pytest.approx(0, abs=1e-5)
    assert found.same_where_sure == 1
    assert found.passes


def test_long_sequences_are_cut_and_none_is_no_proof() -> None:
    table_VR = torch.zeros(VOCABULARY.size, VOCABULARY.size)
    long = sequence([0] * (3 * MOST_TOKENS), [NO_CELL] * (3 * MOST_TOKENS))
    assert compared(table_VR, table_VR, long).num == MOST_TOKENS - 1
    table: Any = Table(table_VR)
    assert not Reference(table, [], VOCABULARY).agreement(table).passes


def test_a_few_logits_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    exact_VR, other_VR = torch.randn(2, VOCABULARY.size, VOCABULARY.size, generator=generator)
    codes = list(VOCABULARY.image)
    one = sequence([0, 1, 2, 3, 4, *codes], [NO_CELL] * 5 + list(range(len(codes))))
    whole = compared(exact_VR, other_VR, one)
    monkeypatch.setattr("cm3run.model.precision.MOST_LOGITS", 2 * len(codes))
    by_parts = compared(exact_VR, other_VR, one)
    assert by_parts.num == whole.num == 8
    assert by_parts.divergence == pytest.approx(whole.divergence, rel=1e-5)
    assert (by_parts.same, by_parts.same_where_sure) == (whole.same, whole.same_where_sure)


def test_the_exact_predictions_are_read_once() -> None:
    table: Any = Table(torch.zeros(VOCABULARY.size, VOCABULARY.size))
    calls: list[int] = []
    table.allocate_cache = lambda num_rows, max_length: calls.append(max_length)
    reference = Reference(table, [sequence([0, 1, 2], [NO_CELL] * 3)], VOCABULARY)
    other: Any = Table(table.table_VR)
    assert reference.agreement(other).passes_unasked
    assert reference.agreement(other).passes_unasked
    assert calls == [2]


def test_what_nobody_asked_for_may_change_less() -> None:
    assert Agreement(0.01, 1.0, 0.98, 10).passes_unasked
    assert not Agreement(0.0101, 1.0, 1.0, 10).passes_unasked
    assert Agreement(0.05, 1.0, 1.0, 10).passes
    assert not Agreement(0.0, 1.0, 0.97, 10).passes_unasked
