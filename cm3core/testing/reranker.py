"""Conformance kit of rerankers.

    class TestMine(RerankerContract):
        config = MyRerankerConfig()

The candidates have letters as text and pictures of 2 x 3 codes. A config is built with an embedder
without weights (`embedder`) and with `likelihood()`, which asks a tiny decoder over this
vocabulary; override them to use others: any embedder,
`Likelihood(decoder, SERIALIZER, VOCABULARY)` over any decoder with a context of 64 tokens or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, MaskedText, PixelArray, Text, TextHole
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reranker import Candidate, Likelihood, Reranker
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.serialize import Serializer
from cm3core.testing._laws import Contract
from cm3core.testing.samples import HashEmbedder
from cm3core.testing.strategies import codes
from cm3core.testing.vocabularies import make_vocabulary

GRID = (2, 3)
LETTERS = "abcdefghij "
#: The codes of a picture to inpaint.
BOX = np.array([False, True, True, False, True, False])
_TOLERANCE = 1e-3


class LetterTokenizer(TextTokenizer):
    """One id per letter of `LETTERS`."""

    vocab_size = len(LETTERS)
    fingerprint = "letters"

    def _encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def _decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[token] for token in ids)

    def save(self, folder: Path) -> None:
        """Nothing to save."""


VOCABULARY = make_vocabulary(len(LETTERS), 16, 8)
SERIALIZER = Serializer(VOCABULARY, LetterTokenizer(), GRID)


def pixels_of(codes: Codes) -> PixelArray:
    """Pixels uint8 [4, 6, 3] of codes: each a block of a different colour."""
    colours = np.stack([codes.codes * 16, 255 - codes.codes * 16, codes.codes * 7], axis=-1).astype(
        np.uint8
    )
    return colours.reshape(*GRID, 3).repeat(2, axis=0).repeat(2, axis=1)


def _letters() -> st.SearchStrategy[str]:
    """One to six letters."""
    return st.text(LETTERS, min_size=1, max_size=6)


@st.composite
def candidates(draw: st.DrawFn, kinds: Sequence[str]) -> list[Candidate]:
    """One to five candidates of one request of one of `kinds` (see `RerankerContract`)."""
    kind, given_text = draw(st.sampled_from(kinds)), draw(_letters())
    given_picture, original = draw(codes(grid=GRID)), draw(codes(grid=GRID))
    holed = Codes(original.codes, GRID, BOX)
    requests: dict[str, Document] = {
        "picture": (Text(given_text), ImageHole()),
        "box": (Text(given_text), holed),
        "text": (TextHole(6), given_picture),
        "text after": (given_picture, TextHole(6)),
        "part": (MaskedText((given_text, TextHole(6))), given_picture),
        "both": (TextHole(6), ImageHole()),
    }
    retrieved = tuple(draw(st.lists(st.tuples(_letters().map(Text), codes(grid=GRID)), max_size=1)))
    result = []
    for seed in range(draw(st.integers(1, 5))):
        text, picture = draw(_letters()), draw(codes(grid=GRID))
        boxed = Codes(np.where(BOX, picture.codes, original.codes), GRID)
        filled: dict[str, Document] = {
            "picture": (Text(given_text), picture),
            "box": (Text(given_text), boxed),
            "text": (Text(text), given_picture),
            "text after": (given_picture, Text(text)),
            "part": (Text(given_text + text), given_picture),
            "both": (Text(text), picture),
        }
        result.append(
            Candidate(requests[kind], filled[kind], pixels_of, retrieved, -1.0 - seed, 6, seed)
        )
    return result


class RerankerContract(Contract[Reranker]):
    """Laws of a reranker: a score depends on the candidate only, and is repeatable."""

    kind: ClassVar[str] = "reranker"
    max_examples: ClassVar[int | None] = 15
    #: The embedder, for rerankers that need one.
    embedder: ClassVar[Embedder] = HashEmbedder()
    #: The request: a picture for a text, a box of one, a text for a picture (before or after it,
    #: or the end of a text), or both.
    kinds: ClassVar[tuple[str, ...]] = ("picture", "box", "text", "text after", "part", "both")

    def likelihood(self) -> Likelihood:
        """The likelihood by a tiny decoder with random weights, the same in every call."""
        from cm3core.generation import likelihood
        from cm3core.testing.attention import DenseAttention
        from cm3core.testing.tiny import TinyDecoder

        decoder = TinyDecoder(VOCABULARY.size, DenseAttention()).eval()
        return likelihood.Likelihood(decoder, SERIALIZER, VOCABULARY, max_text_tokens=6)

    def build(self, config: Any) -> Reranker:
        """Build with the kit's embedder and likelihood."""
        reranker: Reranker = config.build(embedder=self.embedder, likelihood=self.likelihood())
        return reranker

    def law_each_candidate_gets_a_finite_number(self, data: st.DataObject) -> None:
        """One finite float per candidate, in order; no scores for no candidates."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        assert len(scores) == len(some)
        assert all(type(score) is float and np.isfinite(score) for score in scores)
        assert self.subject.score([]) == []

    def law_a_score_is_the_candidate_s_own(self, data: st.DataObject) -> None:
        """Up to rounding, neither the other candidates nor their order matter."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        order = data.draw(st.permutations(range(len(some))))
        reordered = self.subject.score([some[place] for place in order])
        assert reordered == pytest.approx([scores[place] for place in order], abs=_TOLERANCE)
        assert self.subject.score([some[order[0]]]) == pytest.approx(
            [scores[order[0]]], abs=_TOLERANCE
        )

    def law_equal_candidates_have_equal_scores(self, data: st.DataObject) -> None:
        """Equal candidates have equal scores, whatever their seeds."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score([*some, replace(some[0], seed=99)])
        assert scores[-1] == pytest.approx(scores[0], abs=_TOLERANCE)

    def law_scores_repeat(self, data: st.DataObject) -> None:
        """The same candidates get the same scores again, also from another instance."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        assert self.subject.score(some) == scores
        assert self.make_again().score(some) == pytest.approx(scores, abs=_TOLERANCE)

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The list of candidates is unchanged: scores are matched to it by place."""
        some = data.draw(candidates(self.kinds))
        given = list(some)
        self.subject.score(given)
        assert list(map(id, given)) == list(map(id, some))

    def law_the_measure_is_named(self) -> None:
        """`measure`, shown with the scores, is constant and not empty."""
        assert self.subject.measure.strip() == self.subject.measure != ""
        assert self.make_again().measure == self.subject.measure
