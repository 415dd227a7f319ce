"""Training sequences with spans moved to the end, as in infilling, and the inverse; the positions of a task's
responses.

    <eos> a b c <break> x y <eos>          spans (b c) and (y)
    <eos> a <sentinel:0> <break> x <sentinel:1> <eos> <sentinel:0> b c <eoss> <sentinel:1> y <eoss>

Each span costs three tokens and nothing is cut. Sources: CM3 paper section 2, CM3leon paper section
2.2; facebookresearch/metaseq `metaseq/data/cm3_dataset.py` (which cuts off 3n tokens; this module does
not). Legend: n tokens, s spans. There is no loop over tokens: a sequence is cut into 2s + 1 pieces
and joined again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt

from cm3core.arguments import Called, Shape, checked
from cm3core.document import (
    NO_CELL,
    IntArray,
    MaskedSequence,
    TokenSequence,
)
from cm3core.errors import DocumentError
from cm3core.picture_form import MISSING
from cm3core.vocab import Vocabulary

#: Tokens added per moved span: the sentinel in its place, the sentinel before it, and <eoss>.
TOKENS_PER_SPAN = 3
#: Loss weight of each token of a sequence, float32 [n].
Weights = Annotated[npt.NDArray[np.float32], Shape((None,)), Called("floats [tokens]")]


@checked(DocumentError)
def loss_weights(
    sequence: TokenSequence,
    vocabulary: Vocabulary,
    retrieved_loss_weight: float = 1.0,
    text_loss_weight: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Loss weights float32 [n] before masking: `retrieved_loss_weight` up to the query document and 1 from
    there on, times `text_loss_weight` for text; 0 for <pad>."""
    weights = np.ones(len(sequence), np.float32)
    if sequence.segments:
        weights[: sequence.segments[sequence.query_segment].start] = retrieved_loss_weight
    for span in sequence.segments:
        if span.modality == "text":
            weights[span.start : span.stop] *= text_loss_weight
    weights[sequence.tokens == vocabulary.pad] = 0.0
    return weights


@checked(DocumentError)
def move_spans(
    sequence: TokenSequence,
    spans: Sequence[tuple[int, int]],
    weights: Weights,
    vocabulary: Vocabulary,
    *,
    sentinel_loss: bool = True,
) -> MaskedSequence:
    """Move `spans` to the end of the sequence.

    Args:
        sequence: n tokens from <eos> to <eos>.
        spans: half-open (start, stop), sorted, disjoint, not empty, each inside one segment.
        weights: float32 [n]; moved together with their tokens. A span's sentinels and <eoss> get
            the weight of its first token.
        sentinel_loss: False gives sentinels weight 0 (CM3 paper: predicting mask tokens does not
            count towards the loss).

    Returns:
        n + 3s tokens.
    """
    tokens: list[IntArray] = []
    cells: list[IntArray] = []
    before_spans = _cells_before_spans(sequence, spans, vocabulary)
    losses: list[npt.NDArray[np.float32]] = []
    no_cell = np.full(1, NO_CELL, np.int32)

    def copy(start: int, stop: int, known: IntArray) -> None:
        tokens.append(sequence.tokens[start:stop])
        cells.append(known[start:stop])
        losses.append(weights[start:stop])

    def special(token: int, weight: float) -> None:
        tokens.append(np.asarray([token], np.int32))
        cells.append(no_cell)
        losses.append(np.asarray([weight], np.float32))

    if spans:
        vocabulary.sentinel(len(spans) - 1)  # refuses more spans than there are sentinels
    moved = [(sentinel, *span) for sentinel, span in zip(vocabulary.sentinels, spans, strict=False)]
    end = 0
    for sentinel, start, stop in moved:
        assert end <= start < stop
        copy(end, start, before_spans)
        special(sentinel, float(weights[start]) * sentinel_loss)
        end = stop
    copy(end, len(sequence), before_spans)
    closing = vocabulary.end_of_infill if moved else 0
    for sentinel, start, stop in moved:
        special(sentinel, float(weights[start]) * sentinel_loss)
        copy(start, stop, sequence.cells)
        special(closing, float(weights[start]))
    return MaskedSequence(np.concatenate(tokens), np.concatenate(cells), np.concatenate(losses))


def _cells_before_spans(
    sequence: TokenSequence, spans: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> IntArray:
    """Cells int32 [n] that are known before the spans' contents: positions of codes behind a span in a picture would
    tell what is in it."""
    if sequence.cells_of is None:
        return sequence.cells
    cells, moved = sequence.cells.copy(), np.zeros(len(sequence), np.bool_)
    for start, stop in spans:
        moved[start:stop] = True
    for span in sequence.segments:
        own = span.start + np.flatnonzero(cells[span.start : span.stop] >= 0)
        if moved[own].any():
            codes = np.where(moved[own], MISSING, vocabulary.to_codes(sequence.tokens[own]))
            cells[own] = sequence.cells_of(codes)
    return cells


@checked(DocumentError)
def prefixed(masked: MaskedSequence, tokens: Sequence[int]) -> MaskedSequence:
    """The sequence with an objective's control tokens after its first <eos>, with loss weight 0.

    `unmask` removes them again.
    """
    return MaskedSequence(
        np.insert(masked.tokens, 1, np.asarray(tokens, np.int32)),
        np.insert(masked.cells, 1, np.full(len(tokens), NO_CELL, np.int32)),
        np.insert(masked.weights, 1, np.zeros(len(tokens), np.float32)),
    )


@checked(DocumentError)
def unmask(masked: MaskedSequence, vocabulary: Vocabulary) -> IntArray:
    """The tokens int32 [n - 3s] before `move_spans`: every span back in the place of its sentinel.

    An objective's control tokens, which no document contains, are removed.

    Raises:
        DocumentError: the tokens don't have the infill form (a sentinel without span, a span
            without <eoss>, ...).
    """
    tokens = masked.tokens[~np.isin(masked.tokens, vocabulary.control_ids)]
    ends = np.flatnonzero(tokens == vocabulary.eos)
    if len(ends) < 2 or ends[0] != 0:
        raise DocumentError(
            "masked sequence", "is not of the form <eos> ... <eos>", "pass a whole sequence"
        )
    body, moved = tokens[: ends[-1] + 1], tokens[ends[-1] + 1 :]
    places = np.flatnonzero(
        (body >= vocabulary.sentinels.start) & (body < vocabulary.sentinels.stop)
    )
    heads = np.flatnonzero(
        (moved >= vocabulary.sentinels.start) & (moved < vocabulary.sentinels.stop)
    )
    tails = np.flatnonzero(moved == vocabulary.end_of_infill)
    ordered = vocabulary.sentinels.start + np.arange(len(places))
    whole = (
        len(places) == len(heads) == len(tails)
        and np.array_equal(body[places], ordered)
        and np.array_equal(moved[heads], ordered)
        and np.array_equal(np.concatenate([heads, [len(moved)]])[1:], tails + 1)
        and (not len(heads) or heads[0] == 0)
    )
    if not whole or (len(moved) and not len(heads)):
        raise DocumentError(
            "masked sequence",
            f"{len(places)} sentinels in place, {len(heads)} spans at the end and {len(tails)} "
            "<eoss>, not in the same order",
            "pass a whole sequence of the infill form",
        )
    pieces: list[IntArray] = []
    end = 0
    for place, head, tail in zip(places.tolist(), heads.tolist(), tails.tolist(), strict=True):
        pieces += [body[end:place], moved[head + 1 : tail]]
        end = place + 1
    return np.concatenate([*pieces, body[end:]])


@checked(DocumentError)
def only_responses(
    weights: npt.NDArray[np.float32], sequence: TokenSequence
) -> npt.NDArray[np.float32]:
    """Set the loss weights outside a sequence's responses to 0; unchanged if it has no responses.

    Also keeps the <eos> after a text that ends the sequence, because it ends the response, and in a
    conversation the tokens that begin pictures and end turns.
    """
    if not sequence.responses:
        return weights
    seen = np.zeros(len(sequence), np.bool_)
    for span in sequence.responses:
        seen[span.start : span.stop] = True
    seen[list(sequence.decided)] = True
    last = sequence.responses[-1]
    if last.modality == "text" and last.stop == len(sequence) - 1:
        seen[-1] = True
    return np.where(seen, weights, np.float32(0))
