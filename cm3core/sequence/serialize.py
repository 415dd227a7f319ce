"""Documents <-> tokens: training sequences, prompts with holes, and the inverse.

A document is any number of text and picture segments. The layout (`cm3core.interfaces.layout`) decides the tokens
around them; the default layout writes:

    a sequence        <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>     retrieved documents first, the query last
    text to image     <eos> ... Tq <break>                                    exactly a grid of codes follows
    continuation      <eos> ... Tq <break> the first codes                    the picture's other codes follow
    to text, causal   <eos> ... Iq <break>                                    text follows, ended by <eos>
    any other holes   <eos> ... q with <sentinel:i> in place of hole i ... <eos> <sentinel:0> content <eoss>
    <sentinel:1> ...

`fill` puts contents into the holes of a document, `contents_of` reads them back; `sequence_length` counts the tokens
of a sequence before its pictures are encoded: every picture has as many codes as the grid.

Sources: CM3leon paper section 2.2, figures 8 and 9; facebookresearch/metaseq, branch scaling_racm3
(`_tokenize_ra_json`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cm3core.document import (
    Codes,
    Document,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Span,
    Text,
    TextHole,
    TokenSequence,
    starts_turn,
    with_turn,
)
from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.layout import Boundary, Layout
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import after_lead, missing_codes, num_holes, runs_of
from cm3core.sequence.prompt_writer import Prompt, write_prompt
from cm3core.sequence.segments import SegmentCodec, TokenWriter, modality_of, turn_ends

if TYPE_CHECKING:
    from cm3core.interfaces.layout import Layout
    from cm3core.interfaces.text_tokenizer import TextTokenizer
    from cm3core.picture_form import PictureForm
    from cm3core.vocab import Vocabulary


def responses_of(codec: SegmentCodec, segment: Segment, span: Span) -> list[Span]:
    """The responses in a segment written at `span`, as spans of tokens.

    They have the boundaries of the corresponding hole in a prompt, so that training masks exactly what is
    infilled later. A text cut before its response has none.
    """
    if isinstance(segment, Codes):
        return [span] if segment.response else []
    if not isinstance(segment, Text) or not segment.responses:
        return []
    tokens = codec.text_tokens(segment.text)
    found = []
    for start, stop in segment.responses:
        before, after = segment.text[:start], segment.text[stop:]
        masked, _ = codec.without_leads(MaskedText((before, TextHole(), after)))
        kept = masked.parts[0] if isinstance(masked.parts[0], str) else ""
        first = _num_equal(codec.text_tokens(kept), tokens)
        last = len(tokens) - _num_equal(codec.text_tokens(after)[::-1], tokens[::-1])
        stop_token = min(span.start + last, span.stop)
        if span.start + first < stop_token:
            found.append(Span(span.start + first, stop_token, span.modality))
    return found


def _num_equal(a: IntArray, b: IntArray) -> int:
    """Length of the common prefix of two texts in tokens."""
    return sum(1 for _ in takewhile(bool, (one == other for one, other in zip(a, b, strict=False))))


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
            ends = codec.form.end is not None and run[-1] == len(segment.codes) - 1
            shorter = 0 < len(content) < len(run)
            if len(content) != len(run) and not (shorter and (ends or segment.any_length)):
                raise DocumentError(
                    "contents",
                    f"{len(content)} codes for {len(run)} cells",
                    "generate every missing cell",
                )
            tokens[run[: len(content)]] = content
            if ends:
                tokens = tokens[: run[0] + len(content)]
            elif shorter:
                tokens = np.delete(tokens, run[len(content) :])
        return codec.codes(tokens)
    return Codes(segment.codes, segment.grid) if isinstance(segment, Codes) else segment


def contents_of(codec: SegmentCodec, document: Document, filled: Document) -> list[IntArray]:
    """See `Serializer.contents_of`."""
    if len(document) != len(filled):
        raise GenerationError(
            "filled document",
            f"has {len(filled)} segments, but the document has {len(document)}",
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
        # Each hole takes as little as possible: a text between holes that occurs twice could be
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
        shorter = len(before) - len(tokens)
        if asked.any_length and 0 < shorter < missing.sum():
            cut = runs_of(missing)[0][-shorter:]
            before, missing = np.delete(before, cut), np.delete(missing, cut)
        known = np.flatnonzero(~missing[: len(before)])
        fits = len(before) == len(tokens) or (codec.form.end is not None and missing[-1])
        fits = fits and (not len(known) or known[-1] < len(tokens))
        if fits and np.array_equal(before[known], tokens[known]):
            return [tokens[run[0] : run[-1] + 1] for run in runs_of(missing)]
    if isinstance(asked, Text) and asked == given:
        return []
    raise GenerationError(
        place,
        f"does not fill the document's {type(asked).__name__}",
        "give the same document with its holes filled",
    )


def _text_content(codec: SegmentCodec, text: str, hole: TextHole) -> IntArray:
    """A text's tokens, cut at the hole's length or stop string."""
    tokens = codec.text_tokens(text, hole.max_tokens)
    stops = (
        end
        for end in range(1, len(tokens) + 1)
        if any(one in codec.text(tokens[:end]) for one in hole.stop)
    )
    return tokens[: next(stops, len(tokens))] if hole.stop else tokens


#: Names of control tokens, see `ObjectiveConfig.prompt_tokens`.
PromptTokens: TypeAlias = Callable[..., Sequence[str]]


class Serializer(SegmentCodec):
    """Documents <-> tokens for one vocabulary, text tokenizer and grid of codes; see `SegmentCodec`
    for its arguments.

    Args:
        prompt_tokens: names of the control tokens at the start of prompts, see
            `ObjectiveConfig.prompt_tokens`. None: none.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        form: PictureForm | tuple[int, int],
        prompt_tokens: PromptTokens | None = None,
        *,
        max_spans: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(vocabulary, text_tokenizer, form, max_spans=max_spans, layout=layout)
        self._prompt_tokens = prompt_tokens

    # ---- training sequences and back

    def sequence(
        self,
        query: Document,
        retrieved: Sequence[Document] = (),
        max_text_tokens: int | None = None,
    ) -> TokenSequence:
        """The training sequence of a query document preceded by its retrieved documents.

        Args:
            query: at least one `Text` or `Codes` segment, nothing missing.
            retrieved: likewise, in the order in which they are prepended.
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
                        decided.append(writer.length)  # a response's turn ends here
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
        cells_of = self.cells if self.form.fed_axes else None
        return TokenSequence(tokens, cells, tuple(spans), *facts, cells_of)

    def documents(self, sequence: TokenSequence | IntArray) -> list[Document]:
        """The documents of an unmasked sequence, query last: the inverse of `sequence`.

        Tokens do not mark where one document ends and the next begins, so a text after a picture is taken
        to begin a document. A `TokenSequence` knows its query document, which is always kept whole.
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
        """A sequence's tokens without those that begin and end it."""
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
        """The prompt for a document with holes.

        Args:
            query: the document to complete; at least one hole.
            retrieved: documents without holes, prepended to it.
            variant: the parts that a guidance stream sees. The holes and their prefixes are the same for
                every variant, so streams stay in step: sentinels of hidden segments are numbered
                after those of the holes.
            max_text_tokens: each text is cut to its first `max_text_tokens` tokens, as in training.
            control: names of the control tokens at the start of the prompt. None: those that the
                objective names for this kind of prompt.

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
            contents: for each hole of the prompt, in order, its content int32 [m] as vocabulary ids,
                without end token.
        """
        return fill(self, query, contents)

    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """The contents of the holes of `document` in `filled`, the same document with its holes
        filled: the inverse of `fill`, except that text is encoded again.

        Texts longer than their holes are cut.

        Raises:
            GenerationError: `filled` isn't `document` with its holes filled.
        """
        return contents_of(self, document, filled)
