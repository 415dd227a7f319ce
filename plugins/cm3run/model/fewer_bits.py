"""Which precision a model generates with: fewer bits only where its own predictions say that they do no
harm.

The documents on which that is measured are in no training set: a few sentences, and a drawing made
here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cm3core import images
from cm3core.document import Codes, Document, PixelArray, Text
from cm3core.errors import GenerationError
from cm3run.generation.agreement import (
    LEAST_SAME,
    MOST_DIVERGENCE,
    MOST_TOKENS,
    MOST_UNASKED,
    Reference,
)

if TYPE_CHECKING:
    from cm3core.document import TokenSequence
    from cm3core.interfaces.decoder import Decoder, InferenceDecoder
    from cm3core.vocab import Vocabulary
    from cm3run.build import Components

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
