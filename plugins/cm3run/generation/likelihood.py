"""Log-probability of the contents of a document's holes under the model, by teacher forcing.

`forced_row` turns a document and the contents of its holes into input tokens and targets. Nothing is sampled.
Prompts and contents of many documents go through the decoder together, without a cache: right-padded rows, longest
first, at most `max_tokens` tokens at once. The head runs at the positions that predict content, over the ids that the
grammar allows there: image codes, or text and its end token. Forced tokens (prefixes, ends of runs, the end of a text
of maximum length) are fed but are not targets, and count zero. The result equals the engine's
`Completion.log_probability` for the same tokens, computed independently.

Legend: n documents, B rows, T tokens fed, P positions that predict (targets), E model dimension, R legal ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from cm3core.arguments import checked
from cm3core.document import NO_CELL, Document, IntArray
from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3core.interfaces.reranker import LogProbability
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import Hole, HoleGrammar, LegalIds, with_limits
from cm3core.sequence.segments import TokenWriter
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3run.generation.events import Request
from cm3run.generation.weights import GenerationWeights, whole_of


@dataclass(frozen=True, eq=False)
class ForcedRow:
    """The input tokens (all but the last), and the position and legal ids of each target.

    Args:
        tokens: int32 [T].
        cells: int32 [T]; raster cell of an image code, `NO_CELL` for every other token.
        places: int64 [P], the positions that predict the targets, in ascending order.
        targets: int32 [P].
        legal: the legal ids of each target.
        modalities: of each target, "text" or "image".
        progress: int64 [P, 2]; index of each target in its hole, and the hole's last possible index.
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
        """Equal for rows with equal results, so that duplicates are computed once."""
        return b"|".join(
            array.tobytes() for array in (self.tokens, self.cells, self.places, self.targets)
        )


def forced_row(
    place: str,
    serializer: Serializer,
    request: Request,
    contents: Sequence[IntArray],
    *,
    variant: PromptVariant | None,
    max_text_tokens: int | None,
) -> ForcedRow:
    """The row of a document and its contents; see `Likelihood.log_probability` for the arguments.

    Args:
        place: the document's place in error messages.
        request: the document, the documents prepended to it, and the control tokens at the start of the prompt.
    """
    vocabulary = serializer.vocabulary
    longest = max(map(len, contents), default=0)
    # the end of a text without a limit is always a free choice, so its hole is one token longer
    document = with_limits(request.document, lambda hole: longest + 1)
    prompt = serializer.prompt(
        document,
        request.retrieved,
        variant,
        max_text_tokens=max_text_tokens,
        control=request.control,
    )
    num_text_ids = serializer.text_tokenizer.vocab_size
    _check_contents(place, prompt.holes, contents, serializer)
    grammar = HoleGrammar(
        prompt.holes,
        vocabulary,
        num_text_ids,
        serializer.text,
        serializer.ids_that_begin,
        serializer.code_grammar,
    )
    writer = _Writer(grammar)
    writer.fed.add(prompt.tokens, prompt.cells)
    for index, (hole, content) in enumerate(zip(prompt.holes, contents, strict=True)):
        _add_content(f"{place}, hole {index}", writer, index, content, hole)
    assert grammar.done
    return writer.row()


def _add_content(place: str, writer: _Writer, index: int, content: IntArray, hole: Hole) -> None:
    """Add the content of hole `index`; raises `GenerationError` for one that the hole can't hold."""
    grammar = writer.grammar
    while len(content) and len(grammar.contents) == index:
        num = grammar.num_draws
        if grammar.codes is not None and hole.kind != "text":
            _check_code(place, grammar, int(content[0]))
        writer.draw(content[:num])
        content = content[num:]
    if len(content):
        raise GenerationError(
            place,
            f"continues for {len(content)} tokens after the hole has stopped",
            "cut the text after its stop string"
            if hole.kind == "text"
            else "cut the picture after its end",
        )
    if len(grammar.contents) == index and hole.kind != "text" and not hole.any_length:
        raise GenerationError(
            place,
            f"has {len(grammar.current)} codes and no end",
            "give a sequence with the code that ends it",
        )
    # shorter than its maximum: its end is a free choice
    if len(grammar.contents) == index:
        if not any(hole.ends_with in ids for ids in grammar.legal):
            number = len(grammar.current)
            raise GenerationError(
                place,
                *(
                    (
                        f"{number} text tokens, but the hole takes {hole.min_tokens} or more",
                        "give a longer text, or lower min_tokens",
                    )
                    if hole.kind == "text"
                    else (
                        f"{number} codes, which the known codes behind them can't follow",
                        "give codes that keep the rules of the form",
                    )
                ),
            )
        writer.draw(np.array([hole.ends_with], np.int32))


class _Writer:
    """Builds a row token by token."""

    def __init__(self, grammar: HoleGrammar) -> None:
        self.grammar, self.fed = grammar, TokenWriter()
        self.places: list[npt.NDArray[np.int64]] = []
        self.targets: list[IntArray] = []
        self.legal: list[LegalIds] = []
        self.modalities: list[str] = []
        self.progress: list[npt.NDArray[np.int64]] = []

    def draw(self, tokens: IntArray) -> None:
        """Add at most `grammar.num_draws` targets, and the forced tokens after them."""
        last = self.fed.length - 1
        self.places.append(np.arange(last, last + len(tokens)))
        self.targets.append(tokens)
        self.legal += [self.grammar.legal] * len(tokens)
        self.modalities += [self.grammar.modality] * len(tokens)
        first, end = self.grammar.progress
        place = np.arange(first, first + len(tokens))
        self.progress.append(np.stack([place, np.full(len(tokens), end)], axis=1))
        forced = self.grammar.take(tokens)
        self.fed.add(tokens, self.grammar.drawn_cells)
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
    """Tokens and cells of rows, int64 [B, T], right-padded, so that no token attends to padding."""
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
    serializer: Serializer,
) -> None:
    vocabulary, num_text_ids = serializer.vocabulary, serializer.text_tokenizer.vocab_size
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
        ends = serializer.form.is_sequence and 0 < len(content) < hole.max_tokens
        if hole.kind != "text" and len(content) != hole.max_tokens and not ends:
            raise GenerationError(
                where,
                f"{len(content)} codes, but the hole takes {hole.max_tokens}",
                "give one code per cell",
            )


def _check_code(where: str, grammar: HoleGrammar, token: int) -> None:
    """Raise `GenerationError` for a code that breaks the rules of its picture's form."""
    if not any(token in ids for ids in grammar.legal):
        assert grammar.codes is not None
        raise GenerationError(
            where,
            f"code {len(grammar.current)} breaks the rules of {grammar.codes.form.name}",
            "give codes of this model's image tokenizer",
        )


#: Maximum tokens of a forward pass, padding included; a single longer document is allowed.
MAX_TOKENS = 4096
#: Maximum bytes of float32 logits in memory at once.
CHUNK_BYTES = 32 << 20
#: Most ranges of legal ids that are multiplied separately; with more, all ids between them are computed too.
_FEW = 4


class Likelihood:
    """Computes the log-probability of given contents of holes under a decoder.

    Rerankers receive it as `cm3core.interfaces.Likelihood`.

    Args:
        decoder: on any device, in its own dtype; in evaluation mode (`eval()`), as opened models
            are.
        serializer: documents -> prompts.
        vocabulary: the decoder's.
        max_text_tokens: cut every text of a prompt to its first `max_text_tokens` tokens, as in training. None: never.
        max_tokens: maximum tokens of one forward pass, padding included; together with `CHUNK_BYTES` of logits it
            bounds memory.
    """

    def __init__(
        self,
        decoder: Decoder | GenerationWeights,
        serializer: Serializer,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.max_text_tokens, self.max_tokens = max_text_tokens, max_tokens

    @property
    def decoder(self) -> Decoder:
        """With training's weights."""
        return whole_of(self._decoder)

    @torch.inference_mode()
    @checked(GenerationError)
    def log_probability(
        self,
        documents: Sequence[Document],
        contents: Sequence[Sequence[IntArray]],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        variant: PromptVariant | None = None,
    ) -> list[LogProbability]:
        """Compute log p(contents | rest of the document) for each document, in order.

        Args:
            documents: at least one hole each, pictures as `Codes`.
            contents: for each document, its holes' contents in order: ids of the vocabulary without
                end tokens, as returned by `contents_of`. The end token of a text counts if the text
                is shorter than its hole's `max_tokens`, and always if the hole has no limit.
            retrieved: for each document, the documents prepended to it. None: none.
            variant: which parts of the prompts are visible. None: all.

        Raises:
            GenerationError: the contents don't fit the holes, or the tokens exceed the decoder's context.
            DocumentError: a document can't be serialised.
        """
        prepended = [()] * len(documents) if retrieved is None else retrieved
        for name, given in (("contents", contents), ("retrieved", prepended)):
            if len(given) != len(documents):
                raise GenerationError(
                    name, f"has {len(given)} for {len(documents)} documents", "give one for each"
                )
        rows = [
            self._row(f"document {place}", *one)
            for place, one in enumerate(
                zip(documents, contents, prepended, [variant] * len(documents), strict=True)
            )
        ]
        unique = sorted(
            {row.key: row for row in rows}.values(), key=lambda row: len(row.tokens), reverse=True
        )
        nats: dict[bytes, float] = {}
        for chunk in self._chunks(unique):
            nats |= zip((row.key for row in chunk), self._nats(chunk).tolist(), strict=True)
        return [LogProbability(nats[row.key], len(row.targets)) for row in rows]

    @checked(GenerationError)
    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """Contents of each hole, int32, in order.

        The inverse of `Serializer.fill`, except that text is encoded again.

        Args:
            document: with holes.
            filled: the same document with its holes filled. Texts longer than their holes are
                truncated.

        Raises:
            GenerationError: `filled` isn't `document` with its holes filled.
        """
        return self.serializer.contents_of(document, filled)

    @checked(GenerationError)
    def num_text_tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.serializer.text_tokens(text))

    # ---- documents -> rows

    def _row(
        self,
        place: str,
        document: Document,
        contents: Sequence[IntArray],
        retrieved: Sequence[Document],
        variant: PromptVariant | None,
    ) -> ForcedRow:
        row = forced_row(
            place,
            self.serializer,
            Request(document, retrieved),
            contents,
            variant=variant,
            max_text_tokens=self.max_text_tokens,
        )
        check_context(place, row, self._decoder.context_length)
        return row

    def _chunks(self, rows: Sequence[ForcedRow]) -> Iterator[Sequence[ForcedRow]]:
        """Rows, longest first, in chunks of at most `max_tokens` tokens."""
        start = 0
        while start < len(rows):
            stop = start + max(1, self.max_tokens // len(rows[start].tokens))
            yield rows[start:stop]
            start = stop

    # ---- rows -> nats

    def _nats(self, rows: Sequence[ForcedRow]) -> npt.NDArray[np.float64]:
        """float64 [B]: sum of each row's targets' log-probabilities."""
        device = self.decoder.head_weight().device
        tokens_BT, cells_BT = padded(rows, self.vocabulary.pad)
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
        if len(legal) <= _FEW:
            logits = [self.decoder.logits(hidden_PE, ids).float() for ids in legal]
            logits_PR = torch.cat(logits, dim=1)
        else:
            first = legal[0].start
            logits_PV = self.decoder.logits(hidden_PE, range(first, legal[-1].stop)).float()
            chosen = np.concatenate([np.arange(ids.start, ids.stop) for ids in legal]) - first
            logits_PR = logits_PV[:, torch.from_numpy(chosen).to(logits_PV.device)]
        index_P, before = np.zeros(len(target_P), np.int64), 0
        for ids in legal:
            inside = (target_P >= ids.start) & (target_P < ids.stop)
            index_P[inside] = target_P[inside] - ids.start + before
            before += len(ids)
        index_P1 = rearrange(torch.from_numpy(index_P).to(logits_PR.device), "P -> P 1")
        return rearrange(logits_PR.gather(1, index_P1), "P 1 -> P") - logits_PR.logsumexp(dim=1)
