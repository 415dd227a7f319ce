"""From documents to masked sequences, by index.

Everything here is a function of (seed, epoch, index), including which document replaces one that is too
long for the context, so a run that resumes skips the same documents.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, MaskedSequence, Segment, Text, TokenSequence, text_of
from cm3core.errors import DataError, DocumentError
from cm3core.interfaces.layout import Boundary
from cm3core.sequence.infill import TOKENS_PER_SPAN
from cm3core.sequence.segments import modality_of
from cm3run.checkpoint.words import knows_words
from cm3run.prepending import in_order, prepended
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.layout import Layout
    from cm3core.interfaces.objective import MaskingObjective
    from cm3core.interfaces.retriever import DocumentOrder, Region
    from cm3core.interfaces.text_tokenizer import TextTokenizer
    from cm3core.sequence.serialize import Serializer
    from cm3run.training.code_cache import CodeCache
    from cm3run.training.neighbours import Neighbours

#: Number of spans for which retrieved documents leave room (a Poisson(1) number exceeds it once in
#: 270); a query alone may fill all the room.
_RESERVED_SPANS = 4
#: Separates the random streams of substitutes from those of sequences.
_SUBSTITUTE = 1
#: If this many substitutes are also too long, the settings are wrong, and training stops.
_MAX_SUBSTITUTES = 1000


@dataclass(frozen=True, eq=False)
class RetrievedDocuments:
    """The documents that may be prepended to each document of a source.

    Args:
        neighbours: of each document of the source, as indices into the memory.
        memory: the documents to retrieve from; may be the source itself.
        codes: of the memory's pictures; None: its documents already have codes (a memory bank).
        num_retrieved: maximum number of documents to prepend.
        random_num_retrieved: in training, draw the number from 0 to `num_retrieved`; for a picture with n parts
            from 0 to n, where any number but 0 means all of them.
        own_share: in training, probability that one of the documents is the query itself.
        full_share: in training, probability that there are all `num_retrieved`, of each facet in turn.
        num_facets: that take turns in `neighbours`.
        order: see `RetrieverConfig`.
    """

    neighbours: Neighbours
    memory: DocumentSource
    codes: CodeCache | None
    num_retrieved: int
    random_num_retrieved: bool = False
    own_share: float = 0.0
    full_share: float = 0.0
    num_facets: int = 1
    order: DocumentOrder = "rank"

    def draw(
        self, index: int, rng: np.random.Generator, query: Document | None = None
    ) -> list[Document]:
        """Documents drawn at random, as in training.

        Draws their number (with `random_num_retrieved`), the ranks, the order, the captions, and (with `own_share`)
        whether one of them is `query`.
        """
        if self.num_retrieved == 0:
            return []
        parts = self.neighbours.parts(index)
        most = len(parts) or self.num_retrieved
        is_full = bool(self.full_share) and rng.random() < self.full_share
        draws_number = self.random_num_retrieved and not is_full
        number = int(rng.integers(0, most + 1)) if draws_number else most
        if parts:  # all parts of the picture, or none
            return [self._part(*part, rng) for part in parts] if number else []
        found = self._usable(index)
        ranks = rng.permutation(len(found)).tolist()
        if is_full:
            ranks = _in_turn(ranks, self.num_facets)
        chosen = [found[rank] for rank in ranks[:number]]
        documents = [self._document(place, rng) for place in chosen]
        if query is not None and documents and self.own_share and rng.random() < self.own_share:
            documents[int(rng.integers(len(documents)))] = query
        return documents if query is None else in_order(self.order, query, documents)

    def best(self, index: int, query: Document = ()) -> list[Document]:
        """The best `num_retrieved` in their `order`, with canonical captions."""
        if self.num_retrieved == 0:
            return []
        if parts := self.neighbours.parts(index):
            return [self._part(*part, None) for part in parts]
        best = [self._document(place, None) for place in self._usable(index)[: self.num_retrieved]]
        return in_order(self.order, query, best)

    def _usable(self, index: int) -> list[int]:
        """Neighbours with readable pictures, best first."""
        found = self.neighbours.neighbours(index)
        if self.codes is None:
            return found
        usable_N = self.codes.usable_N
        return [place for place in found if usable_N[place]]

    def _part(self, place: int, region: Region, captions: np.random.Generator | None) -> Document:
        return prepended(self.memory.document(place, captions), region)

    def _document(self, place: int, captions: np.random.Generator | None) -> Document:
        document = self.memory.document(place, captions)
        return document if self.codes is None else self.codes.encoded(document)


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """The maximum length of sequences, and how they are drawn.

    Args:
        seed: of all randomness.
        context_length: number of inputs of the decoder; a sequence has at most one token more (its
            last token is only a target).
        max_text_tokens: each text is cut to this many tokens.
        training: True: captions and retrieved documents are drawn at random. False: canonical
            captions, and the best documents, best first.
    """

    seed: int
    context_length: int
    max_text_tokens: int | None
    training: bool = True


class MaskedSequences:
    """Masked sequences of a source, with retrieved documents prepended.

    Args:
        source: the query documents.
        serializer: documents -> tokens.
        objective: masks the sequences.
        code_cache: codes of the source's pictures; documents with unreadable ones are skipped.
        retrieved: the documents that may be prepended to each document; None: none.
        settings: their lengths, and how they are drawn.
    """

    def __init__(
        self,
        source: DocumentSource,
        serializer: Serializer,
        objective: MaskingObjective,
        code_cache: CodeCache,
        retrieved: RetrievedDocuments | None,
        settings: SequenceSettings,
    ) -> None:
        self.source, self.serializer, self.objective = source, serializer, objective
        self.code_cache, self.retrieved = code_cache, retrieved
        self.seed, self.training = settings.seed, settings.training
        self.max_length = settings.context_length + 1
        self.max_text_tokens = settings.max_text_tokens
        reserved = min(objective.max_added_tokens, _RESERVED_SPANS * TOKENS_PER_SPAN)
        self._room = self.max_length - reserved
        assert retrieved is None or len(retrieved.neighbours) == len(source)
        #: Words of the texts drawn for training so far, of documents and of those prepended: captions and questions are
        #: drawn from templates, which no list of documents shows. Not collected if the list would be too long.
        self.words: set[str] = set()
        self._collects_words = self.training and knows_words(source)
        #: Index into the source of each usable document, int64.
        self.indices: npt.NDArray[np.int64] = np.flatnonzero(code_cache.usable_N)
        self._warned = self._cut_is_told = False
        self._too_long: set[int] = set()
        if not len(self.indices):
            raise DataError(
                "data set", "has no usable document", "run 'cm3 data validate' to see why"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def sequence(self, epoch: int, index: int) -> MaskedSequence:
        """The masked sequence `index` of an epoch; always the same.

        0..len-1 are the documents. A document repeated within an epoch has an index higher by `len` each time, and is
        drawn again. In training, another document is used if the query alone exceeds the context.

        Raises:
            DocumentError: the query alone is too long, and, in training, so are all substitutes.
        """
        rng = self._rng(epoch, index)
        place = index % len(self)
        unmasked = self._unmasked(place, rng)
        if len(unmasked) > self.max_length:
            error = self._error(place, unmasked)
            if not self.training:
                raise error
            unmasked, rng, place = self._substitute(epoch, index, error)
            self._note_too_long(index % len(self), error)
        return self._masked(unmasked, rng, place)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """The indices of an epoch's sequences in order, if the source decides it, see
        `DocumentSource.epoch_order`; unusable documents are omitted."""
        order = self.source.epoch_order(seed, epoch)
        if order is None:
            return None
        places = np.full(len(self.source), -1, np.int64)
        places[self.indices] = np.arange(len(self.indices))
        order = places[order]
        order = order[order >= 0]
        return order + len(self) * _repeats(order)

    def stream_order(
        self, seed: int, epoch: int, place: int, num_streams: int
    ) -> npt.NDArray[np.int64] | None:
        """The order for one virtual loader's part, see `DocumentSource.stream_order`."""
        order = self.source.stream_order(seed, epoch, place, num_streams)
        # not if documents are skipped here, because streams would have different lengths
        return order if order is not None and len(self) == len(self.source) else None

    def fitting(self, indices: Iterable[int]) -> list[MaskedSequence]:
        """The sequences `indices` of epoch 0, without those whose query alone is too long.

        Raises:
            DocumentError: all are too long.
        """
        sequences: list[MaskedSequence] = []
        errors: list[tuple[int, DocumentError]] = []
        for index in indices:
            rng = self._rng(0, index)
            unmasked = self._unmasked(index, rng)
            if len(unmasked) > self.max_length:
                errors.append((index, self._error(index, unmasked)))
            else:
                sequences.append(self._masked(unmasked, rng, index))
        if errors and not sequences:
            raise errors[0][1]
        for index, error in errors:
            self._note_too_long(index, error)
        return sequences

    @property
    def num_too_long(self) -> int:
        """Number of documents found too long for the context so far, and skipped."""
        return len(self._too_long)

    def _masked(
        self, unmasked: TokenSequence, rng: np.random.Generator, index: int
    ) -> MaskedSequence:
        masked = self.objective.mask(unmasked, rng, self.max_length)
        part = self.source.part(int(self.indices[index]))
        return replace(masked, part=part) if part else masked

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.seed, epoch, index)))

    def _unmasked(self, index: int, rng: np.random.Generator) -> TokenSequence:
        """The sequence before masking; longer than `max_length` if the query alone is."""
        place = int(self.indices[index])
        query = self.code_cache.encoded(self.source.document(place, rng if self.training else None))
        retrieved = self._retrieved(place, query, rng)
        if self._collects_words:
            for document in (query, *retrieved):
                self.words.update(words_of(text_of(document)))
        sequence = self._fitting(query, retrieved)
        if self.training and not self._cut_is_told:
            self._note_cut(place, query, sequence)
        return sequence

    def _note_cut(self, place: int, query: Document, sequence: TokenSequence) -> None:
        """Report the first task document that loses words: the beginning of a caption is still useful, but a
        task may lose its instruction or answer."""
        if self.max_text_tokens is None or not any(_is_of_task(segment) for segment in query):
            return
        if not any(  # check lengths first, to avoid tokenizing again
            span.modality == "text" and len(span) >= self.max_text_tokens
            for span in sequence.segments
        ):
            return
        texts = [segment.text for segment in query if isinstance(segment, Text)]
        most = max((len(self.serializer.text_tokens(text)) for text in texts), default=0)
        if most > self.max_text_tokens:
            self._cut_is_told = True
            warnings.warn(
                f"document {self.source.id(place)}: a text of its task has {most} tokens, but training "
                f"reads only the first {self.max_text_tokens} of each (data.max_text_tokens), here and in "
                f"similar documents (reported once); set data.max_text_tokens to {most} or more",
                stacklevel=2,
            )

    def _substitute(
        self, epoch: int, index: int, error: DocumentError
    ) -> tuple[TokenSequence, np.random.Generator, int]:
        """A substitute's sequence before masking, the generator that made it, and its index.

        Substitutes are tried in a random order: steps of a random length coprime to their number
        visit each once. Raises `error` if all are too long.
        """
        rng = np.random.default_rng(
            np.random.SeedSequence((self.seed, epoch, index), spawn_key=(_SUBSTITUTE,))
        )
        total, stride = len(self), 0
        while total > 1 and math.gcd(stride, total) != 1:
            stride = int(rng.integers(1, total))
        for step in range(1, min(total, _MAX_SUBSTITUTES + 1)):
            place = (index + step * stride) % total
            unmasked = self._unmasked(place, rng)
            if len(unmasked) <= self.max_length:
                return unmasked, rng, place
        raise error

    def _note_too_long(self, index: int, error: DocumentError) -> None:
        """Count a skipped document, and report the first."""
        if not self._too_long:
            warnings.warn(
                f"{error.place} is skipped: {error.cause}; such documents are counted, and other documents "
                f"replace them in training (reported once); {error.next_step}",
                stacklevel=3,
            )
        self._too_long.add(index)

    def _retrieved(self, place: int, query: Document, rng: np.random.Generator) -> list[Document]:
        """The documents to prepend, in their order."""
        if self.retrieved is None:
            return []
        if self.training:
            return self.retrieved.draw(place, rng, query)
        return self.retrieved.best(place, query)

    def _fitting(self, query: Document, retrieved: list[Document]) -> TokenSequence:
        """The query with as many of the first documents as leave room for a few spans."""
        room = self._room
        whole = sequence = self.serializer.sequence(query, retrieved, self.max_text_tokens)
        number = len(retrieved)
        while number and len(sequence) > room:
            number -= 1
            sequence = self.serializer.sequence(query, retrieved[:number], self.max_text_tokens)
        if number < len(retrieved) and not self._warned and len(sequence) <= self.max_length:
            self._warned = True
            least = len(whole) + self.max_length - 1 - room
            warnings.warn(
                f"a query with {len(retrieved)} retrieved documents has {len(whole)} tokens, but "
                "decoder.context_length"
                f" {self.max_length - 1} has room for {room} besides the tokens of masking: such "
                "queries get fewer documents, this one "
                f"{number} (reported once); set retriever.num_retrieved={number}, or "
                f"decoder.context_length to {least} or "
                "more",
                stacklevel=2,
            )
        return sequence

    def _error(self, index: int, sequence: TokenSequence) -> DocumentError:
        """The error for a document that is too long, with the settings that would fit."""
        name = self.source.id(int(self.indices[index]))
        texts = sum(len(span) for span in sequence.segments if span.modality == "text")
        num_texts = sum(span.modality == "text" for span in sequence.segments)
        room = self.max_length - (len(sequence) - texts)
        cause = (
            f"{len(sequence)} tokens ({len(sequence) - texts} of pictures and separators, "
            f"{texts} of text), but the context "
            f"holds {self.max_length}"
        )
        if room > 0 and num_texts:
            return DocumentError(
                f"document {name}",
                cause,
                f"set data.max_text_tokens to at most {room // num_texts}, "
                "or raise decoder.context_length",
            )
        return DocumentError(
            f"document {name}",
            cause,
            "raise decoder.context_length, or use a tokenizer with fewer codes",
        )


def _in_turn(ranks: list[int], num_facets: int) -> list[int]:
    """Ranks in an order in which facets, which take turns by rank, do so again.

    >>> _in_turn([4, 2, 1, 0, 3], 2)
    [4, 1, 2, 3, 0]
    """
    place = {
        rank: turn
        for own in range(num_facets)
        for turn, rank in enumerate(one for one in ranks if one % num_facets == own)
    }
    return sorted(ranks, key=place.__getitem__)


def _is_of_task(segment: Segment) -> bool:
    """Whether a segment has a task's response."""
    return bool(getattr(segment, "responses", ())) or bool(getattr(segment, "response", False))


def _repeats(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each entry has come before.

    >>> _repeats(np.array([5, 3, 5, 5, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    repeats = np.empty(len(order), np.int64)
    lengths = np.diff([*starts, len(order)])
    repeats[by_value] = np.arange(len(order)) - np.repeat(starts, lengths)
    return repeats


def sequence_length(
    document: Document,
    text_tokenizer: TextTokenizer,
    grid: tuple[int, int],
    max_text_tokens: int | None = None,
    layout: Layout | None = None,
) -> int:
    """Length in tokens of `Serializer.sequence` for a query document without retrieved ones.

    Args:
        document: `Text` and pictures (`Image` or `Codes`), at least one segment.
        text_tokenizer: counts the texts' tokens.
        grid: (rows, columns) of codes of a picture.
        max_text_tokens: each text counts at most this many.
        layout: decides the tokens around segments. None: one token before and after each.
    """
    around, picture = len(document) + 1, grid[0] * grid[1]
    prefix = "" if layout is None else layout.text_prefix
    if layout is not None:
        kinds = [modality_of(segment) for segment in document]
        around = len(layout.begin_before(kinds[0])) + len(layout.end)
        for place, (before, after) in enumerate(pairwise(kinds)):
            last = place + 2 == len(kinds)
            around += len(layout.between(Boundary(before, after, is_last=last)))
        picture = layout.frame(grid).num_tokens(grid)
    number = around
    for segment in document:
        if isinstance(segment, Text):
            ids = segment.ids
            length = len(text_tokenizer.encode(prefix + segment.text) if ids is None else ids)
            number += length if max_text_tokens is None else min(length, max_text_tokens)
        else:
            number += picture
    return number
