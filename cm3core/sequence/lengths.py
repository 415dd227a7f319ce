"""How long a document's training sequence is, before its pictures are encoded: every picture has as many
codes as the grid."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from cm3core.document import Document, Text
from cm3core.interfaces.layout import Boundary
from cm3core.sequence.segments import modality_of

if TYPE_CHECKING:
    from cm3core.interfaces.layout import Layout
    from cm3core.interfaces.text_tokenizer import TextTokenizer


def sequence_length(
    document: Document,
    text_tokenizer: TextTokenizer,
    grid: tuple[int, int],
    max_text_tokens: int | None = None,
    layout: Layout | None = None,
) -> int:
    """Tokens of `Serializer.sequence` of a query document without retrieved ones.

    Args:
        document: `Text` and pictures (`Image` or `Codes`), at least one segment.
        text_tokenizer: counts the texts' tokens.
        grid: (rows, columns) of codes of a picture.
        max_text_tokens: each text counts at most this many.
        layout: counts what is around segments. None: a token before and behind each.
    """
    around, picture = len(document) + 1, grid[0] * grid[1]
    prefix = "" if layout is None else layout.text_prefix
    if layout is not None:
        kinds = [modality_of(segment) for segment in document]
        around = len(layout.begin_before(kinds[0])) + len(layout.end)
        for place, (before, after) in enumerate(pairwise(kinds)):
            last = place + 2 == len(kinds)
            around += len(layout.between(Boundary(before, after, is_last=last)))
        picture = layout.frame(grid).num_tokens(grid)
    number = around
    for segment in document:
        if isinstance(segment, Text):
            ids = segment.ids
            length = len(text_tokenizer.encode(prefix + segment.text) if ids is None else ids)
            number += length if max_text_tokens is None else min(length, max_text_tokens)
        else:
            number += picture
    return number
