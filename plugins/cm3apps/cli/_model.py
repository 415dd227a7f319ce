"""Shared by commands that use a model: options of its tasks, progress and metadata, and the retrieved documents as text and as
a picture (`--show-retrieved`).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import (
    MODEL,
    grouped,
    registry_of,
)
from cm3apps.cli.opening import settings_of
from cm3core.errors import GenerationError
from cm3core.files import write_bytes
from cm3core.outputs import claim_file
from cm3run.printing import printable as printable

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.attribution import PictureFacts
    from cm3run.model.model import Model
    from cm3run.model.results import (
        Choice,
        GeneratedImage,
        GeneratedText,
        InfilledImage,
        RetrievedDocument,
    )


def report_unknown_words(model: Model, texts: Sequence[str | None]) -> None:
    """Print which words of the texts are not in the training captions, unless the retriever knows words by their
    meaning."""
    if model.knows_meanings:
        return
    unknown = {
        word: near for text in texts if text for word, near in model.unknown_words(text).items()
    }
    if unknown:
        *others, last = map(repr, unknown)
        words = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        mean = "they mean" if others else "it means"
        near = [repr(one) for one in unknown.values() if one is not None]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        print(
            f"note: {words} not in the training captions, so the model has not learnt what {mean}.{hint}",
            file=sys.stderr,
        )


def task_options(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of every method of `Model` that generates."""
    options = {
        "seed": args.seed,
        "num_retrieved": args.num_retrieved,
        "num_candidates": args.num_candidates,
        "reranker": args.rerank,
        "sampler": args.sampler,
        "context": args.context or None,
        "max_codes": getattr(args, "max_codes", None),
        "task": getattr(args, "task", None),
        "force": getattr(args, "force", None) or None,
    }
    return {key: value for key, value in options.items() if value is not None} | settings_of(
        args.settings, "sampler"
    )


def add_task(parser: ArgumentParser, what: str) -> None:
    """Add `--task` and `--force` to a command that runs a task; `what` names the task's result."""
    grouped(parser, MODEL).add_argument(
        "--task",
        metavar="NAME",
        help="task to use, which the model was tuned for (default: the first that fits)",
    )
    grouped(parser, MODEL).add_argument(
        "--force",
        action="store_true",
        help=f"run even if the model was not tuned for {what}; the results are then meaningless",
    )


def refuse_untuned(args: Namespace, command: str, what: str) -> None:
    """Raise `GenerationError` for a model that was not tuned, unless `--force` is given."""
    if args.force:
        return
    from cm3run.checkpoint import TASKS, find_checkpoint, find_model

    if not (find_checkpoint(find_model(args.model, registry_of(args))) / TASKS).is_file():
        raise GenerationError(
            f"cm3 {command}",
            f"model {str(args.model)!r} was not tuned for {what}; its results would be meaningless",
            "tune one (docs/tuning.md), or give --force to run it on any model",
        )


def written_facts(
    model: Model, args: Namespace, picture: GeneratedImage | InfilledImage, **texts: str
) -> PictureFacts:
    """A picture's metadata: everything needed to generate it again, and the prepended documents."""
    from cm3run.model.facts import facts_of

    if args.retriever is not None:
        texts["retriever"] = args.retriever
    if getattr(args, "condition", None):
        keys = settings_of(args.settings, "condition")
        texts["condition"] = json.dumps([*args.condition, keys], ensure_ascii=False)
    if getattr(args, "max_codes", None) is not None:
        texts["max_codes"] = str(args.max_codes)
    sampling = settings_of(args.settings, "sampler")
    return facts_of(model, picture, sampler=args.sampler, sampling=sampling, **texts)


def show_choice(choice: Choice | None) -> None:
    """Print how a result was chosen among candidates, if it was."""
    if choice is not None:
        scores = ", ".join(
            f"{score:.4g} a copy" if copy else f"{score:.4g}"
            for score, copy in zip(choice.scores, choice.copies, strict=True)
        )
        print(
            f"  candidate {choice.index + 1} of {len(choice.scores)} by {choice.measure}: "
            f"{choice.score:.4g} (all: {scores})"
        )


def show_answer(picture: GeneratedImage) -> None:
    """Print whether a picture was found, restyled or composed, if the model tells."""
    if picture.told:
        print(f"  {printable(picture.told)}")


def show_note(note: str) -> None:
    """Print a note about an instruction, such as how it is read; none for ""."""
    if note:
        print(f"note: {printable(note)}", file=sys.stderr)


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
    """Read a picture's file as the model sees it."""
    from cm3core import images
    from cm3run.model.loaded import given_pixels

    return images.fit(given_pixels(model, picture), model.image_size)


def show_query(retrieved: Sequence[RetrievedDocument]) -> None:
    """Print the query, if it differs from the prompt."""
    query = next((one.looked_for for one in retrieved if one.looked_for), "")
    if query:
        print(f"  query: {query!r}")


def show_retrieved(retrieved: Sequence[RetrievedDocument]) -> None:
    """Print one line per document."""
    for place, document in enumerate(retrieved):
        score = "" if document.score is None else f" ({document.score:.3f})"
        print(f"  retrieved {place + 1}: {printable(document.id)}{score} {document.text!r}")
    if not retrieved:
        print("  retrieved: nothing")


def report_unlike(model: Model, picture: GeneratedImage) -> None:
    """Print a note if no retrieved text is about the prompt's subject: the object is then seldom drawn.

    Of a retriever that compares by meaning, the scores decide (`report_found`); otherwise whether a text has a word of the
    subject. The text after a comma is the style. If a word is unknown, a note was printed already, and that may be
    the reason. A picture with an answer tells more (`show_answer`).
    """
    from cm3run.words import shares_a_word

    if picture.answer is not None:
        return
    if model.knows_meanings:
        report_found(model, picture)
        return
    query = next((one.looked_for for one in picture.retrieved if one.looked_for), picture.prompt)
    thing = model.components.prompt_rewriter.subject(query)
    texts = [document.text for document in picture.retrieved if document.text]
    if not texts or model.unknown_words(thing):
        return
    if not any(shares_a_word(thing, text) for text in texts):
        found = ", ".join(map(repr, texts))
        print(
            f"note: the documents retrieved for {picture.prompt!r} have none of its words: {found}; "
            "it may not be drawn, try fewer or other words",
            file=sys.stderr,
        )


def report_found(model: Model, picture: GeneratedImage) -> None:
    """Print what was found for a prompt and how near it is, unless it has the prompt's words: nothing that was typed
    is dropped without a word. Below `retriever.unknown_below` the memory has no such thing."""
    from cm3run.words import words_of

    scored = [(one.score, one.text) for one in picture.retrieved if one.score is not None]
    if not scored:
        return
    score, text = max(scored)
    least = getattr(model.recipe.retriever, "unknown_below", None)
    if least is not None and score < least:
        print(
            f"note: the memory has no {picture.prompt!r}: the nearest is {text!r} ({score:.2f}; below {least:g} it means "
            "little); what is drawn is a guess",
            file=sys.stderr,
        )
    elif set(words_of(picture.prompt)) - set(words_of(text)):
        print(f"note: for {picture.prompt!r}, found {text!r} ({score:.2f})", file=sys.stderr)


def report_copy(
    path: Path, picture: GeneratedImage | InfilledImage, *, offers: bool = False
) -> None:
    """Print a note if a picture is nearly a copy of a prepended document, with the document's licence.

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
    """Print a note if the memory has nothing like the picture: the answer is then a guess."""
    retriever = model.recipe.retriever
    least = None if retriever is None else retriever.unlike_below
    scored = [(one.score, one.text) for one in answer.retrieved if one.score is not None]
    if least is None or not scored:
        return
    score, text = max(scored)
    if score < least:
        print(
            f"note: nothing in the memory looks like {picture}: the most similar document is {text!r} "
            f"({score:.2f}; below {least:g} it means little); the answer may be wrong",
            file=sys.stderr,
        )


def claim_retrieved(args: Namespace, folder: Path) -> None:
    """Before a model is opened: raise `FileError` if `write_retrieved` would replace somebody else's file."""
    if args.show_retrieved:
        claim_file(folder / FILE)


def write_retrieved(folder: Path, retrievals: Sequence[Retrieval]) -> None:
    """Write `retrieved.png` into a folder and print its path."""
    from cm3run.attribution import png
    from cm3run.model.facts import facts_of_documents

    facts = facts_of_documents(document for one in retrievals for document in one.retrieved)
    write_bytes(folder / FILE, png(retrieved_sheet(retrievals), facts))
    print(folder / FILE)


def retrieved_sheet(retrievals: Sequence[Retrieval]) -> PixelArray:
    """A sheet with one row per query: the query, the prepended documents with their scores, and the result; then the
    documents and results of later pictures with the same query.

    Returns uint8 [height, width, 3].
    """
    from cm3run.sheets import grid

    most = max(len(one.retrieved) for one in retrievals)
    pictures: list[list[PixelArray | None]] = []
    words: list[list[str]] = []
    for place, one in enumerate(retrievals):
        nothing = most - len(one.retrieved)
        before = retrievals[place - 1] if place else None
        # pictures with the same name in two folders are two queries
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
