"""The objectives' kit: each law fails for an objective that is wrong in just that way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import move_spans
from cm3core.vocab import Vocabulary
from cm3kits.objective import ObjectiveContract
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from kit_mutants import assert_covers, assert_law_fails, cases


class Right(MaskingObjective):
    """The bundled CM3 objective, a way to spoil what it gives."""

    def __init__(self, config: CM3ObjectiveConfig, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.inner, self.calls = vocabulary, config.build(vocabulary), 0

    @property
    def max_added_tokens(self) -> int:
        return self.inner.max_added_tokens

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        self.calls += 1
        return self.spoil(sequence, self.inner.mask(sequence, rng, max_length))

    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return masked


CONFIG = CM3ObjectiveConfig(lambda_spans=3.0)


class UnsaidConfig(CM3ObjectiveConfig):
    masks_retrieved = False


UNSAID = UnsaidConfig(lambda_spans=3.0)


class TestRight(ObjectiveContract):
    config = CONFIG

    def build(self, config: Any) -> MaskingObjective:
        return Right(config, self.vocabulary)


class TurnsCells(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        cells, where = masked.cells.copy(), masked.cells >= 0
        cells[where] = cells[where][::-1]
        return replace(masked, cells=cells)


class ForgetsCells(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, cells=np.full_like(masked.cells, -1))


class CountsItsCalls(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=masked.weights * np.float32(self.calls))


class ReadsTheGlobalGenerator(Right):
    """It masks by numpy's global state, which it does not advance."""

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        own = np.random.default_rng(np.random.get_state()[1][:4])  # type: ignore[index]  # noqa: NPY002  # on purpose
        return self.inner.mask(sequence, own, max_length)


class WritesOnTheSequence(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        sequence.cells[:] = -1
        return masked


class SwapsTokens(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        tokens = masked.tokens.copy()
        tokens[1:3] = tokens[1:3][::-1].copy()
        return replace(masked, tokens=tokens)


class RepeatsAToken(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        tokens = masked.tokens.copy()
        tokens[1:3] = tokens[1]
        return replace(masked, tokens=tokens)


class MasksInPlace(Right):
    """As masked language models do: a token is lost behind the sentinel."""

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        tokens = sequence.tokens.copy()
        tokens[1] = self.vocabulary.sentinel(0)
        return MaskedSequence(tokens, sequence.cells, np.ones(len(tokens), np.float32))


class DoubleWeights(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=masked.weights.astype(np.float64))  # type: ignore[arg-type]  # wrong on purpose


class NegativeWeights(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=-masked.weights)


class LongTokens(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, tokens=masked.tokens.astype(np.int64))  # type: ignore[arg-type]  # wrong on purpose


class OneWeightTooMany(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=np.append(masked.weights, np.float32(1)))


class WeightsOfTheTokenBefore(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=np.roll(masked.weights, 1))


class WeightsStay(Right):
    """A span's weights stay where it was."""

    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        weights = np.ones(len(masked), np.float32)
        weights[: len(sequence)] = self.inner.config.weights_of(sequence, self.vocabulary)
        return replace(masked, weights=weights)


class IgnoresRetrievedLossWeight(Right):
    def __init__(self, config: CM3ObjectiveConfig, vocabulary: Vocabulary) -> None:
        super().__init__(replace(config, retrieved_loss_weight=1.0), vocabulary)


class TrainsNothing(Right):
    def spoil(self, sequence: TokenSequence, masked: MaskedSequence) -> MaskedSequence:
        return replace(masked, weights=np.zeros_like(masked.weights))


class MovesBreaks(Right):
    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        breaks = np.flatnonzero(sequence.tokens == self.vocabulary.break_).tolist()
        spans = [(place, place + 1) for place in breaks[:1] if max_length >= len(sequence) + 3]
        return move_spans(sequence, spans, np.ones(len(sequence), np.float32), self.vocabulary)


class MovesSpansAcrossSegments(Right):
    """A span from one segment into the next, its <break> left out."""

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        spans = (
            [(1, len(sequence) - 1)]
            if max_length >= len(sequence) + 3 and len(sequence) > 2
            else []
        )
        return move_spans(sequence, spans, np.ones(len(sequence), np.float32), self.vocabulary)


class ReservesNothing(Right):
    max_added_tokens = 0


class ReservesOneTooFew(Right):
    """Seen only where every span is used."""

    @property
    def max_added_tokens(self) -> int:
        return self.inner.max_added_tokens - 1


class ReservesMoreAndMore(Right):
    @property
    def max_added_tokens(self) -> int:
        self.calls += 1
        return 100 + self.calls


class CutsWhatIsTooLong(Right):
    def mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        return MaskedSequence(
            sequence.tokens[:max_length],
            sequence.cells[:max_length],
            np.ones(max_length, np.float32),
        )


MUTANTS = {
    "cells_move_along": [TurnsCells, ForgetsCells],
    "equal_generators_give_equal_results": [
        CountsItsCalls,
        WritesOnTheSequence,
        ReadsTheGlobalGenerator,
    ],
    "loss_weights_belong_to_their_tokens": [
        WeightsOfTheTokenBefore,
        WeightsStay,
        IgnoresRetrievedLossWeight,
    ],
    "masking_is_reversible": [SwapsTokens, RepeatsAToken, MasksInPlace],
    "no_room_means_no_masking": [MasksInPlace, SwapsTokens],
    "retrieved_documents_are_whole": [Right],
    "shapes_and_types": [DoubleWeights, NegativeWeights, LongTokens, OneWeightTooMany],
    "something_is_trained": [TrainsNothing],
    "spans_hold_no_specials": [MovesBreaks, MovesSpansAcrossSegments],
    "specials_stay": [MovesBreaks],
    "the_reserve_is_enough": [ReservesNothing, ReservesOneTooFew, ReservesMoreAndMore],
    "too_long_is_refused": [CutsWhatIsTooLong],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_objective_fails(law: str, wrong: type[Right]) -> None:
    # random spans of the whole sequence, which it does not say
    unsaid = law == "retrieved_documents_are_whole"
    assert_law_fails(
        ObjectiveContract,
        law,
        {
            "config": UNSAID if unsaid else CONFIG,
            "build": lambda self, config: wrong(config, self.vocabulary),
        },
    )


def test_every_law_has_a_mutant() -> None:
    assert_covers(ObjectiveContract, MUTANTS)
