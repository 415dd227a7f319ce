"""Conformance kits of prompt rewriters and finishers.

class TestMine(PromptRewriterContract):
    config = MyRewriterConfig()

class TestMine(FinisherContract):
    config = MyFinisherConfig()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import Codes, Document, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.retriever import Retrieved
from cm3kits._findings import LawBroken, holds, same
from cm3kits._laws import Contract
from cm3kits.strategies import images
from cm3run.prompting import Asked, Finisher, Found, PromptRewriter
from cm3run.xml_text import parse_xml

#: Texts of the memory to search.
MEMORY = (
    *("dog, filled", "cat, outline", "red apple", "a cup of coffee", "two cats in a hat, colour"),
    *("house with a garden", "bird", "bird cage, filled", "rocket", "no dogs, outline"),
)
_WORDS = ("a", "the", "two", "of", "with", "dog", "cats", "birds", "cage", "red", "zzz", "colour")
_PICTURE = Codes(np.arange(4, dtype=np.int32), (2, 2))
#: A search that has not ended after this many queries counts as endless.
_MOST_QUERIES = 100


def _prompts() -> st.SearchStrategy[str]:
    """Draw words of the memory and others, with and without a style, and arbitrary texts."""
    words = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=5).map(" ".join)
    styled = st.tuples(words, st.sampled_from(["", ", outline", ", in colour"])).map("".join)
    return st.one_of(styled, st.sampled_from(MEMORY), st.text(max_size=20))


def _known() -> st.SearchStrategy[frozenset[str] | None]:
    return st.one_of(st.none(), st.frozensets(st.sampled_from([*_WORDS, "cat", "bird"])))


class PromptRewriterContract(Contract[PromptRewriter]):
    """Laws of `PromptRewriter`. A memory of ten texts is searched by shared words."""

    kind: ClassVar[str] = "prompt_rewriter"

    def build(self, config: Any) -> PromptRewriter:
        """See `PromptRewriterConfig.build`."""
        rewriter: PromptRewriter = config.build()
        return rewriter

    def law_a_prompt_stays_a_text(self, data: st.DataObject) -> None:
        """A prompt is searched for as a non-empty text."""
        prompt, known = data.draw(_prompts()), data.draw(_known())
        text = self.subject.rewrite(prompt, known)
        is_text = isinstance(text, str) and (bool(text.strip()) or not prompt.strip())
        holds(is_text, f"rewrote the prompt {prompt!r}", "a non-empty text", text)

    def law_rewriting_is_deterministic(self, data: st.DataObject) -> None:
        """Equal prompts give equal texts, also with an equal rewriter."""
        prompt, known = data.draw(_prompts()), data.draw(_known())
        text = self.subject.rewrite(prompt, known)
        same(self.subject.rewrite(prompt, known), text, f"rewrote {prompt!r} twice")
        again = self.make_again().rewrite(prompt, known)
        same(again, text, f"rewrote {prompt!r} with two rewriters of one config")

    def law_the_subject_is_a_part_of_the_text(self, data: st.DataObject) -> None:
        """The subject is a substring of the text."""
        text = data.draw(_prompts())
        subject = self.subject.subject(text)
        holds(subject in text, f"took the subject of {text!r}", "a substring of it", subject)

    def law_a_search_returns_what_it_found(self, data: st.DataObject) -> None:
        """A search ends and returns retrieved documents, without duplicates, and no more than requested."""
        asked = self._asked(data)
        found, sent = searched(self.subject, asked)
        ids = [one.index for one in found.results]
        number = f"searched for {text_of(asked.query)!r}, {asked.number} results"
        holds(len(ids) <= asked.number, number, f"at most {asked.number} results", ids)
        holds(len(set(ids)) == len(ids), number, "each document once", ids)
        holds(sent.issuperset(ids), number, "documents returned by the retriever", ids)

    def law_searching_is_deterministic(self, data: st.DataObject) -> None:
        """Equal prompts find equal documents, also with an equal rewriter."""
        asked = self._asked(data)
        found, _ = searched(self.subject, asked)
        again, _ = searched(self.make_again(), asked)
        same(
            again, found, f"searched for {text_of(asked.query)!r} with two rewriters of one config"
        )

    def law_turns_are_places_of_results(self, data: st.DataObject) -> None:
        """Documents that take turns are results, without duplicates, and there is at least one."""
        asked = self._asked(data)
        found, _ = searched(self.subject, asked)
        if found.results:
            turns = self.subject.turns(found, asked)
            places = range(len(found.results))
            right = bool(turns) and len(set(turns)) == len(turns) and set(turns) <= set(places)
            did = f"took the turns of {len(places)} results for {text_of(asked.query)!r}"
            holds(right, did, "one or more of their positions, each once", turns)

    def _asked(self, data: st.DataObject) -> Asked:
        text: Document = (Text(data.draw(_prompts())),)
        query = data.draw(st.sampled_from([text, (*text, _PICTURE), (*text, Text("with a hat"))]))
        return Asked(
            query,
            data.draw(st.integers(1, len(MEMORY))),
            data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
            data.draw(_known()),
            lambda found: MEMORY[found.index],
        )


def searched(rewriter: PromptRewriter, asked: Asked) -> tuple[Found, set[int]]:
    """Return what a rewriter finds in `MEMORY`, and the documents that it received."""
    searching, sent = rewriter.search(asked), set[int]()
    did = f"searched for {text_of(asked.query)!r}"
    try:
        query, number = next(searching)
        for _ in range(_MOST_QUERIES):
            pictures = [part for part in query if isinstance(part, Codes)]
            same(pictures, [part for part in asked.query if isinstance(part, Codes)], did)
            holds(number >= 1, did, "1 result or more asked for", number)
            results = _retrieved(text_of(query), number)
            sent.update(one.index for one in results)
            query, number = searching.send(results)
    except StopIteration as end:
        found: Found = end.value
        return found, sent
    raise LawBroken(did, f"an end after at most {_MOST_QUERIES} queries", "another query")


def _retrieved(query: str, number: int) -> list[Retrieved]:
    """Return documents of `MEMORY`, by the share of common words."""

    def score(text: str) -> float:
        asked, said = (set(one.replace(",", "").split()) for one in (query, text))
        return len(asked & said) / max(1, len(asked | said))

    every = [Retrieved(index, str(index), score(text)) for index, text in enumerate(MEMORY)]
    return sorted(every, key=lambda one: -one.score)[:number]


class FinisherContract(Contract[Finisher]):
    """Laws of `Finisher`."""

    kind: ClassVar[str] = "finisher"

    def build(self, config: Any) -> Finisher:
        """See `FinisherConfig.build`."""
        finisher: Finisher = config.build()
        return finisher

    def law_pictures_keep_their_size(self, data: st.DataObject) -> None:
        """Pictures uint8 [H, W, 3] of any size keep shape and dtype; the input is unchanged."""
        picture, texts, others = _finished(data)
        before = picture.copy()
        for did, finished in (
            ("finished", self.subject.finish(picture, texts, others)),
            ("finished as decoded", self.subject.finish_decoded(picture)),
        ):
            right = finished.shape == before.shape and finished.dtype == np.uint8
            where = f"{did} a picture of {picture.shape[0]} x {picture.shape[1]} pixels"
            holds(right, where, f"uint8 {list(before.shape)}", finished)
        same(picture, before, "finished a picture, and looked at the one given")

    def law_finishing_is_deterministic(self, data: st.DataObject) -> None:
        """Equal pictures and texts give equal pictures, also with an equal finisher."""
        picture, texts, others = _finished(data)
        finished = self.subject.finish(picture, texts, others)
        again = self.make_again().finish(picture, texts, others)
        same(again, finished, "finished a picture with two finishers of one config")
        decoded = self.subject.finish_decoded(picture)
        same(self.make_again().finish_decoded(picture), decoded, "finished a decoded picture twice")

    def law_an_svg_is_one(self, data: st.DataObject) -> None:
        """`svg` returns None or a whole SVG document."""
        picture, _, _ = _finished(data)
        try:
            text = self.subject.svg(picture)
        except ImportError:  # an optional package
            return
        if text is not None:
            try:
                root = parse_xml(text).tag.rpartition("}")[2]
            except DataError as error:
                root = f"not XML ({error.cause})"
            holds(root == "svg", "wrote a picture as SVG", "a document whose root is svg", root)


def _finished(data: st.DataObject) -> tuple[PixelArray, Sequence[str], Sequence[PixelArray]]:
    """Draw a picture, the texts of its prompt, and its source pictures."""
    texts = data.draw(st.lists(_prompts(), max_size=2))
    others = list(data.draw(images()))[: data.draw(st.integers(0, 2))]
    return data.draw(images())[0], texts, others
