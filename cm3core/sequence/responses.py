"""Where in a sequence the responses of its task are: what a loss on responses alone counts, and what
masking hides so that a prompt whose answer is before a picture can be infilled."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import numpy.typing as npt

from cm3core.arguments import checked
from cm3core.document import Codes, MaskedText, Segment, Span, Text, TextHole, TokenSequence
from cm3core.errors import DocumentError
from cm3core.sequence.segments import SegmentCodec


def responses_of(codec: SegmentCodec, segment: Segment, span: Span) -> list[Span]:
    """The responses in a segment that is written at `span`, as spans of tokens.

    They begin and end where the hole of a prompt with this text does, so that what is masked in
    training is what is infilled; a text that is cut before its response has none.
    """
    if isinstance(segment, Codes):
        return [span] if segment.response else []
    if not isinstance(segment, Text) or not segment.responses:
        return []
    tokens = codec.text_tokens(segment.text)
    found = []
    for start, stop in segment.responses:
        before, after = segment.text[:start], segment.text[stop:]
        masked, _ = codec.without_leads(MaskedText((before, TextHole(), after)))
        kept = masked.parts[0] if isinstance(masked.parts[0], str) else ""
        first = _num_equal(codec.text_tokens(kept), tokens)
        last = len(tokens) - _num_equal(codec.text_tokens(after)[::-1], tokens[::-1])
        stop_token = min(span.start + last, span.stop)
        if span.start + first < stop_token:
            found.append(Span(span.start + first, stop_token, span.modality))
    return found


def _num_equal(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Number of equal tokens that two texts begin with."""
    return sum(1 for _ in takewhile(bool, (one == other for one, other in zip(a, b, strict=False))))


@checked(DocumentError)
def only_responses(
    weights: npt.NDArray[np.float32], sequence: TokenSequence
) -> npt.NDArray[np.float32]:
    """Loss weights of a sequence, 0 outside of its responses; unchanged where it has none.

    The <eos> behind a text that ends the sequence counts as well: it is how the response ends; and of a
    conversation, what begins its pictures and ends its turns.
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
