"""What fills the holes of a document: contents -> the filled document, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from cm3core.document import (
    Codes,
    Document,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Text,
    TextHole,
    starts_turn,
    with_turn,
)
from cm3core.errors import DocumentError, GenerationError
from cm3core.sequence.holes import missing_codes, num_holes, runs_of
from cm3core.sequence.leads import after_lead
from cm3core.sequence.segments import SegmentCodec


def fill(codec: SegmentCodec, query: Document, contents: Sequence[IntArray]) -> Document:
    """See `Serializer.fill`."""
    if len(contents) != num_holes(query):
        raise DocumentError(
            "contents",
            f"{len(contents)} for {num_holes(query)} holes",
            "pass one for each, in order",
        )
    queue = iter(contents)
    filled = (_fill_segment(codec, segment, queue.__next__) for segment in query)
    return tuple(
        with_turn(segment, starts_turn(asked)) for asked, segment in zip(query, filled, strict=True)
    )


def _fill_segment(
    codec: SegmentCodec, segment: Segment, following: Callable[[], IntArray]
) -> Segment:
    if isinstance(segment, TextHole):
        return Text(codec.text(following()))
    if isinstance(segment, MaskedText):
        leads = iter(codec.without_leads(segment)[1])
        return Text(
            "".join(
                part if isinstance(part, str) else after_lead(next(leads), codec.text(following()))
                for part in segment.parts
            )
        )
    if isinstance(segment, ImageHole):
        return codec.codes(following())
    if isinstance(segment, Codes) and missing_codes(segment).any():
        tokens = codec.code_tokens(segment, "query document")
        for run in runs_of(missing_codes(segment)):
            content = following()
            if len(content) != len(run):
                raise DocumentError(
                    "contents",
                    f"{len(content)} codes for {len(run)} cells",
                    "generate every missing cell",
                )
            tokens[run] = content
        return codec.codes(tokens)
    return Codes(segment.codes, segment.grid) if isinstance(segment, Codes) else segment


def contents_of(codec: SegmentCodec, document: Document, filled: Document) -> list[IntArray]:
    """See `Serializer.contents_of`."""
    if len(document) != len(filled):
        raise GenerationError(
            "filled document",
            f"has {len(filled)} segments, the document has {len(document)}",
            "give the same document with its holes filled",
        )
    return [
        content
        for place, (asked, given) in enumerate(zip(document, filled, strict=True))
        for content in _segment_contents(codec, f"filled document, segment {place}", asked, given)
    ]


def _segment_contents(
    codec: SegmentCodec, place: str, asked: Segment, given: Segment
) -> list[IntArray]:
    if isinstance(asked, TextHole) and isinstance(given, Text):
        return [_text_content(codec, given.text, asked)]
    if isinstance(asked, MaskedText) and isinstance(given, Text):
        leads = codec.without_leads(asked)[1]
        some = iter("(.*?)" if lead else "(.+?)" for lead in leads)
        # Each hole takes as little as it can: texts between holes that occur twice could be
        # matched in several ways.
        pattern = "".join(
            re.escape(part) if isinstance(part, str) else next(some) for part in asked.parts
        )
        holes = [part for part in asked.parts if isinstance(part, TextHole)]
        if match := re.fullmatch(pattern, given.text, re.DOTALL):
            return [
                _text_content(codec, lead + text, hole)
                for lead, text, hole in zip(leads, match.groups(), holes, strict=True)
            ]
    if isinstance(asked, ImageHole) and isinstance(given, Codes):
        return [codec.code_tokens(given, place)]
    if isinstance(asked, Codes) and isinstance(given, Codes):
        before, tokens = (
            codec.code_tokens(asked, place),
            codec.code_tokens(given, place),
        )
        missing = missing_codes(asked)
        if np.array_equal(before[~missing], tokens[~missing]):
            return [tokens[run] for run in runs_of(missing)]
    if isinstance(asked, Text) and asked == given:
        return []
    raise GenerationError(
        place,
        f"is not a filling of the document's {type(asked).__name__}",
        "give the same document with its holes filled",
    )


def _text_content(codec: SegmentCodec, text: str, hole: TextHole) -> IntArray:
    """The tokens of a text as far as its hole takes them: to its length, or to what it stops
    at."""
    tokens = codec.text_tokens(text, hole.max_tokens)
    stops = (
        end
        for end in range(1, len(tokens) + 1)
        if any(one in codec.text(tokens[:end]) for one in hole.stop)
    )
    return tokens[: next(stops, len(tokens))] if hole.stop else tokens
