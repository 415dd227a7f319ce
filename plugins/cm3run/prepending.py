"""Documents of the memory as they are prepended to a query, in training and in generation alike.

A document that was found for the whole query is prepended as it is. Of one that was found for a part of the
query's picture, the text is prepended after the part's place, as in "at (10, 12) -> (40, 44), upper left: bell,
outline": a prompt of captions (SmallCap, arXiv 2209.15323), which take a fraction of the tokens, and say what is where.
The place is first: a causal decoder then knows it where it reads the name. It is told in words, too, next to the name: a
small decoder binds two words sooner than it computes with sixteen digits. And a name in the middle of a text has
the tokens that it has in a question ("Where is the bell?"), which to most tokenizers are others at the beginning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cm3core.boxes import quarter_of
from cm3core.document import Document, Text, text_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Region

_PART = re.compile(r"at \((\d+), (\d+)\) -> \((\d+), (\d+)\), \w+ \w+: (.*)", re.DOTALL)


def prepended(document: Document, region: Region | None) -> Document:
    """What is prepended of a document that was found for a part; None: for the whole query.

    >>> prepended((Text("bell, outline"),), (10, 12, 40, 44))
    (Text(text='at (10, 12) -> (40, 44), upper left: bell, outline'),)
    """
    if region is None:
        return document
    x0, y0, x1, y1 = region
    place = f"at ({x0}, {y0}) -> ({x1}, {y1}), {quarter_of(region)}"
    return (Text(f"{place}: {text_of(document)}"),)


def part_in(text: str) -> tuple[Region, str] | None:
    """The region and the document's text, of a text that `prepended` made of a part; None of another one.

    >>> part_in("at (10, 12) -> (40, 44), upper left: bell, outline")
    ((10, 12, 40, 44), 'bell, outline')
    """
    if (found := _PART.fullmatch(text)) is None:
        return None
    x0, y0, x1, y1 = map(int, found.groups()[:4])
    return (x0, y0, x1, y1), found[5]
