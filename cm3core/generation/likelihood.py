"""Log-probability of what fills a document's holes, under the model itself, by teacher forcing:
nothing is drawn.

Prompts and contents of many documents go through the decoder together, without a cache:
right-padded rows, longest first, at most so many tokens at once. The head runs at the positions
that predict content, over the ids that the grammar allows there: image codes, or text and its end
token. What leaves no choice (prefixes, ends of runs, the end of a text at its longest) counts
nothing. So the figure is `Completion.log_probability` of the engine for the same tokens, computed
another way.

Legend: n documents, B rows, T tokens fed, P positions that predict, E model dimension, R legal ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cm3core.document import (
    NO_CELL,
    Codes,
    Document,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Text,
    TextHole,
)
from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import HoleGrammar, LegalIds
from cm3core.sequence.serialize import Hole, Serializer
from cm3core.vocab import Vocabulary

#: Most tokens of a forward, padding included, unless one document alone is longer.
MAX_TOKENS = 4096
#: Most bytes of the float32 logits that are in memory at once.
CHUNK_BYTES = 32 << 20


class LogProbability(NamedTuple):
    """Sum over the tokens that there was a choice for, natural logarithm (`nats`), and how many
    they are."""

    nats: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats a token: minus the logarithm of the perplexity."""
        return self.nats / self.num_tokens


class Likelihood:
    """Asks a decoder how probable given contents of holes are.

    Args:
        decoder: on any device, in its own dtype; switched to evaluation (`eval()`), as opened
            models are.
        serializer: documents -> prompts.
        vocabulary: the decoder's.
        max_text_tokens: every text of a prompt is cut to its first so many tokens, as it was in
            training. None: never.
        max_tokens: of one forward, padding included; with `CHUNK_BYTES` of logits it bounds memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.max_text_tokens, self.max_tokens = max_text_tokens, max_tokens

    @torch.inference_mode()
    def log_probability(
        self,
        documents: Sequence[Document],
        contents: Sequence[Sequence[IntArray]],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        variant: PromptVariant | None = None,
    ) -> list[LogProbability]:
        """log p(contents | the rest of the document) of each document, in order.

        Args:
            documents: at least one hole each, pictures as `Codes`.
            contents: for each document its holes' contents in order, ids of the vocabulary without
                end tokens, as `contents_of` gives them. A text shorter than its hole's `max_tokens`
                is ended there, and the end token counts; a hole without a limit counts it always.
            retrieved: for each document those in front of it. None: none.
            variant: what is seen of the prompts. None: everything.

        Raises:
            GenerationError: contents that the holes can't hold, or more tokens than the decoder's
                context.
            DocumentError: a document can't be serialised.
        """
        in_front = [()] * len(documents) if retrieved is None else retrieved
        rows = [
            self._row(f"document {place}", *one)
            for place, one in enumerate(
                zip(documents, contents, in_front, [variant] * len(documents), strict=True)
            )
        ]
        unique = sorted(
            {row.key: row for row in rows}.values(), key=lambda row: len(row.tokens), reverse=True
        )
        nats: dict[bytes, float] = {}
        for chunk in self._chunks(unique):
            nats |= zip((row.key for row in chunk), self._nats(chunk).tolist(), strict=True)
        return [LogProbability(nats[row.key], len(row.targets)) for row in rows]

    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """Contents int32 of each hole, in order: the inverse of `Serializer.fill`, but that text is
        encoded anew.

        Args:
            document: with holes.
            filled: the same document, its holes filled. Texts longer than their holes are cut to
                them.

        Raises:
            GenerationError: `filled` isn't `document` with its holes filled.
        """
        if len(document) != len(filled):
            raise GenerationError(
                "filled document",
                f"has {len(filled)} segments, the document has {len(document)}",
                "give the document itself, its holes filled",
            )
        return [
            content
            for place, (asked, given) in enumerate(zip(document, filled, strict=True))
            for content in self._segment_contents(f"filled document, segment {place}", asked, given)
        ]

    def _segment_contents(self, place: str, asked: Segment, given: Segment) -> list[IntArray]:
        if isinstance(asked, TextHole) and isinstance(given, Text):
            return [self._text_content(given.text, asked)]
        if isinstance(asked, MaskedText) and isinstance(given, Text):
            # Each hole takes as little as it can: texts between holes that occur twice could be
            # matched in several ways.
            pattern = "".join(
                re.escape(part) if isinstance(part, str) else "(.+?)" for part in asked.parts
            )
            holes = [part for part in asked.parts if isinstance(part, TextHole)]
            if match := re.fullmatch(pattern, given.text, re.DOTALL):
                return [
                    self._text_content(text, hole)
                    for text, hole in zip(match.groups(), holes, strict=True)
                ]
        if isinstance(asked, ImageHole) and isinstance(given, Codes):
            return [self.serializer.code_tokens(given, place)]
        if isinstance(asked, Codes) and isinstance(given, Codes):
            before, tokens = (
                self.serializer.code_tokens(asked, place),
                self.serializer.code_tokens(given, place),
            )
            missing = np.zeros(len(tokens), np.bool_) if asked.missing is None else asked.missing
            if np.array_equal(before[~missing], tokens[~missing]):
                cells = np.flatnonzero(missing)
                return [
                    tokens[run]
                    for run in np.split(cells, np.flatnonzero(np.diff(cells) > 1) + 1)
                    if len(run)
                ]
        if isinstance(asked, Text) and asked == given:
            return []
        raise GenerationError(
            place,
            f"is no filling of the document's {type(asked).__name__}",
            "give the document itself, its holes filled",
        )

    def _text_content(self, text: str, hole: TextHole) -> IntArray:
        """The tokens of a text as far as its hole takes them: to its length, or to what it stops
        at."""
        tokens = self.serializer.text_tokens(text, hole.max_tokens)
        stops = (
            end
            for end in range(1, len(tokens) + 1)
            if any(one in self.serializer.text(tokens[:end]) for one in hole.stop)
        )
        return tokens[: next(stops, len(tokens))] if hole.stop else tokens

    # ---- documents -> rows

    def _row(
        self,
        place: str,
        document: Document,
        contents: Sequence[IntArray],
        retrieved: Sequence[Document],
        variant: PromptVariant | None,
    ) -> _Row:
        """Tokens of a document and its contents, and where each token that there is a choice for
        stands."""
        document = _sized(document, max(map(len, contents), default=0) + 1)
        prompt = self.serializer.prompt(
            document, retrieved, variant, max_text_tokens=self.max_text_tokens
        )
        num_text_ids = self.serializer.text_tokenizer.vocab_size
        _check_contents(place, prompt.holes, contents, self.vocabulary, num_text_ids)
        grammar = HoleGrammar(prompt.holes, self.vocabulary, num_text_ids, self.serializer.text)
        writer = _Writer([prompt.tokens], [prompt.cells], len(prompt.tokens))
        for index, (hole, content) in enumerate(zip(prompt.holes, contents, strict=True)):
            while len(content) and len(grammar.contents) == index:
                num = grammar.num_draws
                writer.draw(content[:num], grammar)
                content = content[num:]
            if len(content):
                raise GenerationError(
                    f"{place}, hole {index}",
                    f"goes on for {len(content)} tokens where the hole stops",
                    "cut the text behind the string that it stops at",
                )
            # a text that is shorter than it might be: its end is a choice
            if len(grammar.contents) == index:
                if not any(hole.ends_with in ids for ids in grammar.legal):
                    raise GenerationError(
                        f"{place}, hole {index}",
                        f"{len(grammar.current)} text tokens, the hole takes "
                        f"{hole.min_tokens} or more",
                        "give a longer text, or lower min_tokens",
                    )
                writer.draw(np.array([hole.ends_with], np.int32), grammar)
        assert grammar.done
        row = writer.row()
        if (over := len(row.tokens) - self.decoder.context_length) > 0:
            raise GenerationError(
                place,
                f"prompt and contents are {len(row.tokens)} tokens, {over} more than the decoder's "
                f"context of {self.decoder.context_length} holds",
                "shorten the text or retrieve fewer documents",
            )
        return row

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        """Rows, longest first, as many at once as `max_tokens` holds."""
        start = 0
        while start < len(rows):
            stop = start + max(1, self.max_tokens // len(rows[start].tokens))
            yield rows[start:stop]
            start = stop

    # ---- rows -> nats

    def _nats(self, rows: Sequence[_Row]) -> npt.NDArray[np.float64]:
        """float64 [B]: sum of each row's targets' log-probabilities."""
        device = self.decoder.head_weight().device
        longest = max(len(row.tokens) for row in rows)
        tokens_BT = np.full((len(rows), longest), self.vocabulary.pad, np.int64)
        cells_BT = np.full((len(rows), longest), NO_CELL, np.int64)
        # padding stands behind the row, and no token sees what stands behind it
        for index, row in enumerate(rows):
            tokens_BT[index, : len(row.tokens)], cells_BT[index, : len(row.cells)] = (
                row.tokens,
                row.cells,
            )
        hidden_BTE = self.decoder.hidden_states(
            torch.from_numpy(tokens_BT).to(device), cells_BT=torch.from_numpy(cells_BT).to(device)
        )
        nats_B = np.zeros(len(rows))
        for legal in {legal for row in rows for legal in row.legal}:
            chosen = [np.array([own == legal for own in row.legal], np.bool_) for row in rows]
            owner_P = np.repeat(np.arange(len(rows)), [int(own.sum()) for own in chosen])
            place_P = np.concatenate(
                [row.places[own] for row, own in zip(rows, chosen, strict=True)]
            )
            target_P = np.concatenate(
                [row.targets[own] for row, own in zip(rows, chosen, strict=True)]
            )
            step = max(1, CHUNK_BYTES // (4 * sum(len(ids) for ids in legal)))
            for start in range(0, len(owner_P), step):
                part = slice(start, start + step)
                hidden_PE = hidden_BTE[
                    torch.from_numpy(owner_P[part]).to(device),
                    torch.from_numpy(place_P[part]).to(device),
                ]
                log_probability_P = self._log_probabilities(hidden_PE, legal, target_P[part])
                np.add.at(nats_B, owner_P[part], log_probability_P.double().cpu().numpy())
        return nats_B

    def _log_probabilities(self, hidden_PE: Tensor, legal: LegalIds, target_P: IntArray) -> Tensor:
        """Log-probability, float32 [P], of each target among the legal ids."""
        logits_PR = torch.cat([self.decoder.logits(hidden_PE, ids).float() for ids in legal], dim=1)
        index_P, before = np.zeros(len(target_P), np.int64), 0
        for ids in legal:
            inside = (target_P >= ids.start) & (target_P < ids.stop)
            index_P[inside] = target_P[inside] - ids.start + before
            before += len(ids)
        index_P1 = torch.from_numpy(index_P).to(logits_PR.device)[:, None]
        return logits_PR.gather(1, index_P1)[:, 0] - logits_PR.logsumexp(dim=1)


@dataclass(frozen=True, eq=False)
class _Row:
    """What is fed (all but the last token drawn), and for each target the place that predicts it
    and the ids it is among."""

    tokens: IntArray
    cells: IntArray
    places: npt.NDArray[np.int64]
    targets: IntArray
    legal: list[LegalIds]

    @cached_property
    def key(self) -> bytes:
        """Equal for rows that are computed alike: equal documents are asked for once."""
        return b"|".join(
            array.tobytes() for array in (self.tokens, self.cells, self.places, self.targets)
        )


class _Writer:
    """Collects a row."""

    def __init__(self, tokens: list[IntArray], cells: list[IntArray], length: int) -> None:
        self.tokens, self.cells, self.length = tokens, cells, length
        self.places: list[npt.NDArray[np.int64]] = []
        self.targets: list[IntArray] = []
        self.legal: list[LegalIds] = []

    def draw(self, tokens: IntArray, grammar: HoleGrammar) -> None:
        """Tokens that there is a choice for, at most `grammar.num_draws`, and what follows them
        without one."""
        self.places.append(np.arange(self.length - 1, self.length - 1 + len(tokens)))
        self.targets.append(tokens)
        self.legal += [grammar.legal] * len(tokens)
        self._add(tokens, grammar.cells(len(tokens)))
        forced = grammar.take(tokens)
        self._add(forced, np.full(len(forced), NO_CELL, np.int32))

    def _add(self, tokens: IntArray, cells: IntArray) -> None:
        self.tokens.append(tokens)
        self.cells.append(cells)
        self.length += len(tokens)

    def row(self) -> _Row:
        """Without the last token, which predicts nothing."""
        return _Row(
            np.concatenate(self.tokens)[:-1],
            np.concatenate(self.cells)[:-1],
            np.concatenate(self.places),
            np.concatenate(self.targets),
            self.legal,
        )


def _sized(document: Document, num_tokens: int) -> Document:
    """The document, its text holes without a limit given one of `num_tokens`."""

    def sized(part: str | TextHole) -> str | TextHole:
        return (
            replace(part, max_tokens=num_tokens)
            if isinstance(part, TextHole) and part.max_tokens is None
            else part
        )

    return tuple(
        MaskedText(tuple(map(sized, segment.parts)))
        if isinstance(segment, MaskedText)
        else replace(segment, max_tokens=num_tokens)
        if isinstance(segment, TextHole) and segment.max_tokens is None
        else segment
        for segment in document
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
        start = vocabulary.text.start
        legal = range(start, start + num_text_ids) if hole.kind == "text" else vocabulary.image
        if strange := [token for token in content.tolist() if token not in legal]:
            raise GenerationError(
                where,
                f"holds {vocabulary.name(strange[0])}, no "
                f"{'text' if hole.kind == 'text' else 'image'} "
                "token",
                "give ids of the vocabulary, without end tokens",
            )
        if hole.kind == "text" and len(content) > hole.max_tokens:
            raise GenerationError(
                where,
                f"{len(content)} text tokens, the hole takes at most {hole.max_tokens}",
                "cut the text to the hole",
            )
        if hole.kind != "text" and len(content) != hole.max_tokens:
            raise GenerationError(
                where,
                f"{len(content)} codes, the hole takes {hole.max_tokens}",
                "give a code for each cell",
            )
