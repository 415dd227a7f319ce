"""`--show-retrieved`: the documents prepended to a prompt, as text and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli._model import printable
from cm3core.files import write_bytes

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.model import Model
    from cm3run.model.results import (
        GeneratedImage,
        GeneratedText,
        InfilledImage,
        RetrievedDocument,
    )

FILE = "retrieved.png"
#: Minimum size of a picture on the sheet, in pixels, and maximum length of its caption.
TILE, LETTERS = 128, 120


@dataclass(frozen=True, eq=False)
class Retrieval:
    """A query and its result: each has text, a picture (uint8 [height, width, 3]) or both."""

    query: str
    query_pixels: PixelArray | None
    retrieved: Sequence[RetrievedDocument]
    result: str
    result_pixels: PixelArray | None


def seen(picture: Path, model: Model) -> PixelArray:
    """A picture's file as the model sees it."""
    from cm3core import images

    return images.fit(images.open_image(picture), model.image_size)


def show_query(retrieved: Sequence[RetrievedDocument]) -> None:
    """Print what was looked for, where that is another text than the prompt."""
    query = next((one.looked_for for one in retrieved if one.looked_for), "")
    if query:
        print(f"  looked for: {query!r}")


def show_retrieved(retrieved: Sequence[RetrievedDocument]) -> None:
    """Print one line per document."""
    for place, document in enumerate(retrieved):
        score = "" if document.score is None else f" ({document.score:.3f})"
        print(f"  retrieved {place + 1}: {printable(document.id)}{score} {document.text!r}")
    if not retrieved:
        print("  retrieved: nothing")


def report_unlike(model: Model, picture: GeneratedImage) -> None:
    """Say that no retrieved text has a word of what was asked for: then the thing is seldom drawn.

    What stands behind a comma is style. Where a word is unknown, that was said, and may be why.
    """
    from cm3run.words import shares_a_word

    query = next((one.looked_for for one in picture.retrieved if one.looked_for), picture.prompt)
    thing = model.components.prompt_rewriter.subject(query)
    texts = [document.text for document in picture.retrieved if document.text]
    if not texts or model.unknown_words(thing):
        return
    if not any(shares_a_word(thing, text) for text in texts):
        found = ", ".join(map(repr, texts))
        print(
            f"note: what was retrieved for {picture.prompt!r} has none of its words: {found}; "
            "it may not be drawn, try fewer or other words",
            file=sys.stderr,
        )


def report_copy(
    path: Path, picture: GeneratedImage | InfilledImage, *, offers: bool = False
) -> None:
    """Say that a picture is nearly a copy of a document that was in front, and of which, with its licence.

    `offers`: whether `--original` would write the document's own file.
    """
    found = picture.nearest
    if found is not None and found.is_copy:
        original = "; --original writes the original beside it" if offers else ""
        print(
            f"note: {path} is {printable(found.told)}, nearness {found.nearness:.2f}{original}",
            file=sys.stderr,
        )


def report_unlike_picture(model: Model, picture: Path, answer: GeneratedText) -> None:
    """Say that the memory has nothing like a picture that was asked about: what is said of it is a guess."""
    retriever = model.recipe.retriever
    least = None if retriever is None else retriever.unlike_below
    scored = [(one.score, one.text) for one in answer.retrieved if one.score is not None]
    if least is None or not scored:
        return
    score, text = max(scored)
    if score < least:
        print(
            f"note: nothing that the model knows looks like {picture}: the most similar is {text!r} "
            f"({score:.2f}, and less than {least:g} means little); the answer may be wrong",
            file=sys.stderr,
        )


def write_retrieved(folder: Path, retrievals: Sequence[Retrieval]) -> None:
    """Write `retrieved.png` into a folder and print its path."""
    from cm3run.attribution import png
    from cm3run.model.facts import facts_of_documents

    facts = facts_of_documents(document for one in retrievals for document in one.retrieved)
    write_bytes(folder / FILE, png(retrieved_sheet(retrievals), facts))
    print(folder / FILE)


def retrieved_sheet(retrievals: Sequence[Retrieval]) -> PixelArray:
    """A row per query: the query, the prepended documents with their scores, the result; then the documents and
    results of those behind it with the same query.

    Returns uint8 [height, width, 3].
    """
    from cm3core.images import grid

    most = max(len(one.retrieved) for one in retrievals)
    pictures: list[list[PixelArray | None]] = []
    words: list[list[str]] = []
    for place, one in enumerate(retrievals):
        nothing = most - len(one.retrieved)
        before = retrievals[place - 1] if place else None
        # pictures of one name in two folders are two queries
        if (
            before is None
            or one.query != before.query
            or one.query_pixels is not before.query_pixels
        ):
            pictures.append([one.query_pixels])
            words.append([_cut(one.query)])
        own = [document.pixels for document in one.retrieved]
        pictures[-1] += [*own, *[None] * nothing, one.result_pixels]
        texts = (*map(_label, one.retrieved), *[""] * nothing, one.result)
        words[-1] += [_cut(text) for text in texts]
    widest = max(map(len, pictures))
    pictures = [row + [None] * (widest - len(row)) for row in pictures]
    words = [row + [""] * (widest - len(row)) for row in words]
    heights = [pixels.shape[0] for row in pictures for pixels in row if pixels is not None]
    found = [f"retrieved {place + 1}" for place in range(most)]
    result = "result" if most else "result, nothing retrieved"
    headings = ["query", *[*found, result] * ((widest - 1) // (most + 1))]
    return grid(
        pictures,
        captions=words,
        column_labels=headings,
        scale=max(1, TILE // max(heights, default=TILE)),
    )


def _label(document: RetrievedDocument) -> str:
    score = "given by hand" if document.score is None else f"score {document.score:.3f}"
    return f"{score}\n{document.text}"


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 3]}..."
