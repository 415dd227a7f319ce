"""Documents of the memory as they are prepended to a query, in training and in generation alike.

A document that was found for the whole query is prepended as it is. Of one that was found for a part of the
query's picture, the text is prepended with the part's box, as in "bell, outline at (10, 12) -> (40, 44)": a
prompt of captions (SmallCap, arXiv 2209.15323), which take a fraction of the tokens, and say what is where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.boxes import text_of_boxes
from cm3core.document import Document, Text, text_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Region


def prepended(document: Document, region: Region | None) -> Document:
    """What is prepended of a document that was found for a part; None: for the whole query.

    >>> prepended((Text("bell, outline"),), (10, 12, 40, 44))
    (Text(text='bell, outline at (10, 12) -> (40, 44)'),)
    """
    if region is None:
        return document
    return (Text(text_of_boxes([(text_of(document), region)])),)
