"""The form in which documents of the memory are prepended to a query, both in training and in generation.

A document found for the whole query is prepended unchanged. Of a document found for a part of the query's picture,
only the text is prepended, after the part's position, as in "at (10, 12) -> (40, 44), upper left: bell, outline". The
result is a prompt of captions (SmallCap, arXiv 2209.15323), which cost a fraction of the tokens and say where things
are. The position comes first, so that a causal decoder knows it when it reads the name. It is also given in words,
next to the
name: a small decoder associates two words sooner than it computes with sixteen digits. A name in the middle of a text
also has the same tokens as in a question ("Where is the bell?"); most tokenizers encode it differently at the
beginning."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cm3core.boxes import quarter_of
from cm3core.document import Document, Text, text_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Region

_PART = re.compile(r"at \((\d+), (\d+)\) -> \((\d+), (\d+)\), \w+ \w+: (.*)", re.DOTALL)


def prepended(document: Document, region: Region | None) -> Document:
    """The form in which a document found for a region is prepended; region None: for the whole query.

    >>> prepended((Text("bell, outline"),), (10, 12, 40, 44))
    (Text(text='at (10, 12) -> (40, 44), upper left: bell, outline'),)
    """
    if region is None:
        return document
    x0, y0, x1, y1 = region
    place = f"at ({x0}, {y0}) -> ({x1}, {y1}), {quarter_of(region)}"
    return (Text(f"{place}: {text_of(document)}"),)


def part_in(text: str) -> tuple[Region, str] | None:
    """The region and the document's text in a text made by `prepended` for a region; None for other texts.

    >>> part_in("at (10, 12) -> (40, 44), upper left: bell, outline")
    ((10, 12, 40, 44), 'bell, outline')
    """
    if (found := _PART.fullmatch(text)) is None:
        return None
    x0, y0, x1, y1 = map(int, found.groups()[:4])
    return (x0, y0, x1, y1), found[5]
