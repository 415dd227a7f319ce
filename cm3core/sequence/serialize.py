"""Documents <-> tokens: training sequences, prompts with holes, and the way back.

Any number of text and picture segments makes a document. What is written around them is the
layout's affair (`cm3core.interfaces.layout`); in that of a vocabulary by sizes:

    a sequence        <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>     retrieved documents first, the query last
    text to image     <eos> ... Tq <break>                                    exactly a grid of codes follows
    continuation      <eos> ... Tq <break> the first codes                    the picture's other codes follow
    to text, causal   <eos> ... Iq <break>                                    text follows, ended by <eos>
    any other holes   <eos> ... q with <sentinel:i> in place of hole i ... <eos> <sentinel:0> content <eoss> <sentinel:1> ...

Sources: CM3leon paper section 2.2, figures 8 and 9; facebookresearch/metaseq, branch scaling_racm3
(`_tokenize_ra_json`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cm3core.document import Codes, Document, IntArray, Segment, Span, Text, TokenSequence
from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary, Layout
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.fill import contents_of, fill
from cm3core.sequence.prompt_writer import Prompt, write_prompt
from cm3core.sequence.responses import responses_of
from cm3core.sequence.segments import SegmentCodec, TokenWriter, modality_of, turn_ends

if TYPE_CHECKING:
    from cm3core.interfaces.text_tokenizer import TextTokenizer
    from cm3core.vocab import Vocabulary

#: Names of control tokens, see `ObjectiveConfig.prompt_tokens`.
PromptTokens: TypeAlias = Callable[..., Sequence[str]]


class Serializer(SegmentCodec):
    """Documents <-> tokens for one vocabulary, text tokenizer and grid of codes; see `SegmentCodec`
    for its arguments.

    Args:
        prompt_tokens: names of the control tokens that prompts begin with, see
            `ObjectiveConfig.prompt_tokens`. None: none.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        grid: tuple[int, int],
        prompt_tokens: PromptTokens | None = None,
        *,
        max_spans: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(vocabulary, text_tokenizer, grid, max_spans=max_spans, layout=layout)
        self._prompt_tokens = prompt_tokens

    # ---- training sequences and back

    def sequence(
        self,
        query: Document,
        retrieved: Sequence[Document] = (),
        max_text_tokens: int | None = None,
    ) -> TokenSequence:
        """The training sequence of a query document behind its retrieved documents.

        Args:
            query: `Text` and `Codes` segments, nothing missing; at least one.
            retrieved: the same, in the order in which they are prepended.
            max_text_tokens: each text is cut to its first `max_text_tokens` tokens.

        Raises:
            DocumentError: holes, pixels, an empty document, codes of another grid.
        """
        writer, query_segment = TokenWriter(), 0
        spans: list[Span] = []
        responses: list[Span] = []
        decided: list[int] = []
        first = (retrieved[0] if retrieved else query)[:1]
        writer.add(self.layout.begin_before(modality_of(first[0]) if first else "text"))
        for number, document in enumerate([*retrieved, query]):
            name = "query document" if number == len(retrieved) else f"retrieved document {number}"
            if not document:
                raise DocumentError(name, "is empty", "give it a text or a picture")
            query_segment, responses, decided = len(spans), [], []
            turns = turn_ends(document)
            for index, segment in enumerate(document):
                if spans:
                    sides, is_last = (
                        (spans[-1].modality, modality_of(segment)),
                        index == len(document) - 1,
                    )
                    boundary = Boundary(
                        *sides,
                        starts_document=index == 0,
                        is_last=is_last,
                        turn_ends=turns[index],
                    )
                    if turns[index] and responses and responses[-1].stop == spans[-1].stop:
                        decided.append(writer.length)  # a turn that was asked for ends here
                    writer.add(self.layout.between(boundary))
                start = writer.length
                spans.append(
                    self.write_segment(writer, segment, f"{name}, segment {index}", max_text_tokens)
                )
                own = responses_of(self, segment, spans[-1])
                responses += own
                if own and start < spans[-1].start and turns[index] is not None:
                    decided.append(start)
        if turns[-1] is not None and responses and responses[-1].stop == spans[-1].stop:
            decided.append(writer.length)
        writer.add(self.layout.end)
        tokens, cells = writer.joined()
        facts = query_segment, tuple(responses), tuple(decided)
        return TokenSequence(tokens, cells, tuple(spans), *facts)

    def documents(self, sequence: TokenSequence | IntArray) -> list[Document]:
        """The documents of a sequence without masks, query last: the inverse of `sequence`.

        Tokens do not say where one document ends and the next begins, so: a text behind a picture
        begins a document. A `TokenSequence` knows its query document, which is kept whole whatever
        it holds.
        """
        tokens = (
            sequence.tokens
            if isinstance(sequence, TokenSequence)
            else np.asarray(sequence, np.int32)
        )
        inner = self._inner(tokens)
        runs = self.layout.segments(inner, self.grid)
        query_segment = sequence.query_segment if isinstance(sequence, TokenSequence) else len(runs)
        documents: list[list[Segment]] = []
        for index, (modality, run) in enumerate(runs):
            segment = self.codes(run) if modality == "image" else Text(self.text(run))
            after_image = bool(documents) and isinstance(documents[-1][-1], Codes)
            starts = index == query_segment or (
                index < query_segment and after_image and isinstance(segment, Text)
            )
            if starts or not documents:
                documents.append([])
            documents[-1].append(segment)
        return [tuple(document) for document in documents]

    def _inner(self, tokens: IntArray) -> IntArray:
        """A sequence's tokens without what begins and ends it."""
        begin, end = self.layout.begin, self.layout.end
        if (
            len(tokens) < len(begin) + len(end)
            or tuple(tokens[: len(begin)].tolist()) != begin
            or tuple(tokens[len(tokens) - len(end) :].tolist()) != end
        ):
            first, last = ("".join(map(self.vocabulary.name, ids)) for ids in (begin, end))
            ends = f"end with {last}" if first == last else f"with {first} and end with {last}"
            raise DocumentError(
                "sequence",
                f"does not start {'and ' if first == last else ''}{ends}",
                "pass a whole sequence without masks",
            )
        return tokens[len(begin) : len(tokens) - len(end)]

    # ---- prompts and back

    def prompt(
        self,
        query: Document,
        retrieved: Sequence[Document] = (),
        variant: PromptVariant | None = None,
        *,
        max_text_tokens: int | None = None,
        control: Sequence[str] | None = None,
    ) -> Prompt:
        """The prompt whose holes a model fills.

        Args:
            query: the document to complete; at least one hole.
            retrieved: documents without holes, prepended to it.
            variant: what a guidance stream sees. The holes and their prefixes are the same for
                every variant, so streams stay in step: the sentinel of what is hidden is numbered
                after those of the holes.
            max_text_tokens: each text is cut to its first `max_text_tokens` tokens, as in training.
            control: names of the control tokens that the prompt begins with. None: those that the
                objective names for its form.

        Raises:
            DocumentError: no hole, pixels, an empty document, more separate holes than
                `max_spans`, codes of another grid, an unknown control token.
        """
        seen = variant or PromptVariant()

        def before(continuation: bool) -> list[int]:
            own = self._prompt_tokens
            names = (
                (() if own is None else own(continuation=continuation))
                if control is None
                else control
            )
            return [self.vocabulary.control_id(name) for name in names]

        return write_prompt(self, query, retrieved, seen, max_text_tokens, before)

    def fill(self, query: Document, contents: Sequence[IntArray]) -> Document:
        """The query document with its holes filled.

        Args:
            query: the document of `prompt`.
            contents: for each hole of the prompt, in order, its content int32 [m] as ids of the
                vocabulary, without end token.
        """
        return fill(self, query, contents)

    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """The contents of the holes of `document` in `filled`, the same document with its holes
        filled: the inverse of `fill`, but that text is encoded again.

        Texts longer than their holes are cut to them.

        Raises:
            GenerationError: `filled` isn't `document` with its holes filled.
        """
        return contents_of(self, document, filled)
