"""What a guidance stream sees of the query document: texts hidden, left out or replaced, pictures
hidden; holes untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cm3core.document import Codes, Document, MaskedText, Segment, Text, TextHole
from cm3core.interfaces.sampler import PromptVariant


@dataclass(frozen=True)
class Hidden:
    """What a guidance stream doesn't see, text or picture: one sentinel, numbered after those of
    the holes."""


#: A query's segment after a `PromptVariant`: pieces of text that are seen, hidden or holes; or a
#: picture.
Pieces: TypeAlias = list[str | TextHole | Hidden]


def apply_variant(query: Document, variant: PromptVariant) -> list[tuple[int, Pieces | Segment]]:
    """(index, content) of the query's segments as a stream sees them; text as pieces, holes
    untouched.

    A text is what a `Text`, or a `MaskedText` between its holes, says. `replace_text` alone
    replaces all of them. With `hide_images` a picture without missing codes is hidden, and segments
    that are hidden side by side are one (with the first's index), so that nothing shows how many
    there were. Text that is hidden beside a hole of its segment leaves nothing but the hole: no
    span of training ends where the next begins but by chance.

    >>> edit = (Text("a cat"), Codes(np.zeros(4, np.int32), (2, 2)), Text("now a dog"), ImageHole())
    >>> apply_variant(edit, PromptVariant(hide_text="all", hide_images=True))
    [(0, [Hidden()]), (3, ImageHole())]
    """
    assert variant.hide_text in ("none", "all", "last"), variant.hide_text
    scope = (
        "all"
        if variant.hide_text == "none" and variant.replace_text is not None
        else variant.hide_text
    )
    with_text = [
        index
        for index, segment in enumerate(query)
        if isinstance(segment, Text)
        or (
            isinstance(segment, MaskedText)
            and any(isinstance(part, str) and part for part in segment.parts)
        )
    ]
    hidden = {"none": [], "all": with_text, "last": with_text[-1:]}[scope]
    result: list[tuple[int, Pieces | Segment]] = []
    for index, segment in enumerate(query):
        if not isinstance(segment, (Text, MaskedText, TextHole)):
            result.append(
                (
                    index,
                    [Hidden()] if variant.hide_images and _is_whole_picture(segment) else segment,
                )
            )
            continue
        parts: Sequence[str | TextHole] = (
            [segment.text]
            if isinstance(segment, Text)
            else [segment]
            if isinstance(segment, TextHole)
            else segment.parts
        )
        pieces: Pieces = list(parts)
        if index in hidden:
            if variant.replace_text is None:
                pieces = [part for part in parts if isinstance(part, TextHole)]
                if not (pieces or variant.drop_text):
                    pieces = [Hidden()]
            else:
                pieces = [
                    part if isinstance(part, TextHole) else variant.replace_text
                    for part in parts
                    if isinstance(part, TextHole) or part or isinstance(segment, Text)
                ]
            if not pieces:
                continue  # left out altogether, its <break> too
        result.append((index, pieces))
    return _merged(result) if variant.hide_images else result


def _merged(segments: list[tuple[int, Pieces | Segment]]) -> list[tuple[int, Pieces | Segment]]:
    """One sentinel for all that is hidden side by side."""
    result: list[tuple[int, Pieces | Segment]] = []
    for index, content in segments:
        if not (result and content == [Hidden()] and result[-1][1] == [Hidden()]):
            result.append((index, content))
    return result


def without_hidden(
    segments: list[tuple[int, Pieces | Segment]],
) -> list[tuple[int, Pieces | Segment]]:
    """The segments without those that are hidden, their <break> too."""
    return [(index, content) for index, content in segments if content != [Hidden()]]


def _is_whole_picture(segment: Segment) -> bool:
    """Codes of which nothing is missing. Pixels are left for the serializer to refuse."""
    return isinstance(segment, Codes) and (segment.missing is None or not segment.missing.any())
