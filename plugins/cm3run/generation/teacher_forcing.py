"""Teacher forcing: a document and the contents of its holes -> the tokens to feed, and targets.

Tokens without a choice (prefixes, ends of runs, the end of a text of maximum length) are fed but are
not targets. Numpy only. Legend: T tokens fed, P targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cm3core.document import NO_CELL, Document, IntArray
from cm3core.errors import GenerationError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import Hole, HoleGrammar, LegalIds, with_limits
from cm3core.sequence.segments import TokenWriter
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary


@dataclass(frozen=True, eq=False)
class ForcedRow:
    """The tokens to feed (all but the last), and for each target its position and its legal ids.

    Args:
        tokens: int32 [T].
        cells: int32 [T]; raster cell of an image code, `NO_CELL` for every other token.
        places: int64 [P], the positions that predict the targets, in ascending order.
        targets: int32 [P].
        legal: the legal ids of each target.
        modalities: of each target, "text" or "image".
        progress: int64 [P, 2]; place of each target in its hole, and the last one that there can be.
    """

    tokens: IntArray
    cells: IntArray
    places: npt.NDArray[np.int64]
    targets: IntArray
    legal: list[LegalIds]
    modalities: list[str]
    progress: npt.NDArray[np.int64]

    @cached_property
    def key(self) -> bytes:
        """Equal for rows with equal results, so that equal documents are computed once."""
        return b"|".join(
            array.tobytes() for array in (self.tokens, self.cells, self.places, self.targets)
        )


def forced_row(
    place: str,
    serializer: Serializer,
    vocabulary: Vocabulary,
    document: Document,
    contents: Sequence[IntArray],
    *,
    retrieved: Sequence[Document],
    variant: PromptVariant | None,
    max_text_tokens: int | None,
    control: Sequence[str] | None = None,
) -> ForcedRow:
    """The row of a document and its contents; see `Likelihood.log_probability` for the arguments.

    Args:
        place: the document's place in error messages.
        control: names of the control tokens that the prompt begins with, see `Request`.
    """
    longest = max(map(len, contents), default=0)
    # the end of a text without a limit is always a choice, so its hole is one token longer
    document = with_limits(document, lambda hole: longest + 1)
    prompt = serializer.prompt(
        document, retrieved, variant, max_text_tokens=max_text_tokens, control=control
    )
    num_text_ids = serializer.text_tokenizer.vocab_size
    _check_contents(place, prompt.holes, contents, vocabulary, num_text_ids)
    grammar = HoleGrammar(
        prompt.holes, vocabulary, num_text_ids, serializer.text, serializer.ids_that_begin
    )
    writer = _Writer(grammar)
    writer.fed.add(prompt.tokens, prompt.cells)
    for index, (hole, content) in enumerate(zip(prompt.holes, contents, strict=True)):
        while len(content) and len(grammar.contents) == index:
            num = grammar.num_draws
            writer.draw(content[:num])
            content = content[num:]
        if len(content):
            raise GenerationError(
                f"{place}, hole {index}",
                f"continues for {len(content)} tokens after the hole has stopped",
                "cut the text after its stop string",
            )
        # a text shorter than its maximum: its end is a choice
        if len(grammar.contents) == index:
            if not any(hole.ends_with in ids for ids in grammar.legal):
                raise GenerationError(
                    f"{place}, hole {index}",
                    f"{len(grammar.current)} text tokens, but the hole takes {hole.min_tokens} or more",
                    "give a longer text, or lower min_tokens",
                )
            writer.draw(np.array([hole.ends_with], np.int32))
    assert grammar.done
    return writer.row()


class _Writer:
    """Collects a row."""

    def __init__(self, grammar: HoleGrammar) -> None:
        self.grammar, self.fed = grammar, TokenWriter()
        self.places: list[npt.NDArray[np.int64]] = []
        self.targets: list[IntArray] = []
        self.legal: list[LegalIds] = []
        self.modalities: list[str] = []
        self.progress: list[npt.NDArray[np.int64]] = []

    def draw(self, tokens: IntArray) -> None:
        """Add at most `grammar.num_draws` targets, and the tokens without a choice after them."""
        last = self.fed.length - 1
        self.places.append(np.arange(last, last + len(tokens)))
        self.targets.append(tokens)
        self.legal += [self.grammar.legal] * len(tokens)
        self.modalities += [self.grammar.modality] * len(tokens)
        first, end = self.grammar.progress
        place = np.arange(first, first + len(tokens))
        self.progress.append(np.stack([place, np.full(len(tokens), end)], axis=1))
        self.fed.add(tokens, self.grammar.cells(len(tokens)))
        forced = self.grammar.take(tokens)
        self.fed.add(forced, self.grammar.forced_cells(forced))

    def row(self) -> ForcedRow:
        """The row, without the last token, which predicts nothing."""
        tokens, cells = self.fed.joined()
        return ForcedRow(
            tokens[:-1],
            cells[:-1],
            np.concatenate(self.places),
            np.concatenate(self.targets),
            self.legal,
            self.modalities,
            np.concatenate(self.progress),
        )


def padded(
    rows: Sequence[ForcedRow], pad: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens and cells of rows, int64 [B, T], padded on the right: no token sees what follows it."""
    longest = max(len(row.tokens) for row in rows)
    tokens_BT = np.full((len(rows), longest), pad, np.int64)
    cells_BT = np.full((len(rows), longest), NO_CELL, np.int64)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row.tokens)] = row.tokens
        cells_BT[index, : len(row.cells)] = row.cells
    return tokens_BT, cells_BT


def check_context(place: str, row: ForcedRow, context_length: int) -> None:
    """Raise `GenerationError` for a row that is longer than the decoder's context."""
    if (over := len(row.tokens) - context_length) > 0:
        raise GenerationError(
            place,
            f"prompt and contents are {len(row.tokens)} tokens, {over} more than the decoder's "
            f"context of {context_length} holds",
            "shorten the text or retrieve fewer documents",
        )


def _check_contents(
    place: str,
    holes: Sequence[Hole],
    contents: Sequence[IntArray],
    vocabulary: Vocabulary,
    num_text_ids: int,
) -> None:
    if len(contents) != len(holes):
        raise GenerationError(
            place, f"{len(contents)} contents for {len(holes)} holes", "give one for each, in order"
        )
    for index, (hole, content) in enumerate(zip(holes, contents, strict=True)):
        where = f"{place}, hole {index}"
        is_text = hole.kind == "text"
        legal = vocabulary.text_ranges(num_text_ids) if is_text else (vocabulary.image,)
        strange = [one for one in content.tolist() if not any(one in ids for ids in legal)]
        if strange:
            raise GenerationError(
                where,
                f"holds {vocabulary.name(strange[0])}, which is not "
                f"{'a text' if is_text else 'an image'} "
                "token",
                "give ids of the vocabulary, without end tokens",
            )
        if hole.kind == "text" and len(content) > hole.max_tokens:
            raise GenerationError(
                where,
                f"{len(content)} text tokens, but the hole takes at most {hole.max_tokens}",
                "shorten the text to fit the hole",
            )
        if hole.kind != "text" and len(content) != hole.max_tokens:
            raise GenerationError(
                where,
                f"{len(content)} codes, but the hole takes {hole.max_tokens}",
                "give one code per cell",
            )
