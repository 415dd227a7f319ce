"""Two small component kinds around generation: `prompt_rewriter` decides the search query for a prompt, `finisher` how
a generated picture is shown. And what a retriever says of a prompt: whether its memory has the thing (`Answer`).

A recipe without them searches for the prompt itself and shows pictures as decoded. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from cm3core.document import Document, Text, text_of
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.embedder import VectorArray


#: See `Answer`.
Kind: TypeAlias = Literal["found", "restyled", "composed"]


@dataclass(frozen=True)
class Answer:
    """What the memory has for a prompt, judged by its retriever's scores.

    Args:
        kind: "found": the thing in the hand that is asked for; "restyled": the thing, in other hands only; "composed":
            only parts of it, or nothing near, so that a picture of it is a guess.
        asked: the thing that the prompt names.
        thing: the nearest thing of the memory.
        score: their similarity, at most 1.
        same_above: the least similarity at which they are the same thing.
        unknown_below: a lower score means that the memory has nothing like it; None: not stated.
        originals: with "found", the documents of the thing in the hand, best first.
        near: the nearest names of the index, with their similarities, best first.
        respelt: words of the prompt, each with the word that was searched for instead.
        ignored: style words of the prompt that no document has, and that are left out.
        missing: words of a style or a set that no document has.
        apart: style words of the prompt that documents have, but none has all of them.
        knows_a_word: whether the index has a word of `asked`.
    """

    kind: Kind
    asked: str
    thing: str
    score: float
    same_above: float
    unknown_below: float | None = None
    originals: tuple[Retrieved, ...] = ()
    near: tuple[tuple[str, float], ...] = ()
    respelt: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    knows_a_word: bool = True

    @property
    def is_arbitrary(self) -> bool:
        """Whether a picture for the prompt would be an arbitrary one: no word of it is in the index."""
        return self.kind == "composed" and not self.knows_a_word

    @property
    def offers(self) -> tuple[str, ...]:
        """The names of the index that may be what was meant: none if it has the thing, or nothing like it."""
        least = -1.0 if self.unknown_below is None else self.unknown_below
        if self.kind != "composed":
            return ()
        return tuple(name for name, score in self.near if score >= least)

    @property
    def nearest_in_words(self) -> str:
        """Which names the index has in place of the one that was asked for; "it" is the index."""
        if self.offers:
            near = self.near[: len(self.offers)]
            names = ", ".join(f"{name!r} (similarity {score:.2f})" for name, score in near)
            return f"it has no {self.asked!r}, did you mean {names}?"
        means = (
            "" if self.unknown_below is None else f"; below {self.unknown_below:g} it means little"
        )
        return f"it has nothing like {self.asked!r}; the nearest is {self.thing!r}, similarity {self.score:.2f}{means}"

    @property
    def remarks(self) -> str:
        """How the prompt was read, where that is not as it was typed; "": as it was typed."""
        said = [f"{typed!r} is read as {meant!r}" for typed, meant in self.respelt]
        for words, end in ((self.missing, ""), (self.ignored, ", which is left out")):
            if words:
                said.append(f"no style or set is called {' or '.join(map(repr, words))}{end}")
        if self.apart:
            said.append(f"no style or set has {' and '.join(map(repr, self.apart))} together")
        return "; ".join(said)

    @property
    def is_unknown(self) -> bool:
        """Whether the memory has nothing like it."""
        return self.unknown_below is not None and self.score < self.unknown_below


@dataclass(kw_only=True)
class AnsweringRetrieverConfig(RetrieverConfig):
    """Base of the configs of retrievers that answer prompts."""

    #: Keys that change nothing in training: a run can be resumed with other values.
    only_in_generation: ClassVar[tuple[str, ...]] = ()

    @property
    def answers(self) -> bool:
        """Whether prompts are answered (`Answer`), so that some are found instead of drawn."""
        return True

    def avoids(self, style: str) -> bool:
        """Return whether documents of this style are used only if a prompt asks for it. By default False."""
        return False


class AnsweringRetriever(Retriever):
    """A retriever that can tell whether its memory has the thing that a prompt names, and in the hand that it names.

    For prompts, `answer` is called instead of `retrieve`; it may also search in another way than in training.
    """

    @property
    def answers(self) -> bool:
        """Return whether to call `answer` for prompts."""
        return True

    def likeness(self, texts: Sequence[str], others: Sequence[str]) -> VectorArray | None:
        """Return how similar N texts are to M others in meaning, at most 1, float32 [N, M]; None, the default: it compares
        no meanings."""
        return None

    @abstractmethod
    def _answer(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[tuple[list[Retrieved], Answer | None]]:
        """See `answer`."""

    def answer(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[tuple[list[Retrieved], Answer | None]]:
        """Return each query's results, as `retrieve` does, and what the memory has for it. None: it can't tell, such as
        for a query without text.

        Raises:
            PluginError: `_answer` returned an invalid result.
        """
        banned = [frozenset(names) for names in exclude]
        answered = self._answer(queries, num_retrieved, banned)
        if not isinstance(answered, list) or len(answered) != len(queries):
            cause = f"it answered {shown(answered)} to {len(queries)} queries"
            raise broken(self, "a_batch_is_its_queries", cause)
        for (results, answer), names in zip(answered, banned, strict=True):
            self._check_found(results, num_retrieved, names)
            originals = [] if answer is None else list(answer.originals)
            self._check_found(originals, len(originals), names)
        return answered


@dataclass(frozen=True)
class Asked:
    """A prompt to search the memory for.

    Args:
        query: the prompt's texts and pictures; not empty.
        number: the number of documents wanted, 1 or more.
        margin: the recipe's `retriever.alternative_margin`.
        known: words of the training texts, lower case; None: unknown.
        text_of: returns the text of a retrieved document; "" if it can't be read. Reading may be slow, so read
            few documents.
    """

    query: Document
    number: int
    margin: float
    known: Collection[str] | None
    text_of: Callable[[Retrieved], str]


@dataclass(frozen=True)
class Found:
    """The search results for a prompt.

    Args:
        results: best first.
        query: the query text. It is shown to users if it differs from the prompt.
        subject: the part of the query that names the object to draw.
        answer: what the memory has for it; None: the retriever does not tell.
    """

    results: list[Retrieved]
    query: str = ""
    subject: str = ""
    answer: Answer | None = None


#: Yields (query, number of results), receives the results, and returns what was found.
Searching: TypeAlias = Generator[tuple[Document, int], list[Retrieved], Found]


@dataclass(kw_only=True)
class PromptRewriterConfig(ComponentConfig):
    """Base of prompt rewriters' configs."""

    kind: ClassVar[str] = "prompt_rewriter"

    def build(self) -> PromptRewriter:
        """Return the rewriter."""
        raise NotImplementedError  # each rewriter's and finisher's own


class PromptRewriter(ABC):
    """Decides the search query for a prompt, and which results are used. The prompt itself is never changed.

    Most rewriters only need `rewrite`. Override `search` to try several queries.
    """

    def rewrite(self, prompt: str, known: Collection[str] | None = None) -> str:
        """Return the search query for a prompt.

        Args:
            prompt: any text.
            known: see `Asked`.

        Raises:
            PluginError: `_rewrite` did not return a text, or returned an empty one.
        """
        text = self._rewrite(prompt, known)
        if not isinstance(text, str):
            raise broken(self, "a_prompt_stays_a_text", f"it rewrote a prompt to {shown(text)}")
        if prompt.strip() and not text.strip():
            raise broken(self, "a_prompt_stays_a_text", f"it left nothing of the prompt {prompt!r}")
        return text

    @abstractmethod
    def _rewrite(self, prompt: str, known: Collection[str] | None) -> str:
        """See `rewrite`."""

    def subject(self, text: str) -> str:
        """Return the part of a text that names the object to draw; the rest is style. By default the text before the
        first comma."""
        return text.split(",")[0]

    def search(self, asked: Asked) -> Searching:
        """Search the memory for a prompt; searches of several prompts run together. By default a single search for the
        rewritten texts."""
        query = with_texts(asked.query, lambda text: self.rewrite(text, asked.known))
        results = yield query, asked.number
        return Found(results, text_of(query), self.subject(text_of(query)))

    @property
    def spare(self) -> int:
        """Return how many more documents than needed `Asked.number` requests, for rewriters that demote some. By
        default 0."""
        return 0

    def turns(self, found: Found, asked: Asked) -> list[int]:
        """Return the positions of the results that may be prepended first: several pictures of a prompt take turns
        with them (`retriever.num_alternatives`). By default those whose scores are close to the best."""
        best = best_of(found.results)
        return [
            place for place, one in enumerate(found.results) if is_near(one, best, asked.margin)
        ]

    def avoids(self, text: str) -> bool:
        """Return whether documents with this text are used only if the prompt asks for them. By default False."""
        return False


class AsItStands(PromptRewriter):
    """Searches for the prompt itself; the default without a section `prompt_rewriter`."""

    def _rewrite(self, prompt: str, known: Collection[str] | None) -> str:
        return prompt


def with_texts(query: Document, change: Callable[[str], str]) -> Document:
    """Return the query with its texts changed."""
    return tuple(
        replace(part, text=change(part.text)) if isinstance(part, Text) else part for part in query
    )


def best_of(results: Sequence[Retrieved]) -> Retrieved:
    """Return the highest-scoring result among those found in the same way as the first."""
    return max((one for one in results if _alike(one, results[0])), key=lambda one: one.score)


def is_near(one: Retrieved, best: Retrieved, margin: float) -> bool:
    """Return whether a result's score is below the best one's by at most the fraction `margin` of it."""
    return _alike(one, best) and best.score - one.score <= margin * abs(best.score)


def _alike(one: Retrieved, other: Retrieved) -> bool:
    return (one.found_by, one.preferred) == (other.found_by, other.preferred)


@dataclass(kw_only=True)
class FinisherConfig(ComponentConfig):
    """Base of finishers' configs."""

    kind: ClassVar[str] = "finisher"

    def build(self) -> Finisher:
        """Return the finisher."""
        raise NotImplementedError  # each rewriter's and finisher's own


class Finisher(ABC):
    """Decides how a generated picture is shown. Rerankers see finished pictures; the codes are not changed."""

    def finish(
        self, pixels: PixelArray, texts: Sequence[str], pictures: Sequence[PixelArray]
    ) -> PixelArray:
        """Return a generated picture as it is shown.

        Args:
            pixels: uint8 [height, width, 3], as decoded; not changed.
            texts: the texts of its prompt.
            pictures: uint8 [height, width, 3] of any size: pictures that were retrieved for it, edited or inpainted.

        Raises:
            PluginError: `_finish` did not return a picture of this size.
        """
        return self._checked(self._finish(pixels, texts, pictures), pixels)

    def finish_decoded(self, pixels: PixelArray) -> PixelArray:
        """Return a picture given only by its codes, such as one of a memory bank, as it is shown.

        Raises:
            PluginError: `_finish_decoded` did not return a picture of this size.
        """
        return self._checked(self._finish_decoded(pixels), pixels)

    def svg(self, pixels: PixelArray, enlarged: int = 1) -> str | None:
        """Return a picture as SVG, for `--svg`. By default None: it is then traced in a few colours.

        Args:
            pixels: uint8 [height, width, 3].
            enlarged: the factor by which an upscaler enlarged it.
        """
        return None

    @abstractmethod
    def _finish(
        self, pixels: PixelArray, texts: Sequence[str], pictures: Sequence[PixelArray]
    ) -> PixelArray:
        """See `finish`."""

    def _finish_decoded(self, pixels: PixelArray) -> PixelArray:
        """See `finish_decoded`; by default the picture unchanged."""
        return pixels

    def _checked(self, finished: PixelArray, pixels: PixelArray) -> PixelArray:
        if not is_array(finished, np.uint8, pixels.shape):
            raise broken(
                self,
                "pictures_keep_their_size",
                f"it made {shown(finished)} of {shown(pixels)}",
            )
        return finished


class AsDecoded(Finisher):
    """Shows pictures as decoded; the default without a section `finisher`."""

    def _finish(
        self, pixels: PixelArray, texts: Sequence[str], pictures: Sequence[PixelArray]
    ) -> PixelArray:
        return pixels
