"""Choosing the precision of generation: fewer bits are used only if the model's own predictions hardly change.

The decoder at reduced precision and the exact decoder read the same sequences, and the distributions of the next token
are compared at every position. The documents used are in no training set: a few sentences, and a drawing made here.
Legend: T tokens, E width, R ids, n positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cm3core import images
from cm3core.document import Codes, Document, PixelArray, Text
from cm3core.errors import GenerationError

if TYPE_CHECKING:
    from cm3core.document import TokenSequence
    from cm3core.interfaces.decoder import Decoder, InferenceDecoder
    from cm3core.vocab import Vocabulary
    from cm3run.build import Components


#: Limits for a precision that was requested: the largest mean divergence from the exact distributions, in nats per
#: token, and the smallest share of unchanged most probable tokens at positions where the exact distribution is sure
#: (its best two differ by more than `SURE` nats).
MOST_DIVERGENCE, LEAST_SAME, SURE = 0.05, 0.98, 0.5
#: Largest divergence of a precision chosen by "auto". The bundled models have 0.0009 to 0.0015 with int8 and 0.0001
#: to 0.0002 with bf16.
MOST_UNASKED = 0.01
#: Tokens read of each sequence.
MOST_TOKENS = 160
#: Number of logits compared at once.
MOST_LOGITS = 2**22


@dataclass(frozen=True)
class Agreement:
    """How closely a reduced precision agrees with the exact one.

    Args:
        divergence: mean Kullback-Leibler divergence KL(exact, other) of next tokens, in nats.
        same: share of positions with the same most probable token.
        same_where_sure: the same, over positions where the exact distribution is sure.
        num: positions.
    """

    divergence: float
    same: float
    same_where_sure: float
    num: int

    @property
    def passes(self) -> bool:
        """Whether it is acceptable for a precision that was requested."""
        return self.divergence <= MOST_DIVERGENCE and self.same_where_sure >= LEAST_SAME

    @property
    def passes_unasked(self) -> bool:
        """Whether it is acceptable for "auto"."""
        return self.passes and self.divergence <= MOST_UNASKED

    def __str__(self) -> str:
        return (
            f"{self.divergence:.4f} nats per token from the exact predictions, "
            f"{self.same_where_sure:.1%} of sure tokens the same"
        )


class Reference:
    """The exact decoder's predictions for some documents, computed once and compared with any number of precisions.

    Args:
        exact: the exact decoder.
        sequences: documents independent of the precisions compared; the first `MOST_TOKENS` of each are read.
        vocabulary: image codes are predicted among image codes, everything else among all ids.
    """

    def __init__(
        self, exact: InferenceDecoder, sequences: Sequence[TokenSequence], vocabulary: Vocabulary
    ) -> None:
        self._exact, self._sequences, self._vocabulary = exact, sequences, vocabulary
        self._hidden = self._read_by(exact)

    @torch.inference_mode()
    def agreement(self, other: InferenceDecoder) -> Agreement:
        """Compare the same decoder at a reduced precision."""
        divergence, same, sure_same, sure, number = 0.0, 0, 0, 0, 0
        image = self._vocabulary.image
        predicted = zip((image, None), self._hidden, self._read_by(other), strict=True)
        for ids, exact_NE, other_NE in predicted:
            if not len(exact_NE):
                continue
            # a few positions at a time: some models have 180,000 ids
            size = max(1, MOST_LOGITS // (self._vocabulary.size if ids is None else len(image)))
            for exact_nE, other_nE in zip(exact_NE.split(size), other_NE.split(size), strict=True):
                exact_nR = self._exact.logits(exact_nE, ids).float().log_softmax(1)
                other_nR = other.logits(other_nE, ids).float().log_softmax(1)
                best_n2 = exact_nR.topk(2).values
                sure_n = best_n2[:, 0] - best_n2[:, 1] > SURE
                same_n = exact_nR.argmax(1) == other_nR.argmax(1)
                # illegal ids are -inf in both
                gap_nR = torch.where(exact_nR > -torch.inf, exact_nR - other_nR, 0.0)
                divergence += float((exact_nR.exp() * gap_nR).sum())
                same, sure = same + int(same_n.sum()), sure + int(sure_n.sum())
                sure_same += int((same_n & sure_n).sum())
                number += len(exact_nE)
        # no positions, so nothing is known
        if number == 0:
            return Agreement(float("inf"), 0.0, 0.0, 0)
        return Agreement(
            divergence / number, same / number, sure_same / sure if sure else 1.0, number
        )

    @torch.inference_mode()
    def _read_by(self, decoder: InferenceDecoder) -> tuple[Tensor, Tensor]:
        """Hidden states [N, E] that predict a code, and those that predict anything else."""
        before_code, before_other = [], []
        for sequence in self._sequences:
            hidden_TE = _hidden(decoder, sequence)
            is_code_T = torch.from_numpy(sequence.cells[1:MOST_TOKENS] >= 0).to(hidden_TE.device)
            before_code.append(hidden_TE[is_code_T])
            before_other.append(hidden_TE[~is_code_T])
        if not before_code:
            return torch.empty(0, 1), torch.empty(0, 1)
        return torch.cat(before_code), torch.cat(before_other)


def _hidden(decoder: InferenceDecoder, sequence: TokenSequence) -> Tensor:
    """Hidden states [T, E] of all tokens read except the last."""
    tokens_1T, cells_1T = (
        torch.from_numpy(values[: MOST_TOKENS - 1].astype("int64"))[None].to(decoder.device)
        for values in (sequence.tokens[:-1], sequence.cells[:-1])
    )
    cache = decoder.allocate_cache(1, tokens_1T.shape[1])
    return decoder.hidden_states(tokens_1T, cells_BT=cells_1T, cache=cache)[0]


_log = logging.getLogger(__name__)

#: Texts for the comparison, worded like captions, questions and prose.
TEXTS = (
    "a yellow bicycle leaning against a brick wall, late afternoon",
    "two small boats on a quiet lake, mountains behind them",
    "How many windows does the house at the corner have?",
    "In 1923 the bridge was closed for repairs, and the ferry ran every half hour.",
)
#: Divergence in nats per token up to which "auto" logs nothing; the bundled models' bf16 has 0.0001 to 0.0002.
UNTOLD = 0.0005
#: Precisions that are measured before use, and what to use if they change predictions.
MEASURED = {"int8": "bf16", "int4": "int8 or bf16"}


def arranged(
    decoder: Decoder,
    precision: str,
    sequences: Callable[[], list[TokenSequence]],
    vocabulary: Vocabulary,
    told: Callable[[str], None],
) -> InferenceDecoder:
    """Prepare the decoder for generation.

    Args:
        decoder: with its weights.
        precision: see `Decoder.for_inference`. "auto": the first of the decoder's
            `faster_precisions` that passes a stricter limit, otherwise as stored.
        sequences: makes the documents for the comparison when they are needed.
        vocabulary: the decoder's.
        told: called with a line that states the measurement and the choice.

    Raises:
        GenerationError: the precision changes predictions too much, or is not supported.
    """
    if precision in MEASURED:
        made = decoder.for_inference(
            precision
        )  # first, so that an unsupported precision is refused at once
        found = Reference(exact(decoder), sequences(), vocabulary).agreement(made)
        if not found.passes:
            raise GenerationError(
                f"precision {precision}",
                f"changes this model's predictions: {found} (at most {MOST_DIVERGENCE} nats)",
                f"use {MEASURED[precision]}",
            )
        told(f"precision {precision}: {found}")
        return made
    if precision == "auto" and (candidates := decoder.faster_precisions()):
        faster = _first_that_passes(decoder, candidates, sequences, vocabulary, told)
        if faster is not None:
            return faster
        told("precision as stored")
    return decoder.for_inference(precision)


def _first_that_passes(
    decoder: Decoder,
    candidates: Sequence[str],
    sequences: Callable[[], list[TokenSequence]],
    vocabulary: Vocabulary,
    told: Callable[[str], None],
) -> InferenceDecoder | None:
    """The decoder in the first of these precisions that hardly changes its predictions; see
    `arranged`."""
    # first, because preparing another decoder releases mapped pages that this would read again
    reference = Reference(exact(decoder), sequences(), vocabulary)
    for precision in candidates:
        try:
            made = decoder.for_inference(precision)
        except (
            GenerationError
        ) as refused:  # too little memory, for example; the user asked for no precision
            told(f"precision {precision} is not used: {refused.cause}")
            continue
        found = reference.agreement(made)
        if found.passes_unasked:
            line = f"precision {precision}, which is faster on this machine: {found}"
            (told if found.divergence > UNTOLD else _log.info)(line)
            return made
        told(
            f"precision {precision} is not used: {found} "
            f"(at most {MOST_UNASKED} nats, {LEAST_SAME:.0%})"
        )
        del made  # free it before preparing the next
    return None


def exact(decoder: Decoder) -> InferenceDecoder:
    """The decoder with its weights unchanged, in place if possible."""
    try:
        return decoder.for_inference("stored")
    except GenerationError:
        return decoder.for_inference()


def held_out(components: Components, max_text_tokens: int) -> list[TokenSequence]:
    """The comparison's documents as the model reads them: two with a picture, two of text alone."""
    tokenizer = components.image_tokenizer
    pixels = images.fit(drawing(), tokenizer.image_size)
    picture = Codes(tokenizer.encode(pixels[None])[0], tokenizer.grid)
    documents: list[Document] = [
        *((Text(text), picture) for text in TEXTS[:2]),
        *((Text(text),) for text in TEXTS[2:]),
    ]
    # leave room for codes
    most = min(max_text_tokens, MOST_TOKENS // 2)
    return [components.serializer.sequence(document, (), most) for document in documents]


def drawing(size: int = 256) -> PixelArray:
    """A sun over a house and a hill, uint8 [size, size, 3]."""
    row, column = np.mgrid[:size, :size] / size
    pixels = np.stack([200 - 90 * row, 215 - 60 * row, 250 - 20 * row], axis=-1)
    for shape, colour in (
        ((column - 0.75) ** 2 + (row - 0.22) ** 2 < 0.012, (250, 210, 60)),
        (row > 0.78 - 0.12 * np.sin(3 * column), (70, 140, 60)),
        ((np.abs(column - 0.35) < 0.16) & (row > 0.5) & (row < 0.85), (190, 90, 70)),
        ((np.abs(column - 0.35) < (row - 0.32) * 1.1) & (row < 0.5), (110, 60, 50)),
    ):
        pixels[shape] = colour
    return pixels.astype(np.uint8)
