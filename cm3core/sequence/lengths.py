"""How long a document's training sequence is, before its pictures are encoded: every picture has as many
codes as the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.document import Document, Text

if TYPE_CHECKING:
    from cm3core.interfaces.text_tokenizer import TextTokenizer


def sequence_length(
    document: Document,
    text_tokenizer: TextTokenizer,
    grid: tuple[int, int],
    max_text_tokens: int | None = None,
) -> int:
    """Tokens of `Serializer.sequence` of a query document without retrieved ones.

    Args:
        document: `Text` and pictures (`Image` or `Codes`), at least one segment.
        text_tokenizer: counts the texts' tokens.
        grid: (rows, columns) of codes of a picture.
        max_text_tokens: each text counts at most this many.
    """
    ends, separators = 2, len(document) - 1
    number = ends + separators
    for segment in document:
        if isinstance(segment, Text):
            length = len(text_tokenizer.encode(segment.text))
            number += length if max_text_tokens is None else min(length, max_text_tokens)
        else:
            number += grid[0] * grid[1]
    return number
