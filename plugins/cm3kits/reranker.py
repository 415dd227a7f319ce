"""Conformance kit of rerankers.

    class TestMine(RerankerContract):
        config = MyRerankerConfig()

The candidates have letters as text and pictures of 2 x 3 codes. A config is built with an embedder
without weights (`embedder`) and with `likelihood()`, which uses a tiny decoder over this vocabulary;
override them to use others: any embedder, or
`Likelihood(decoder, SERIALIZER, VOCABULARY)` with any decoder that has a context of at least 64 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, MaskedText, PixelArray, Text, TextHole
from cm3core.errors import GenerationError
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reranker import Candidate, Likelihood, Reranker
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.serialize import Serializer
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import holds, same, shown
from cm3kits._module_laws import Outputs
from cm3kits._work import check_growth, work_of
from cm3kits.samples import HashEmbedder, make_vocabulary
from cm3kits.strategies import codes

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
    """Return pixels uint8 [4, 6, 3] of codes, each a block of another colour."""
    colours = np.stack([codes.codes * 16, 255 - codes.codes * 16, codes.codes * 7], axis=-1).astype(
        np.uint8
    )
    return colours.reshape(*GRID, 3).repeat(2, axis=0).repeat(2, axis=1)


def _letters() -> st.SearchStrategy[str]:
    """Draw one to six letters."""
    return st.text(LETTERS, min_size=1, max_size=6)


@st.composite
def candidates(draw: st.DrawFn, kinds: Sequence[str]) -> list[Candidate]:
    """Draw one to five candidates of a request, of one of `kinds` (see `RerankerContract`)."""
    kind, given_text = draw(st.sampled_from(kinds)), draw(_letters())
    given_picture, original = draw(codes(grid=GRID)), draw(codes(grid=GRID))
    retrieved = tuple(draw(st.lists(st.tuples(_letters().map(Text), codes(grid=GRID)), max_size=1)))
    answers = draw(st.lists(st.tuples(_letters(), codes(grid=GRID)), min_size=1, max_size=5))
    return make_candidates(kind, given_text, (given_picture, original), retrieved, answers)


def make_candidates(
    kind: str,
    given_text: str,
    pictures: tuple[Codes, Codes],
    retrieved: tuple[Document, ...],
    answers: Sequence[tuple[str, Codes]],
) -> list[Candidate]:
    """Return candidates of one request.

    Args:
        kind: see `RerankerContract.kinds`.
        given_text: text of the request.
        pictures: the given picture, and the picture with a box of missing codes.
        retrieved: prepended documents.
        answers: text and picture of each candidate; the kind uses what it needs.
    """
    given_picture, original = pictures
    holed = Codes(original.codes, GRID, BOX)
    requests: dict[str, Document] = {
        "picture": (Text(given_text), ImageHole()),
        "box": (Text(given_text), holed),
        "text": (TextHole(6), given_picture),
        "text after": (given_picture, TextHole(6)),
        "part": (MaskedText((given_text, TextHole(6))), given_picture),
        "both": (TextHole(6), ImageHole()),
    }
    result = []
    for seed, (text, picture) in enumerate(answers):
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


class RerankerContract(ConfigLaws[Reranker]):
    """Laws of a reranker: a score depends only on the candidate, and is repeatable."""

    kind: ClassVar[str] = "reranker"
    max_examples: ClassVar[int | None] = 15
    #: The embedder, for rerankers that need one.
    embedder: ClassVar[Embedder] = HashEmbedder()
    #: Kinds of requests: a picture for a text, a box of one, a text for a picture (before or after it, or
    #: the end of a text), or both.
    kinds: ClassVar[tuple[str, ...]] = ("picture", "box", "text", "text after", "part", "both")

    def likelihood(self, max_spans: int | None = None) -> Likelihood:
        """Return the likelihood under a tiny decoder with random weights, the same in every call.

        `max_spans`: masked spans per sequence in its training; 0: it only continues documents."""
        from cm3kits.attention import DenseAttention
        from cm3kits.tiny import TinyDecoder
        from cm3run.generation import likelihood

        decoder = TinyDecoder(VOCABULARY.size, DenseAttention()).eval()
        serializer = Serializer(VOCABULARY, LetterTokenizer(), GRID, max_spans=max_spans)
        return likelihood.Likelihood(decoder, serializer, VOCABULARY, max_text_tokens=6)

    def build(self, config: Any) -> Reranker:
        """Build with the kit's embedder and likelihood."""
        reranker: Reranker = config.build(embedder=self.embedder, likelihood=self.likelihood())
        return reranker

    def works_without(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """A model that fills holes anywhere, for a picture of a text; and an embedder."""
        given = Codes(np.zeros(6, np.int32), GRID)
        some = make_candidates("picture", "abe", (given, given), (), [("abc", given), ("j", given)])

        def use(*, holes: bool, embedder: Embedder | None) -> object:
            likelihood = self.likelihood() if holes else self.likelihood(max_spans=0)
            reranker: Reranker = self.config.build(embedder=embedder, likelihood=likelihood)
            return reranker.score(some)

        yield "holes", partial(use, holes=False, embedder=self.embedder)
        yield "embedder", partial(use, holes=True, embedder=None)

    def observe(self, component: Reranker) -> Outputs:
        """Return scores of candidates of each kind of request, and the measure's name."""
        rng = np.random.default_rng(0)
        found: Outputs = {"measure": component.measure}
        for kind in self.kinds:
            many = [Codes(rng.integers(0, 16, 6, np.int32), GRID) for _ in range(6)]
            answers = [("abc", many[0]), ("j", many[1]), ("fade hide ", many[2])]
            retrieved: Document = (Text("bad"), many[3])
            scores = []
            for text, pair, before in (
                ("abe", (many[4], many[5]), (retrieved,)),
                ("gig", (many[5], many[4]), ()),
            ):
                some = make_candidates(kind, text, pair, before, answers)
                scores.append(component.score(some))
            found[f"scores ({kind})"] = scores
        return found

    def law_each_candidate_gets_a_finite_number(self, data: st.DataObject) -> None:
        """Each candidate gets one finite float, in order; no candidates give no scores."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        did = f"scored {len(some)} candidates"
        same(len(scores), len(some), f"{did}, and counted the scores")
        for place, score in enumerate(scores):
            holds(
                type(score) is float and np.isfinite(score),
                did,
                "finite numbers of type float",
                f"{score} of type {type(score).__name__}",
                where=f"score {place}",
            )
        same(self.subject.score([]), [], "scored no candidates")

    def law_texts_are_hidden_as_stated(self) -> None:
        """`hides_texts` of the config: it hides all texts of a document at once, so that two texts need a model that was
        trained with two masked spans."""
        if self.config is None:
            return
        given = Codes(np.zeros(6, np.int32), GRID)
        asked: Document = (Text("abe"), Text("fig"), ImageHole())
        filled: Document = (Text("abe"), Text("fig"), given)
        some = [Candidate(asked, filled, pixels_of, (), -1.0, 6, 0)]
        stated, error = self.config.hides_texts, ""
        with self.building():
            reranker = self.config.build(
                embedder=self.embedder, likelihood=self.likelihood(max_spans=1)
            )
            try:
                reranker.score(some)
            except GenerationError as raised:
                error = shown(raised)
        holds(
            stated == bool(error),
            f"scored a prompt of two texts under a model of one masked span, with hides_texts {stated}",
            "an error: both texts are hidden" if stated else "no error",
            error or "no error",
            next_step="state in the config's hides_texts whether all texts are hidden at once",
        )

    def law_scoring_costs_what_it_reads(self) -> None:
        """The work of scoring is at most proportional to the number of candidates."""
        given = Codes(np.zeros(6, np.int32), GRID)
        works = {}
        for size in (32, 64, 128):
            answers = [
                ("abc", Codes(np.full(6, place % 16, np.int32), GRID)) for place in range(size)
            ]
            some = make_candidates(self.kinds[0], "abe", (given, given), (), answers)
            works[size] = work_of(partial(self.subject.score, some))
        check_growth(works, "candidates", "scored")

    def law_a_score_is_the_candidate_s_own(self, data: st.DataObject) -> None:
        """Up to rounding, a score depends neither on other candidates nor on their order."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        order = data.draw(st.permutations(range(len(some))))
        same(
            self.subject.score([some[place] for place in order]),
            [scores[place] for place in order],
            f"scored {len(some)} candidates, and again in the order {list(order)}",
            tolerance=_TOLERANCE,
        )
        same(
            self.subject.score([some[order[0]]]),
            [scores[order[0]]],
            f"scored a candidate alone, and among {len(some)}",
            tolerance=_TOLERANCE,
        )

    def law_equal_candidates_have_equal_scores(self, data: st.DataObject) -> None:
        """Equal candidates have equal scores, whatever their seeds."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score([*some, replace(some[0], seed=99)])
        did = "scored two equal candidates with other seeds"
        same(scores[-1], scores[0], did, tolerance=_TOLERANCE)

    def law_scores_repeat(self, data: st.DataObject) -> None:
        """The same candidates always get the same scores, also from another instance."""
        some = data.draw(candidates(self.kinds))
        scores = self.subject.score(some)
        same(self.subject.score(some), scores, "scored the same candidates twice")
        again = self.make_again().score(some)
        did = "scored the same candidates with two rerankers of one config"
        same(again, scores, did, tolerance=_TOLERANCE)

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """The list of candidates is unchanged, since scores are matched to it by index."""
        some = data.draw(candidates(self.kinds))
        given = list(some)
        self.subject.score(given)
        holds(
            list(map(id, given)) == list(map(id, some)),
            f"scored a list of {len(some)} candidates, and looked at the list",
            "the same candidates in the same order",
            f"{len(given)} candidates in another order",
            next_step="sort a copy: sorted(candidates, ...)",
        )

    def law_the_measure_is_named(self) -> None:
        """`measure`, shown with the scores, is constant and not empty."""
        name, did = self.subject.measure, "looked at its measure"
        holds(name.strip() == name != "", did, "a text without spaces around it", repr(name))
        same(self.make_again().measure, name, f"{did}, and at another one of its config")
