"""Two small component kinds around generation: `prompt_rewriter` decides the search query for a prompt, `finisher` how
a generated picture is shown.

A recipe without them searches for the prompt itself and shows pictures as decoded. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from cm3core.document import Document, Text, text_of
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.interfaces.retriever import Retrieved


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
    """

    results: list[Retrieved]
    query: str = ""
    subject: str = ""


#: Yields (query, number of results), receives the results, and returns what was found.
Searching: TypeAlias = Generator[tuple[Document, int], "list[Retrieved]", Found]


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
