"""One segment of a document <-> tokens: texts and pictures without holes; and the default layout, with sentinels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cm3core.document import (
    NO_CELL,
    Codes,
    Image,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Span,
    Text,
    has_holes,
    is_conversation,
    starts_turn,
)
from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary, Frame, Layout, picture_tokens
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.picture_form import PictureForm
from cm3core.sequence.grammar import (
    CodeGrammar,
    ids_that_begin,
    is_joined,
    missing_codes,
    runs_of,
    without_leads,
)
from cm3core.vocab import Vocabulary

if TYPE_CHECKING:
    from cm3core.document import IntArray
    from cm3core.vocab import Vocabulary


class SentinelLayout(Layout):
    """The default layout: `<eos>` around sequences, `<break>` between segments, sentinels for holes.

    Args:
        vocabulary: with sentinels and the tokens that end, separate and close.
        name: its name in messages.
    """

    def __init__(self, vocabulary: Vocabulary, name: str = "by sentinels") -> None:
        self._vocabulary, self._name = vocabulary, name

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Empty: the vocabulary determines everything."""
        return ""

    @property
    def begin(self) -> tuple[int, ...]:
        """`<eos>`."""
        return self._eos

    @property
    def end(self) -> tuple[int, ...]:
        """`<eos>`."""
        return self._eos

    @property
    def writes_sequences(self) -> bool:
        """Yes: `<break>` and `<eos>` show where a picture ends."""
        return True

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """`<break>`, also between documents."""
        return self._break

    @cached_property
    def _eos(self) -> tuple[int, ...]:
        return (self._vocabulary.eos,)

    @cached_property
    def _break(self) -> tuple[int, ...]:
        return (self._vocabulary.break_,)

    def frame(self, grid: tuple[int, int]) -> Frame:
        """Empty: the number of codes is known, or the last one is the end code."""
        return Frame()

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """The runs between `<break>`s; a segment without tokens is an empty text."""
        runs = np.split(tokens, np.flatnonzero(tokens == self._vocabulary.break_))
        # each run after the first starts with its <break>
        runs = [run if index == 0 else run[1:] for index, run in enumerate(runs)]
        return [
            ("image" if len(run) and int(run[0]) in self._vocabulary.image else "text", run)
            for run in runs
        ]


@dataclass
class TokenWriter:
    """Collects runs of tokens and their cells."""

    tokens: list[IntArray] = field(default_factory=list)
    cells: list[IntArray] = field(default_factory=list)
    length: int = 0

    def add(self, tokens: IntArray | Sequence[int], cells: IntArray | None = None) -> None:
        run = np.asarray(tokens, np.int32)
        self.tokens.append(run)
        self.cells.append(np.full(len(run), NO_CELL, np.int32) if cells is None else cells)
        self.length += len(run)

    def joined(self) -> tuple[IntArray, IntArray]:
        return np.concatenate(self.tokens), np.concatenate(self.cells)


class SegmentCodec:
    """Segments <-> tokens for one vocabulary, text tokenizer and form of pictures.

    Args:
        vocabulary: the table of ids.
        text_tokenizer: its ids are placed at `vocabulary.text`; it must fit there.
        form: the form of every picture, for the axes of the decoder (`PictureForm.for_axes`), or (rows, columns) for a
            grid with one code per place.
        max_spans: maximum number of masked spans per sequence in the decoder's training; prompts use no
            further sentinels. None: all sentinels of the vocabulary.
        layout: the tokens around segments, with this vocabulary; None: `SentinelLayout`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        form: PictureForm | tuple[int, int],
        *,
        max_spans: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        if text_tokenizer.vocab_size > vocabulary.room_for_text:
            raise DocumentError(
                "vocabulary.num_text",
                f"room for {vocabulary.room_for_text} text ids, but the text tokenizer has "
                f"{text_tokenizer.vocab_size}",
                "leave vocabulary.num_text out, or use a smaller text tokenizer",
            )
        self.vocabulary, self.text_tokenizer = vocabulary, text_tokenizer
        self.form = form if isinstance(form, PictureForm) else PictureForm.of_grid(*form)
        self.grid, self.num_codes = self.form.grid, self.form.num_codes
        #: Which ids keep the rules of the form, and the positions of codes; None: it has none.
        self.code_grammar: CodeGrammar | None = None
        if self.form.rules is not None or self.form.fed_axes:
            self.code_grammar = CodeGrammar(self.form, vocabulary)
        self.layout = SentinelLayout(vocabulary) if layout is None else layout
        if self.form.end is not None and not self.layout.writes_sequences:
            raise DocumentError(
                f"layout {self.layout.name}",
                f"writes pictures of one length, and these are {self.form.name}",
                "use the layout cm3leon, or an image tokenizer whose pictures have a grid",
            )
        #: The tokens around a picture, and a picture's length including them.
        self.frame = self.layout.check(self.grid)
        self.picture_length = self.frame.num_tokens(self.grid)
        most = vocabulary.num_sentinels
        self.max_spans = most if max_spans is None else min(max_spans, most)
        #: lead -> whether it is joined to the text after it; ids that can come first.
        self._leads: dict[str, tuple[bool, tuple[range, ...]]] = {}
        self.raster = np.arange(self.num_codes, dtype=np.int32)

    def text_tokens(self, text: str, max_text_tokens: int | None = None) -> IntArray:
        """Vocabulary ids int32 of a text; at most the first `max_text_tokens`."""
        whole = self.layout.text_prefix + text
        ids = np.asarray(self.text_tokenizer.encode(whole), np.int32)[:max_text_tokens]
        return self.vocabulary.of_text(ids)

    def _stored_tokens(
        self, ids: Sequence[int], place: str, max_text_tokens: int | None
    ) -> IntArray:
        """Vocabulary ids of a text whose tokenizer ids are stored with it."""
        if self.layout.text_prefix:
            raise DocumentError(
                place,
                f"has stored ids, but the layout {self.layout.name!r} writes "
                f"{self.layout.text_prefix!r} before texts",
                "give the text alone",
            )
        size = self.text_tokenizer.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise DocumentError(
                place,
                f"text ids {min(ids)}..{max(ids)}, but the text tokenizer has {size}",
                "encode the data set again with this recipe's text tokenizer",
            )
        return self.vocabulary.of_text(np.asarray(ids, np.int32)[:max_text_tokens])

    def text(self, tokens: IntArray) -> str:
        """Text of ids in the vocabulary's text range; raises `DocumentError` for any other id."""
        own = self.vocabulary.to_text(tokens)
        known = (own >= 0) & (own < self.text_tokenizer.vocab_size)
        strange = tokens[~known | ~self.vocabulary.is_text(tokens)]
        if len(strange):
            raise DocumentError(
                "text segment",
                f"holds {self.vocabulary.name(int(strange[0]))}",
                "decode only text ids",
            )
        return self.text_tokenizer.decode(own.tolist()).removeprefix(self.layout.text_prefix)

    @cached_property
    def _texts(self) -> list[str]:
        """The text of each single text id."""
        return [self.text_tokenizer.decode([one]) for one in range(self.text_tokenizer.vocab_size)]

    def ids_that_begin(self, lead: str) -> tuple[range, ...]:
        """Vocabulary ids that can come first in a text that begins with `lead`."""
        return self._lead(lead)[1]

    def without_leads(self, text: MaskedText) -> tuple[MaskedText, list[str]]:
        """Remove the leads with which the holes' contents begin; return the text and the leads, one per
        hole; see `cm3core.sequence.grammar`."""
        return without_leads(text, lambda lead: self._lead(lead)[0])

    def _lead(self, lead: str) -> tuple[bool, tuple[range, ...]]:
        if lead not in self._leads:
            ids = ids_that_begin(
                lead, self._texts, int(self.vocabulary.of_text(np.zeros(1, np.int32))[0])
            )
            self._leads[lead] = bool(ids) and is_joined(lead, self._texts), ids
        return self._leads[lead]

    def code_tokens(self, codes: Codes, place: str) -> IntArray:
        """Ids int32 of a picture's codes, including missing ones (whatever their value), without padding; raises
        `DocumentError` on another grid."""
        if codes.grid != self.grid or codes.codes.shape != (self.num_codes,):
            raise DocumentError(
                place,
                f"codes {list(codes.codes.shape)} of a {codes.grid[0]} x {codes.grid[1]} grid, but "
                "pictures "
                f"here are {self.grid[0]} x {self.grid[1]}",
                "encode pictures with this recipe's image tokenizer",
            )
        if codes.missing is not None and codes.missing.shape != codes.codes.shape:
            raise DocumentError(
                place,
                f"missing {list(codes.missing.shape)} for codes {list(codes.codes.shape)}",
                "give one flag for each code",
            )
        seen = codes.codes if codes.missing is None else codes.codes[~codes.missing]
        if len(seen) and (seen.min() < 0 or seen.max() >= self.vocabulary.num_image):
            raise DocumentError(
                place,
                f"codes {seen.min()}..{seen.max()}, but the vocabulary has {self.vocabulary.num_image}",
                "encode pictures with this recipe's image tokenizer",
            )
        length = self._length(codes)
        if codes.missing is not None and codes.missing[length:].any():
            raise DocumentError(
                place,
                f"has missing codes after its end code, number {length - 1}",
                "mark codes before the end as missing, or the end and everything after it",
            )
        if codes.any_length:
            runs = [] if self.form.rules is None else runs_of(missing_codes(codes))
            if self.form.end is None or len(runs) != 1 or runs[0][-1] + 1 == len(codes.codes):
                raise DocumentError(
                    place,
                    "has missing codes of any length, but not one run of them before the end of a sequence with rules",
                    "leave out any_length, or mark one run inside",
                )
        return self.vocabulary.of_codes(codes.codes[:length])

    def _length(self, codes: Codes) -> int:
        """Number of a picture's codes that are written: of a sequence up to its end, or all if it is missing."""
        if self.form.end is None:
            return len(codes.codes)
        if codes.missing is None:
            return self.form.length(codes.codes)
        return self.form.length(np.where(codes.missing, NO_CELL, codes.codes))

    def codes(self, tokens: IntArray) -> Codes:
        """The picture of image tokens; raises `DocumentError` unless they are exactly one grid of
        codes, or one sequence with its end."""
        strange = tokens[~self.vocabulary.is_image(tokens)]
        if len(strange):
            raise DocumentError(
                "image segment",
                f"holds {self.vocabulary.name(int(strange[0]))}",
                "decode only image codes",
            )
        codes = self.vocabulary.to_codes(tokens)
        form = self.form
        whole = len(tokens) == self.num_codes
        if form.end is not None:
            whole = 0 < len(tokens) <= self.num_codes and codes[-1] == form.end
            whole = whole and form.length(codes) == len(codes)
        if not whole:
            has = form.name if form.end is not None else self.num_codes
            raise DocumentError(
                "image segment",
                f"{len(tokens)} codes, but a picture {'is' if form.end is not None else 'has'} {has}",
                "decode whole pictures",
            )
        return Codes(form.padded(codes) if form.end is not None else codes, self.grid)

    def cells(self, codes_m: IntArray) -> IntArray:
        """What decoders are fed beside a picture's codes, int32 [m], see `PictureForm.cells`."""
        fed = self.form.fed_axes
        return self.form.cells(codes_m)[0] if fed else np.arange(len(codes_m), dtype=np.int32)

    def in_frame(self, tokens: IntArray, *, closed: bool = True) -> tuple[IntArray, IntArray]:
        """Ids int32 of a picture's first codes, including the frame around them, and their cells; `closed`: they are
        all of it."""
        cells = self.cells(self.vocabulary.to_codes(tokens))
        framed = [
            picture_tokens(run, frame if closed else replace(frame, closing=()), self.grid[1])
            for run, frame in ((tokens, self.frame), (cells, self._no_cells))
        ]
        return framed[0], framed[1]

    @cached_property
    def _no_cells(self) -> Frame:
        """The frame with `NO_CELL` in place of each id."""
        frame = self.frame
        first, end, last = (
            (NO_CELL,) * len(ids) for ids in (frame.opening, frame.row_end, frame.closing)
        )
        return Frame(first, end, last, frame.ends_last_row)

    def write_segment(
        self, writer: TokenWriter, segment: Segment, place: str, max_text_tokens: int | None
    ) -> Span:
        """Write one segment without holes and return its span."""
        start = writer.length
        if isinstance(segment, (Text, MaskedText)) and not has_holes([segment]):
            if isinstance(segment, Text) and segment.ids is not None:
                writer.add(self._stored_tokens(segment.ids, place, max_text_tokens))
                return Span(start, writer.length, "text")
            text = (
                segment.text
                if isinstance(segment, Text)
                else "".join(str(part) for part in segment.parts)
            )
            writer.add(self.text_tokens(text, max_text_tokens))
            return Span(start, writer.length, "text")
        if isinstance(segment, Codes) and not missing_codes(segment).any():
            writer.add(*self.in_frame(self.code_tokens(segment, place)))
            opening, closing = len(self.frame.opening), len(self.frame.closing)
            grid = None if self.form.end is not None else self.grid
            return Span(
                start + opening, writer.length - closing, "image", grid, depth=self.form.depth
            )
        if isinstance(segment, Image):
            raise DocumentError(
                place,
                "is a picture as pixels",
                "encode it with the image tokenizer; sequences hold codes",
            )
        raise DocumentError(
            place, "has a hole", "only the query document of a prompt may have holes"
        )


def modality_of(segment: object) -> str:
    """The modality of a segment, "text" or "image"; pieces of a text count as text."""
    return "image" if isinstance(segment, (Codes, Image, ImageHole)) else "text"


def turn_ends(document: Sequence[Segment]) -> list[bool | None]:
    """Whether a turn ends before each segment; None for all segments if no turn is marked."""
    marked = is_conversation(document)
    return [starts_turn(segment) if marked else None for segment in document]
