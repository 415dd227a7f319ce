"""Conformance kit of kind `layout`: sequences, prompts and grammar agree, and convert back to documents.

class TestMine(LayoutContract):
    config = MyLayoutConfig()
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, IntArray, MaskedText, Text, TextHole
from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.layout import Layout, VocabularyParts
from cm3core.interfaces.sampler import PromptVariant
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.grammar import HoleGrammar, num_new_tokens
from cm3core.sequence.prompt_writer import Prompt
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import VocabularySizes
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import doing, every, holds, refuses, same, shown
from cm3kits._module_laws import Outputs

#: Number of image codes in the kit.
NUM_CODES = 6
#: Tokens of the kit's text tokenizer besides bytes: those of Chameleon and related models.
PUBLISHED = (
    *("<s>", "<pad>", "</s>", "<unk>", "<racm3:break>", "<eoss>", "<reserved08706>"),
    *(f"IMGIMG{letter}Z" for letter in string.ascii_uppercase[:NUM_CODES]),
    *(f"<reserved{number:05d}>" for number in range(8799, 8805)),
)
_WORDS = ("a", "red bell", "x<s>y", "é", " two", "4*4", "<eoss>")


class NamedBytes(TextTokenizer):
    """A tokenizer with special tokens of these names, followed by bytes as ids; no text becomes a special token."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @property
    def vocab_size(self) -> int:
        return len(self.names) + 256

    @property
    def fingerprint(self) -> str:
        return " ".join(self.names)

    def special_ids(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def _encode(self, text: str) -> list[int]:
        return [len(self.names) + byte for byte in text.encode("utf-8")]

    def _decode(self, ids: Sequence[int]) -> str:
        own = bytes(one - len(self.names) for one in ids if one >= len(self.names))
        return own.decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        (folder / "names.txt").write_text("\n".join(self.names), encoding="utf-8")


class LayoutContract(ConfigLaws[Layout]):
    """Laws of `Layout`, built for `text_tokenizer()`, pictures of `grid`, and `NUM_CODES` codes."""

    kind: ClassVar[str] = "layout"
    grid: ClassVar[tuple[int, int]] = (2, 4)
    max_examples: ClassVar[int | None] = 40

    def text_tokenizer(self) -> TextTokenizer:
        """Return the layout's text tokenizer; override it for a layout that needs other tokens."""
        return NamedBytes(PUBLISHED)

    @property
    def sizes(self) -> VocabularySizes:
        """Return the inputs for a layout that assigns its own ids."""
        return VocabularySizes(self.text_tokenizer().vocab_size, NUM_CODES, num_sentinels=8)

    def build(self, config: Any) -> Layout:
        """See `LayoutConfig.build`."""
        tokenizer = self.text_tokenizer()
        parts = VocabularyParts(tokenizer, NUM_CODES, self.sizes)
        layout: Layout = config.build(parts, self.grid)
        return layout

    def declared(self, component: Layout) -> Iterator[tuple[str, bool, str, Any]]:
        """What is added to texts, and pictures that it can write."""
        prefix, hidden = component.text_prefix, component.hides_all
        yield "text_prefix", isinstance(prefix, str), "a text", prefix
        yield "hides_all", isinstance(hidden, bool), "True or False", hidden
        if self.config is not None:
            with doing("called check_pictures with the pictures that it was built for"):
                self.config.check_pictures(self.grid, NUM_CODES)

    def abilities(self, component: Layout) -> Mapping[str, bool]:
        """What its sequences allow."""
        return {
            "holes": component.has_sentinels,
            "text": component.writes_text,
            "prefix": component.reads_pictures,
            "turns": component.has_turns,
        }

    def works_without(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Named tokens of the text tokenizer."""

        def use() -> object:
            tokenizer = NamedBytes(())
            sizes = VocabularySizes(tokenizer.vocab_size, NUM_CODES, num_sentinels=8)
            return self.config.build(VocabularyParts(tokenizer, NUM_CODES, sizes), self.grid)

        yield "named_tokens", use

    @property
    def serializer(self) -> Serializer:
        """The serializer of the layout."""
        layout = self.subject
        return Serializer(layout.vocabulary, self.text_tokenizer(), self.grid, layout=layout)

    # ---- documents of laws

    def picture(self, data: st.DataObject) -> Codes:
        """Draw a picture without holes."""
        number = self.grid[0] * self.grid[1]
        codes = data.draw(st.lists(st.integers(0, NUM_CODES - 1), min_size=number, max_size=number))
        return Codes(np.array(codes, np.int32), self.grid)

    def document(self, data: st.DataObject) -> Document:
        """Draw one to four segments without empty texts; the last is a picture if the layout writes no texts."""
        kinds = data.draw(st.lists(st.sampled_from(("text", "image")), min_size=1, max_size=4))
        if not self.subject.reads_pictures:
            kinds[:-1] = ["text"] * (len(kinds) - 1)
        if not self.subject.writes_text:
            kinds[-1] = "image"
        return tuple(
            Text(data.draw(st.sampled_from(_WORDS))) if kind == "text" else self.picture(data)
            for kind in kinds
        )

    def with_hole(self, document: Document, data: st.DataObject) -> Document:
        """Return the document with its last segment, or the end of it, missing."""
        last = document[-1]
        if isinstance(last, Text):
            return (*document[:-1], TextHole(len(self.serializer.text_tokens(last.text)) + 1))
        assert isinstance(last, Codes)
        first = data.draw(st.integers(0, len(last.codes) - 1), label="first missing")
        if first == 0:
            return (*document[:-1], ImageHole())
        missing = np.arange(len(last.codes)) >= first
        return (*document[:-1], Codes(last.codes, last.grid, missing))

    def grammar(self, prompt: Prompt) -> HoleGrammar:
        """Return the grammar of a prompt."""
        serializer = self.serializer
        size = serializer.text_tokenizer.vocab_size
        return HoleGrammar(prompt.holes, serializer.vocabulary, size, serializer.text)

    def observe(self, component: Layout) -> Outputs:
        """Return sequences of documents, prompts, and prompts of a guidance stream without texts."""
        tokenizer = self.text_tokenizer()
        serializer = Serializer(component.vocabulary, tokenizer, self.grid, layout=component)
        codes = np.arange(self.grid[0] * self.grid[1], dtype=np.int32) % NUM_CODES
        picture, text = Codes(codes, self.grid), Text("red bell")
        whole: list[Document] = [(text, picture), (picture,)]
        holes: list[Document] = [(text, ImageHole())]
        if component.reads_pictures:
            whole += [(text, picture, Text("a"), picture)]
        if component.writes_text and component.reads_pictures:
            holes += [(picture, TextHole(3))]
        hidden = PromptVariant(hide_text="all")
        return {
            "sequences": [serializer.sequence(one).tokens for one in whole],
            "sequences with a retrieved one": [
                serializer.sequence(one, [whole[0]]).tokens for one in whole[:1]
            ],
            "prompts": [serializer.prompt(one).tokens for one in holes],
            "prompts without texts": [
                serializer.prompt(one, variant=hidden).tokens for one in holes[:1]
            ],
        }

    def fingerprints(self, component: Layout) -> dict[str, tuple[str, tuple[str, ...]]]:
        """The vocabulary and the fingerprint identify all sequences."""
        both = f"{component.fingerprint} {component.vocabulary.to_dict()}"
        return {"fingerprint and vocabulary": (both, ())}

    # ---- laws

    def law_every_document_has_ids(self, data: st.DataObject) -> None:
        """Any segments in any order become ids of the table, without padding, between `begin` and `end`; each
        picture's codes are where the sequence states."""
        layout, document = self.subject, self.document(data)
        retrieved = [self.document(data) for _ in range(data.draw(st.integers(0, 2)))]
        sequence = self.serializer.sequence(document, retrieved)
        tokens, did = sequence.tokens, f"made a sequence of {_named(document)}"
        size = layout.vocabulary.size
        every(tokens, (tokens >= 0) & (tokens < size), did, f"ids in 0..{size - 1}")
        every(tokens, tokens != layout.vocabulary.pad, did, "no padding")
        first = (retrieved[0] if retrieved else document)[0]
        begin = layout.begin_before("image" if isinstance(first, Codes) else "text")
        same(tuple(tokens[: len(begin)].tolist()), begin, f"{did}, and looked at its begin")
        behind = tuple(tokens[len(tokens) - len(layout.end) :].tolist())
        same(behind, layout.end, f"{did}, and looked at its end")
        spans = sequence.segments[sequence.query_segment :]
        for place, (span, segment) in enumerate(zip(spans, document, strict=True)):
            inside, cells = (part[span.start : span.stop] for part in (tokens, sequence.cells))
            if isinstance(segment, Codes):
                at = f"{did}, and looked at the picture, segment {place}: "
                codes = layout.vocabulary.to_codes(inside[cells >= 0])
                same(codes, segment.codes[cells[cells >= 0]], f"{at}its codes")
                numbers = sorted(cells[cells >= 0].tolist())
                same(numbers, list(range(len(segment.codes))), f"{at}its cells, sorted")

    def law_sequences_come_back(self, data: st.DataObject) -> None:
        """A sequence converts back to its document, segment by segment, if no text is empty."""
        document = self.document(data)
        again = self.serializer.documents(self.serializer.sequence(document))
        holds(
            again == [document],
            f"made a sequence of {_named(document)}, and documents of that",
            "the same document",
            " and ".join(map(_named, again)) or "none",
        )

    def law_prompts_continue_as_trained(self, data: st.DataObject) -> None:
        """A prompt, drawn tokens and forced tokens together equal the training sequence, token by token; only
        tokens after the last draw are missing."""
        document = self.document(data)
        sequence = self.serializer.sequence(document).tokens
        asked = self.with_hole(document, data)
        prompt = self.serializer.prompt(asked)
        did = f"made the prompt of {_named(asked)}, drew what was missing"
        same(prompt.tokens, sequence[: len(prompt.tokens)], f"{did}: the prompt")
        grammar, place = self.grammar(prompt), len(prompt.tokens)
        fed = place
        while not grammar.done:
            number = min(grammar.num_draws, len(sequence) - place)
            forced = grammar.take(sequence[place : place + number])
            place += number
            fed = place
            same(forced, sequence[place : place + len(forced)], f"{did}: what is fed at {place}")
            place += len(forced)
        most = len(prompt.tokens) + num_new_tokens(prompt.holes)
        holds(fed - 1 <= most, f"{did}, and counted tokens", f"at most {most}", fed - 1)
        behind = sequence[place:].tolist()
        frame = self.serializer.frame
        around = (*(frame.row_end if frame.ends_last_row else ()), *frame.closing)
        allowed: tuple[list[int], ...] = (
            [],
            [*around, *self.subject.end],
            list(self.subject.end[1:]),
        )
        expected = " or ".join(map(str, allowed))
        holds(behind in allowed, f"{did}, and looked at what is left", expected, behind)

    def law_the_grammar_is_exact(self, data: st.DataObject) -> None:
        """Where a code is expected, every code may be drawn and nothing else; where text is expected, every text id
        and, after the first, its stop tokens."""
        document = self.with_hole(self.document(data), data)
        vocabulary = self.subject.vocabulary
        prompt = self.serializer.prompt(document)
        grammar = self.grammar(prompt)
        legal = {one for ids in grammar.legal for one in ids}
        size = self.serializer.text_tokenizer.vocab_size
        did = f"looked at the ids that may follow the prompt of {_named(document)}"
        if grammar.modality == "image":
            codes = set(vocabulary.of_codes(np.arange(NUM_CODES)).tolist())
            same(sorted(legal), sorted(codes), f"{did}: codes")
        else:
            special = self.serializer.text_tokenizer.special_ids().values()
            texts = vocabulary.of_text(np.arange(size))
            allowed = set(texts[vocabulary.is_text(texts)].tolist())
            same(sorted(legal), sorted(allowed), f"{did}: text")
            if vocabulary.num_sentinels == 0:
                both = sorted(allowed.intersection(special))
                holds(not both, f"{did}: text", "no special token", both)
            grammar.take(np.array(sorted(legal)[:1], np.int32))
            after = {one for ids in grammar.legal for one in ids}
            wanted = sorted(allowed | {self.subject.end[0]})
            same(sorted(after), wanted, f"{did} and a text token")
        illegal = next(one for one in (vocabulary.pad, *self.subject.begin) if one not in legal)
        refuses(
            lambda: grammar.take(np.array([illegal], np.int32)),
            f"drew the id {illegal}, which may not follow",
            GenerationError,
            match="drew",
        )

    def law_ids_have_one_meaning(self) -> None:
        """Each image code has one id; padding and delimiters of segments are not image codes, and padding is not
        text."""
        layout, vocabulary = self.subject, self.subject.vocabulary
        codes = vocabulary.of_codes(np.arange(NUM_CODES))
        did = "looked at the ids of image codes"
        holds(len(set(codes.tolist())) == NUM_CODES, did, f"{NUM_CODES} different ids", codes)
        same(vocabulary.to_codes(codes), np.arange(NUM_CODES), f"{did}, and back")
        frame = layout.frame(self.grid)
        begin = (*layout.begin_before("text"), *layout.begin_before("image"))
        around = {*begin, *layout.end, *frame.opening, *frame.row_end, *frame.closing}
        both = sorted(around.intersection(codes.tolist()))
        holds(not both, "looked at what is around segments", "no id of an image code", both)
        pad = vocabulary.pad
        holds(pad not in around, "looked at what is around segments", "no padding", pad)
        for name, of in (("text", vocabulary.is_text), ("image", vocabulary.is_image)):
            holds(
                not of(np.array([pad])).any(),
                f"looked at the id {pad} of padding",
                f"no {name}",
                pad,
            )

    def law_hidden_texts_leave_no_trace(self, data: st.DataObject) -> None:
        """A guidance stream without texts doesn't depend on them, except on their length if a `blank` replaces each
        token; its hole is the same."""
        picture = self.picture(data)
        first, second = data.draw(st.sampled_from(_WORDS)), data.draw(st.sampled_from(_WORDS))
        hidden = PromptVariant(hide_text="all")
        rests: list[Document] = [(ImageHole(),)]
        if self.subject.reads_pictures:
            rests += [(picture, ImageHole()), (picture, TextHole(3))]
        for rest in rests[: None if self.subject.writes_text else 2]:
            documents: list[Document] = [(Text(one), *rest) for one in (first, second)]
            prompts = [self.serializer.prompt(one, variant=hidden) for one in documents]
            seen = self.serializer.prompt(documents[0])
            did = f"made prompts that hide the texts {first!r} and {second!r}"
            if (blank := self.subject.blank) is None:
                same(prompts[1].tokens, prompts[0].tokens, f"{did}, and compared them")
                holds(len(prompts[0].tokens), did, "at least one token", "none")
            else:
                opening = self.subject.frame(self.grid).opening
                behind = len(seen) - len(opening)
                expected = [seen.tokens[0], *[blank] * (behind - 1), *opening]
                same(prompts[0].tokens, np.array(expected), f"{did}: a blank for each token")
            facts = [_facts(hole) for hole in prompts[0].holes]
            same(facts, [_facts(hole) for hole in seen.holes], f"{did}, and compared their holes")

    def law_holes_elsewhere_need_sentinels(self, data: st.DataObject) -> None:
        """With sentinels any hole can be filled; without, a hole that is not at the end raises an error with the
        layout's name."""
        layout = self.subject
        stated = self.config.has_sentinels
        same(layout.has_sentinels, stated, "compared has_sentinels with the config's")
        if self.config.writes_sequences:
            same(layout.writes_sequences, True, "compared writes_sequences with the config's")
        document: Document = (MaskedText(("a ", TextHole(2), " b")), self.picture(data))
        did = f"made the prompt of {_named(document)}"
        if layout.has_sentinels:
            same(len(self.serializer.prompt(document).holes), 1, f"{did}, and counted its holes")
            return
        error = refuses(lambda: self.serializer.prompt(document), did, DocumentError)
        named = repr(layout.name) in error.cause
        holds(named, did, f"an error that names the layout {layout.name!r}", error.cause)

    def law_sizes_are_known_without_building(self) -> None:
        """The config states at least the number of tokens of a picture, and the exact number of rows of the
        table."""
        picture = self.subject.frame(self.grid).num_tokens(self.grid)
        stated = self.config.picture_length(self.grid)
        holds(
            stated >= picture, "looked at the config's picture_length", f"{picture} or more", stated
        )
        size, told = self.subject.vocabulary.size, self.config.num_ids(self.sizes)
        holds(told in (None, size), "looked at the config's num_ids", f"{size} or None", told)

    def law_equal_makes_are_equal(self, data: st.DataObject) -> None:
        """Equal configs build equal vocabularies, fingerprints and sequences."""
        again, did = self.make_again(), "made it twice, and compared "
        mine, other = self.subject.vocabulary.to_dict(), again.vocabulary.to_dict()
        same(other, mine, did + "the vocabularies")
        same(again.fingerprint, self.subject.fingerprint, did + "the fingerprints")
        document, here = self.document(data), self.serializer
        there = Serializer(again.vocabulary, self.text_tokenizer(), self.grid, layout=again)
        tokens = here.sequence(document).tokens
        same(there.sequence(document).tokens, tokens, f"{did}sequences of {_named(document)}")


def _named(document: Document) -> str:
    """Describe a document."""
    words = []
    for segment in document:
        if isinstance(segment, Text):
            words.append(repr(segment.text))
        elif isinstance(segment, Codes):
            words.append("a picture" if segment.missing is None else "a picture with missing codes")
        else:
            words.append(shown(segment))
    return f"({', '.join(words)})"


def _facts(hole: Any) -> tuple[str, int, int | None, list[int] | None]:
    cells: IntArray | None = hole.cells
    return hole.kind, hole.max_tokens, hole.ends_with, None if cells is None else cells.tolist()
