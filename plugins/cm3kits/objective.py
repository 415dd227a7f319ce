"""Conformance kit of objectives: laws of every masking.

class TestMine(ObjectiveContract):
    config = MyObjectiveConfig()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import NO_CELL, IntArray, MaskedSequence, TokenSequence
from cm3core.errors import DocumentError
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence.infill import TOKENS_PER_SPAN, unmask
from cm3core.vocab import Vocabulary
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import LawBroken, every, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits.samples import make_vocabulary
from cm3kits.strategies import make_sequence, token_sequences

__all__ = ["ObjectiveContract", "make_sequence"]

#: Codes per side of a picture with more rows than the kit's vocabulary has sentinels.
_LARGE_SIDE = 33
#: Documents of the sequences masked by `observe`; the last is the query.
_EXAMPLES = (
    [[("text", 6), ("image", 16)]],
    [[("image", 9), ("text", 5)], [("text", 8), ("image", 16)]],
    [[("text", 3)], [("image", 4)], [("text", 4), ("image", 16), ("text", 7)]],
)


class ObjectiveContract(ConfigLaws[MaskingObjective]):
    """Laws of `MaskingObjective`, built for `vocabulary`."""

    vocabulary: ClassVar[Vocabulary] = make_vocabulary(60, 16, 32)
    kind: ClassVar[str] = "objective"

    def build(self, config: Any) -> MaskingObjective:
        """Build for the kit's vocabulary, with the control tokens requested by the config."""
        if own := tuple(config.control_tokens()):
            type(self).vocabulary = self.vocabulary.with_control(own)
        objective: MaskingObjective = config.build(self.vocabulary)
        return objective

    def observe(self, component: MaskingObjective) -> Outputs:
        """Return masked sequences, with many generators."""
        found: Outputs = {
            "max_added_tokens": component.max_added_tokens,
            "control tokens": list(self.config.control_tokens()),
            "prompt tokens": [
                list(self.config.prompt_tokens(continuation=one)) for one in (False, True)
            ],
        }
        for number, documents in enumerate(_EXAMPLES):
            sequence = make_sequence(self.vocabulary, documents, number)
            sequence = dataclasses.replace(sequence, responses=sequence.segments[-2:-1])
            masked = [
                component.mask(sequence, np.random.default_rng(seed), len(sequence) + 60)
                for seed in range(24)
            ]
            found[f"tokens of sequence {number}"] = [one.tokens for one in masked]
            found[f"weights of sequence {number}"] = [one.weights for one in masked]
        return found

    def abilities(self, component: MaskingObjective) -> Mapping[str, bool]:
        """As many holes are filled as spans were masked."""
        added = component.max_added_tokens
        return {"holes": added > 0, "several_holes": added > TOKENS_PER_SPAN}

    def _masked(self, data: st.DataObject) -> tuple[TokenSequence, MaskedSequence]:
        sequence = data.draw(token_sequences(self.vocabulary))
        max_length = len(sequence) + data.draw(st.integers(0, 64), label="room")
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        masked = self.subject.mask(sequence, rng, max_length)
        did = f"masked a sequence of {len(sequence)} tokens, with room for {max_length}"
        holds(len(masked) <= max_length, did, f"at most {max_length} tokens", len(masked))
        return sequence, masked

    def law_masking_is_reversible(self, data: st.DataObject) -> None:
        """Every span can be restored: nothing is cut, overwritten or repeated."""
        sequence, masked = self._masked(data)
        same(
            self._unmasked(masked),
            sequence.tokens,
            "masked a sequence, and put the spans behind it back in place of their sentinels",
        )

    def _unmasked(self, masked: MaskedSequence) -> IntArray:
        """Reconstruct the sequence before masking."""
        did = "put the spans behind a masked sequence back in place of their sentinels"
        try:
            return np.asarray(unmask(masked, self.vocabulary))
        except (ValueError, KeyError, IndexError) as error:
            told = " ".join(self.vocabulary.name(int(token)) for token in masked.tokens)
            got = f"{told} ({type(error).__name__}: {error})"
            expected = "a sentinel for each span, and <infill> behind each"
            raise LawBroken(did, expected, got) from None

    def law_shapes_and_types(self, data: st.DataObject) -> None:
        """Arrays are int32, int32 and float32 with the same length; weights are finite, >= 0, and 0 for <pad>."""
        _, masked = self._masked(data)
        did, num = "masked a sequence", len(masked.tokens)
        for name, dtype in (("tokens", np.int32), ("cells", np.int32), ("weights", np.float32)):
            array = getattr(masked, name)
            good = array.shape == (num,) and array.dtype == dtype
            holds(good, f"{did}: its {name}", f"{dtype.__name__} [{num}]", array)
        weights = masked.weights
        every(weights, np.isfinite(weights) & (weights >= 0), did, "finite weights, 0 or more")
        padding = masked.tokens == self.vocabulary.pad
        every(weights, ~padding | (weights == 0), did, "a weight of 0 for <pad>")

    def law_spans_hold_no_specials(self, data: st.DataObject) -> None:
        """A moved span is not empty, has one modality, and contains no <eos>, <break> or sentinels."""
        _, masked = self._masked(data)
        end = int(np.flatnonzero(masked.tokens == self.vocabulary.eos)[-1])
        moved = masked.tokens[end + 1 :].tolist()
        while moved:
            length = moved.index(self.vocabulary.end_of_infill)
            span, moved = moved[1:length], moved[length + 1 :]
            good = all(token in self.vocabulary.text for token in span) or all(
                token in self.vocabulary.image for token in span
            )
            holds(
                span and good,
                "masked a sequence, and looked at a span behind it",
                "text tokens only, or image codes only",
                " ".join(self.vocabulary.name(token) for token in span) or "nothing",
            )

    def law_specials_stay(self, data: st.DataObject) -> None:
        """Every <break> and the two <eos> stay in the body, so no span crosses a boundary."""
        sequence, masked = self._masked(data)
        special = [self.vocabulary.eos, self.vocabulary.break_]
        end = int(np.flatnonzero(masked.tokens == self.vocabulary.eos)[-1])
        body = masked.tokens[: end + 1]
        same(
            body[np.isin(body, special)],
            sequence.tokens[np.isin(sequence.tokens, special)],
            "masked a sequence, and compared its <eos> and <break>",
        )

    def law_cells_move_along(self, data: st.DataObject) -> None:
        """Image codes keep their raster cells; other tokens have none."""
        sequence, masked = self._masked(data)
        is_image = np.isin(masked.tokens, self.vocabulary.image)
        every(
            masked.cells,
            (masked.cells == NO_CELL) == ~is_image,
            "masked a sequence, and looked at its cells",
            f"a cell for each image code, {NO_CELL} for all else",
        )
        as_cells = np.where(
            is_image, self.vocabulary.image.start + masked.cells, masked.tokens
        ).astype(np.int32)
        wanted = np.where(
            sequence.cells == NO_CELL, sequence.tokens, self.vocabulary.image.start + sequence.cells
        )
        same(
            self._unmasked(MaskedSequence(as_cells, masked.cells, masked.weights)),
            wanted,
            "masked a sequence, put its spans back, and compared the cells of codes",
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
        for name in ("tokens", "weights", "cells"):
            did = f"masked a sequence twice with default_rng({seed}): its {name}"
            same(getattr(second, name), getattr(first, name), did)
        did = "masked a sequence, and looked at the sequence given"
        same(sequence.tokens, before[0], did)
        same(sequence.cells, before[1], did)

    def law_retrieved_documents_are_whole(self, data: st.DataObject) -> None:
        """Retrieved documents are inputs, in prompts too: no span in them is masked, unless the config sets
        `masks_retrieved`."""
        if self.config is None or self.config.masks_retrieved:
            return
        sequence, masked = self._masked(data)
        first = sequence.segments[sequence.query_segment].start
        own = ~np.isin(masked.tokens, self.vocabulary.control_ids)  # without tokens that it adds
        masked = MaskedSequence(masked.tokens[own], masked.cells[own], masked.weights[own])
        end = int(np.flatnonzero(masked.tokens == self.vocabulary.eos)[-1])
        moved = _places(masked, self.vocabulary)[end + 1 :]
        gone = sorted(int(place) for place in moved if 0 <= place < first)
        holds(
            not gone,
            f"masked a sequence whose query document begins at token {first}",
            "spans of the query document only",
            f"the retrieved tokens {gone[:8]} moved behind it",
            next_step="draw spans from sequence.segments[sequence.query_segment:]; an objective that should "
            "mask retrieved documents sets masks_retrieved = True in its config",
        )

    def law_loss_weights_belong_to_their_tokens(self, data: st.DataObject) -> None:
        """`text_loss_weight` scales the weights of texts, `retrieved_loss_weight` those of retrieved documents.

        That is, the text tokens of all documents, and all tokens before the last document, wherever their
        spans move; masking does not depend on the weights.
        """
        if self.config is None:
            return
        sequence = data.draw(token_sequences(self.vocabulary))
        seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
        with self.building():
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
        for weighed in (texts, retrieved):
            same(
                weighed.tokens,
                plain.tokens,
                "masked a sequence with other loss weights: its tokens",
            )
        ordinary = np.isin(plain.tokens, [*self.vocabulary.text, *self.vocabulary.image])
        text = np.isin(plain.tokens, self.vocabulary.text)
        others = _places(plain, self.vocabulary) < sequence.segments[sequence.query_segment].start
        for did, weighed, expected in (
            ("text_loss_weight 4", texts, np.where(text, 4.0, 1.0)),
            ("retrieved_loss_weight 0.25", retrieved, np.where(others, 0.25, 1.0)),
        ):
            same(
                weighed.weights[ordinary],
                (plain.weights * expected)[ordinary],
                f"masked a sequence with {did}, and compared the weights of texts and codes",
                tolerance=1e-6,
            )

    def law_something_is_trained(self, data: st.DataObject) -> None:
        """A document with text and picture has at least one token with a loss."""
        sequence = make_sequence(
            self.vocabulary, [[("text", 4), ("image", 4)]], data.draw(st.integers(0, 2**32 - 1))
        )
        masked = self.subject.mask(
            sequence,
            np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))),
            len(sequence) + 48,
        )
        holds(
            masked.weights[1:].any(),
            "masked a document of a text and a picture",
            "a weight above 0",
            "only weights of 0",
        )

    def law_the_reserve_is_enough(self, data: st.DataObject) -> None:
        """`max_added_tokens` is constant, not negative, and never exceeded, even with many spans."""
        # spans don't touch, and a picture has a row for each sentinel
        large = make_sequence(
            self.vocabulary,
            [[("text", 200), ("image", _LARGE_SIDE**2), ("text", 200)]],
            data.draw(st.integers(0, 2**32 - 1), label="tokens"),
        )
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        sequence, masked = self._masked(data)
        most = self.subject.max_added_tokens
        holds(most >= 0, "looked at max_added_tokens", "0 or more", most)
        same(self.make_again().max_added_tokens, most, "looked at max_added_tokens of two")
        self._check_length(len(masked), len(sequence), most)
        for _ in range(64):
            self._check_length(len(self.subject.mask(large, rng, 2 * len(large))), len(large), most)

    def _check_length(self, got: int, whole: int, most: int) -> None:
        holds(
            whole <= got <= whole + most,
            f"masked a sequence of {whole} tokens; max_added_tokens is {most}",
            f"{whole} to {whole + most} tokens",
            got,
        )

    def law_no_room_means_no_masking(self, data: st.DataObject) -> None:
        """A sequence that fills the context is unchanged."""
        sequence = data.draw(token_sequences(self.vocabulary))
        masked = self.subject.mask(sequence, np.random.default_rng(0), len(sequence))
        same(masked.tokens, sequence.tokens, "masked a sequence that fills the context")

    def law_too_long_is_refused(self) -> None:
        """A sequence longer than the context is an error, never cut."""
        sequence = make_sequence(self.vocabulary, [[("text", 5)]])
        refuses(
            lambda: self.subject.mask(sequence, np.random.default_rng(0), 6),
            "masked a sequence of 7 tokens for a context of 6",
            DocumentError,
            match="7 tokens, but the context holds 6",
        )


def _places(masked: MaskedSequence, vocabulary: Vocabulary) -> IntArray:
    """Return each token's position before masking; -1 for tokens added by masking."""
    tokens = masked.tokens.tolist()
    end = int(np.flatnonzero(masked.tokens == vocabulary.eos)[-1])
    moved: dict[int, list[int]] = {}  # sentinel -> current positions of its span's tokens
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
