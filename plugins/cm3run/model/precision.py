"""Which precision a model generates with: fewer bits only where its own predictions say that they do no harm.

An arrangement with fewer bits and the exact decoder read the same sequences; at every position the distributions of the
next token are compared. The documents on which that is measured are in no training set: a few sentences, and a drawing
made here. Legend: T tokens, E width, R ids, n positions.
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


#: The gate of a precision that was asked for: the largest mean divergence from the exact
#: distributions, in nats a token, and the smallest share of most probable tokens that stay the same
#: where the exact distribution is sure of them: its best two differ by more than `SURE` nats.
MOST_DIVERGENCE, LEAST_SAME, SURE = 0.05, 0.98, 0.5
#: The largest divergence of a precision that nobody asked for. The bundled models' int8 is at 0.0009 to
#: 0.0015, their bf16 at 0.0001 to 0.0002.
MOST_UNASKED = 0.01
#: Tokens of a sequence that are read.
MOST_TOKENS = 160
#: Logits that are compared at once.
MOST_LOGITS = 2**22


@dataclass(frozen=True)
class Agreement:
    """An arrangement compared with the exact one.

    Args:
        divergence: mean Kullback-Leibler divergence KL(exact, other) of next tokens, in nats.
        same: share of positions whose most probable token is the same.
        same_where_sure: the same, of positions where the exact distribution is sure.
        num: positions.
    """

    divergence: float
    same: float
    same_where_sure: float
    num: int

    @property
    def passes(self) -> bool:
        """The gate of a precision that was asked for."""
        return self.divergence <= MOST_DIVERGENCE and self.same_where_sure >= LEAST_SAME

    @property
    def passes_unasked(self) -> bool:
        """The gate of one that "auto" takes."""
        return self.passes and self.divergence <= MOST_UNASKED

    def __str__(self) -> str:
        return (
            f"{self.divergence:.4f} nats a token from the exact predictions, "
            f"{self.same_where_sure:.1%} of sure tokens the same"
        )


class Reference:
    """What a decoder's exact arrangement predicts for some documents: read once, for any number of others.

    Args:
        exact: the arrangement to compare with.
        sequences: documents that no arrangement was made for; the first `MOST_TOKENS` of each are read.
        vocabulary: image codes are predicted among image codes, everything else among all ids.
    """

    def __init__(
        self, exact: InferenceDecoder, sequences: Sequence[TokenSequence], vocabulary: Vocabulary
    ) -> None:
        self._exact, self._sequences, self._vocabulary = exact, sequences, vocabulary
        self._hidden = self._read_by(exact)

    @torch.inference_mode()
    def agreement(self, other: InferenceDecoder) -> Agreement:
        """Compare another arrangement of the same decoder, with fewer bits."""
        divergence, same, sure_same, sure, number = 0.0, 0, 0, 0, 0
        image = self._vocabulary.image
        predicted = zip((image, None), self._hidden, self._read_by(other), strict=True)
        for ids, exact_NE, other_NE in predicted:
            if not len(exact_NE):
                continue
            # a few at a time: of some models one position has 180,000 ids
            size = max(1, MOST_LOGITS // (self._vocabulary.size if ids is None else len(image)))
            for exact_nE, other_nE in zip(exact_NE.split(size), other_NE.split(size), strict=True):
                exact_nR = self._exact.logits(exact_nE, ids).float().log_softmax(1)
                other_nR = other.logits(other_nE, ids).float().log_softmax(1)
                best_n2 = exact_nR.topk(2).values
                sure_n = best_n2[:, 0] - best_n2[:, 1] > SURE
                same_n = exact_nR.argmax(1) == other_nR.argmax(1)
                # ids that can't follow are -inf in both
                gap_nR = torch.where(exact_nR > -torch.inf, exact_nR - other_nR, 0.0)
                divergence += float((exact_nR.exp() * gap_nR).sum())
                same, sure = same + int(same_n.sum()), sure + int(sure_n.sum())
                sure_same += int((same_n & sure_n).sum())
                number += len(exact_nE)
        # nothing to compare: nothing is known
        if number == 0:
            return Agreement(float("inf"), 0.0, 0.0, 0)
        return Agreement(
            divergence / number, same / number, sure_same / sure if sure else 1.0, number
        )

    @torch.inference_mode()
    def _read_by(self, decoder: InferenceDecoder) -> tuple[Tensor, Tensor]:
        """Hidden states [N, E] behind which a code comes, and those behind which anything else does."""
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
    """Hidden states [T, E] of all but the last of the tokens that are read."""
    tokens_1T, cells_1T = (
        torch.from_numpy(values[: MOST_TOKENS - 1].astype("int64"))[None].to(decoder.device)
        for values in (sequence.tokens[:-1], sequence.cells[:-1])
    )
    cache = decoder.allocate_cache(1, tokens_1T.shape[1])
    return decoder.hidden_states(tokens_1T, cells_BT=cells_1T, cache=cache)[0]


_log = logging.getLogger(__name__)

#: Texts of the gate, in the words of captions, questions and prose.
TEXTS = (
    "a yellow bicycle leaning against a brick wall, late afternoon",
    "two small boats on a quiet lake, mountains behind them",
    "How many windows does the house at the corner have?",
    "In 1923 the bridge was closed for repairs, and the ferry ran every half hour.",
)
#: Nats a token that "auto" changes without a word: the bundled models' bf16 is at 0.0001 to 0.0002.
UNTOLD = 0.0005
#: Precisions that are measured before they are used, and what to use where they do harm.
MEASURED = {"int8": "bf16", "int4": "int8 or bf16"}


def arranged(
    decoder: Decoder,
    precision: str,
    sequences: Callable[[], list[TokenSequence]],
    vocabulary: Vocabulary,
    told: Callable[[str], None],
) -> InferenceDecoder:
    """The decoder, ready to generate.

    Args:
        decoder: with its weights.
        precision: see `Decoder.for_inference`. "auto": the first of the decoder's
            `faster_precisions` that passes a stricter gate, else as stored.
        sequences: those of the gate, made when they are needed.
        vocabulary: the decoder's.
        told: called with a line that says what was measured and chosen.

    Raises:
        GenerationError: the precision changes predictions too much, or is not supported.
    """
    if precision in MEASURED:
        made = decoder.for_inference(precision)  # first: what is not supported is refused at once
        found = Reference(exact(decoder), sequences(), vocabulary).agreement(made)
        if not found.passes:
            raise GenerationError(
                f"precision {precision}",
                f"changes what this model predicts: {found} (at most {MOST_DIVERGENCE} nats)",
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
    # before anything is arranged: that gives mapped pages back, which this would read again
    reference = Reference(exact(decoder), sequences(), vocabulary)
    for precision in candidates:
        try:
            made = decoder.for_inference(precision)
        except GenerationError as refused:  # such as too little memory; nobody asked for it
            told(f"precision {precision} is not taken: {refused.cause}")
            continue
        found = reference.agreement(made)
        if found.passes_unasked:
            line = f"precision {precision}, which this machine multiplies faster: {found}"
            (told if found.divergence > UNTOLD else _log.info)(line)
            return made
        told(
            f"precision {precision} is not taken: {found} "
            f"(at most {MOST_UNASKED} nats, {LEAST_SAME:.0%})"
        )
        del made  # the next arrangement needs no memory beside this one
    return None


def exact(decoder: Decoder) -> InferenceDecoder:
    """The decoder with the weights that it has, in place where it can."""
    try:
        return decoder.for_inference("stored")
    except GenerationError:
        return decoder.for_inference()


def held_out(components: Components, max_text_tokens: int) -> list[TokenSequence]:
    """The documents of the gate as a model reads them: two with a picture, two of text alone."""
    tokenizer = components.image_tokenizer
    pixels = images.fit(drawing(), tokenizer.image_size)
    picture = Codes(tokenizer.encode(pixels[None])[0], tokenizer.grid)
    documents: list[Document] = [
        *((Text(text), picture) for text in TEXTS[:2]),
        *((Text(text),) for text in TEXTS[2:]),
    ]
    # as many tokens of text as leave room for codes
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
