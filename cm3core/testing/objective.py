"""Conformance kit of objectives: what holds for every masking.

class TestMine(ObjectiveContract):
    config = MyObjectiveConfig()
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import NO_CELL, IntArray, MaskedSequence, TokenSequence
from cm3core.errors import DocumentError
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence.infill import unmask
from cm3core.testing._laws import Contract
from cm3core.testing.strategies import make_sequence, token_sequences
from cm3core.testing.vocabularies import make_vocabulary
from cm3core.vocab import Vocabulary

__all__ = ["ObjectiveContract", "make_sequence"]

#: Codes per side of a picture with more rows than the kit's vocabulary has sentinels.
_LARGE_SIDE = 33


class ObjectiveContract(Contract[MaskingObjective]):
    """Laws of `MaskingObjective`, built for `vocabulary`."""

    vocabulary: ClassVar[Vocabulary] = make_vocabulary(60, 16, 32)
    kind: ClassVar[str] = "objective"

    def build(self, config: Any) -> MaskingObjective:
        """Build for the kit's vocabulary, with the control tokens that the config asks for."""
        if own := tuple(config.control_tokens()):
            type(self).vocabulary = self.vocabulary.with_control(own)
        objective: MaskingObjective = config.build(self.vocabulary)
        return objective

    def _masked(self, data: st.DataObject) -> tuple[TokenSequence, MaskedSequence]:
        sequence = data.draw(token_sequences(self.vocabulary))
        max_length = len(sequence) + data.draw(st.integers(0, 64), label="room")
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        masked = self.subject.mask(sequence, rng, max_length)
        assert len(masked) <= max_length
        return sequence, masked

    def law_masking_is_reversible(self, data: st.DataObject) -> None:
        """Every span can be restored: nothing is cut, overwritten or repeated."""
        sequence, masked = self._masked(data)
        assert unmask(masked, self.vocabulary).tolist() == sequence.tokens.tolist()

    def law_shapes_and_types(self, data: st.DataObject) -> None:
        """int32, int32 and float32 of one length; weights are finite, >= 0, and 0 for <pad>."""
        _, masked = self._masked(data)
        assert masked.tokens.shape == masked.cells.shape == masked.weights.shape
        assert masked.tokens.dtype == masked.cells.dtype == np.int32
        assert masked.weights.dtype == np.float32
        assert np.isfinite(masked.weights).all()
        assert (masked.weights >= 0).all()
        assert not masked.weights[masked.tokens == self.vocabulary.pad].any()

    def law_spans_hold_no_specials(self, data: st.DataObject) -> None:
        """A moved span is not empty, of one modality and without <eos>, <break> or sentinels."""
        _, masked = self._masked(data)
        end = int(np.flatnonzero(masked.tokens == self.vocabulary.eos)[-1])
        moved = masked.tokens[end + 1 :].tolist()
        while moved:
            length = moved.index(self.vocabulary.end_of_infill)
            span, moved = moved[1:length], moved[length + 1 :]
            assert span
            assert all(token in self.vocabulary.text for token in span) or all(
                token in self.vocabulary.image for token in span
            )

    def law_specials_stay(self, data: st.DataObject) -> None:
        """Every <break> and the two <eos> stay in the body, so no span crosses a boundary."""
        sequence, masked = self._masked(data)
        special = [self.vocabulary.eos, self.vocabulary.break_]
        end = int(np.flatnonzero(masked.tokens == self.vocabulary.eos)[-1])
        body = masked.tokens[: end + 1]
        assert (
            body[np.isin(body, special)].tolist()
            == sequence.tokens[np.isin(sequence.tokens, special)].tolist()
        )

    def law_cells_move_along(self, data: st.DataObject) -> None:
        """Image codes keep their raster cells; nothing else has one."""
        sequence, masked = self._masked(data)
        is_image = np.isin(masked.tokens, self.vocabulary.image)
        assert ((masked.cells == NO_CELL) == ~is_image).all()
        as_cells = np.where(
            is_image, self.vocabulary.image.start + masked.cells, masked.tokens
        ).astype(np.int32)
        wanted = np.where(
            sequence.cells == NO_CELL, sequence.tokens, self.vocabulary.image.start + sequence.cells
        )
        assert (
            unmask(MaskedSequence(as_cells, masked.cells, masked.weights), self.vocabulary).tolist()
            == wanted.tolist()
        )

    def law_equal_generators_give_equal_results(self, data: st.DataObject) -> None:
        """The generator is the only source of randomness, and the sequence is not changed."""
        sequence = data.draw(token_sequences(self.vocabulary))
        before = sequence.tokens.copy(), sequence.cells.copy()
        seed = data.draw(st.integers(0, 2**32 - 1))
        first, second = (
            self.subject.mask(sequence, np.random.default_rng(seed), len(sequence) + 48)
            for _ in range(2)
        )
        assert np.array_equal(first.tokens, second.tokens)
        assert np.array_equal(first.weights, second.weights)
        assert np.array_equal(first.cells, second.cells)
        assert np.array_equal(sequence.tokens, before[0])
        assert np.array_equal(sequence.cells, before[1])

    def law_loss_weights_belong_to_their_tokens(self, data: st.DataObject) -> None:
        """`text_loss_weight` scales the weights of texts, `retrieved_loss_weight` those of others.

        That is: the text tokens of all documents, and all tokens before the last document, wherever
        their spans move; what the objective masks does not depend on the weights.
        """
        if self.config is None:
            return
        sequence = data.draw(token_sequences(self.vocabulary))
        seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
        plain, texts, retrieved = (
            self.build(dataclasses.replace(self.config, **weights)).mask(
                sequence, np.random.default_rng(seed), len(sequence) + 48
            )
            for weights in (
                {"text_loss_weight": 1.0, "retrieved_loss_weight": 1.0},
                {"text_loss_weight": 4.0, "retrieved_loss_weight": 1.0},
                {"text_loss_weight": 1.0, "retrieved_loss_weight": 0.25},
            )
        )
        assert plain.tokens.tolist() == texts.tokens.tolist() == retrieved.tokens.tolist()
        ordinary = np.isin(plain.tokens, [*self.vocabulary.text, *self.vocabulary.image])
        text = np.isin(plain.tokens, self.vocabulary.text)
        others = _places(plain, self.vocabulary) < sequence.segments[sequence.query_segment].start
        for weighed, expected in (
            (texts, np.where(text, 4.0, 1.0)),
            (retrieved, np.where(others, 0.25, 1.0)),
        ):
            np.testing.assert_allclose(
                weighed.weights[ordinary], (plain.weights * expected)[ordinary], rtol=1e-6
            )

    def law_something_is_trained(self, data: st.DataObject) -> None:
        """Some token of a document with text and picture has a loss."""
        sequence = make_sequence(
            self.vocabulary, [[("text", 4), ("image", 4)]], data.draw(st.integers(0, 2**32 - 1))
        )
        masked = self.subject.mask(
            sequence,
            np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))),
            len(sequence) + 48,
        )
        assert masked.weights[1:].any()

    def law_the_reserve_is_enough(self, data: st.DataObject) -> None:
        """`max_added_tokens` is constant, not negative, and never exceeded, even by many spans."""
        # where spans don't meet, and a picture has a row for each sentinel
        large = make_sequence(
            self.vocabulary,
            [[("text", 200), ("image", _LARGE_SIDE**2), ("text", 200)]],
            data.draw(st.integers(0, 2**32 - 1), label="tokens"),
        )
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        sequence, masked = self._masked(data)
        most = self.subject.max_added_tokens
        assert most == self.make_again().max_added_tokens >= 0
        assert len(sequence) <= len(masked) <= len(sequence) + most
        for _ in range(64):
            masked = self.subject.mask(large, rng, 2 * len(large))
            assert len(large) <= len(masked) <= len(large) + most

    def law_no_room_means_no_masking(self, data: st.DataObject) -> None:
        """A sequence that fills the context is not changed."""
        sequence = data.draw(token_sequences(self.vocabulary))
        masked = self.subject.mask(sequence, np.random.default_rng(0), len(sequence))
        assert np.array_equal(masked.tokens, sequence.tokens)

    def law_too_long_is_refused(self) -> None:
        """A sequence longer than the context is an error, never cut."""
        sequence = make_sequence(self.vocabulary, [[("text", 5)]])
        with pytest.raises(DocumentError, match="7 tokens, the context holds 6"):
            self.subject.mask(sequence, np.random.default_rng(0), 6)


def _places(masked: MaskedSequence, vocabulary: Vocabulary) -> IntArray:
    """Where each token was before masking; -1 for what masking adds."""
    tokens = masked.tokens.tolist()
    end = int(np.flatnonzero(masked.tokens == vocabulary.eos)[-1])
    moved: dict[int, list[int]] = {}  # sentinel -> where the tokens of its span are now
    sentinel = -1
    for index in range(end + 1, len(tokens)):
        if tokens[index] in vocabulary.sentinels:
            sentinel = tokens[index]
            moved[sentinel] = []
        elif tokens[index] != vocabulary.end_of_infill:
            moved[sentinel].append(index)
    now = [
        index
        for place, token in enumerate(tokens[: end + 1])
        for index in (moved[token] if token in vocabulary.sentinels else [place])
    ]
    places = np.full(len(tokens), -1, np.int32)
    places[now] = np.arange(len(now))
    return places
