"""`likelihood` and `pmi`: scores of a candidate under the model itself, by teacher forcing.

See `cm3run.generation.likelihood`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole, has_holes
from cm3core.errors import GenerationError
from cm3core.interfaces.reranker import Candidate, Likelihood, LogProbability, Reranker
from cm3core.interfaces.sampler import PromptVariant


class _ModelReranker(Reranker):
    """Base of the three rerankers: log p of a candidate's texts or pictures as contents of holes."""

    def __init__(self, likelihood: Likelihood, *, with_retrieved: bool) -> None:
        self.likelihood, self.with_retrieved = likelihood, with_retrieved

    def _texts_as_holes(self, candidates: Sequence[Candidate]) -> list[Document]:
        """Return the candidates with texts as holes.

        Generated texts are the holes of the request. If only pictures were generated, every text becomes
        a hole.
        """
        return [
            tuple(
                filled if isinstance(filled, Codes) else asked
                for asked, filled in zip(one.request, one.document, strict=True)
            )
            if _has_text_hole(one.request)
            else tuple(
                self._text_hole(segment) if isinstance(segment, Text) and segment.text else segment
                for segment in one.document
            )
            for one in candidates
        ]

    def _text_hole(self, text: Text) -> TextHole:
        """Make a hole as for captions: the end is forced at the length to which texts are truncated."""
        limit = self.likelihood.max_text_tokens
        return TextHole(self.likelihood.num_text_tokens(text.text) + 1 if limit is None else limit)

    def _ask(
        self,
        candidates: Sequence[Candidate],
        documents: Sequence[Document],
        *,
        without_pictures: bool = False,
        variant: PromptVariant | None = None,
    ) -> list[LogProbability]:
        """Return log p of the contents of each candidate's holes."""
        contents = [
            self.likelihood.contents_of(document, one.document)
            for document, one in zip(documents, candidates, strict=True)
        ]
        # not masked: training never masks text and picture together
        if without_pictures:
            documents = [
                tuple(segment for segment in document if not isinstance(segment, Codes))
                for document in documents
            ]
        retrieved = [one.retrieved if self.with_retrieved else () for one in candidates]
        return self.likelihood.log_probability(
            documents, contents, retrieved=retrieved, variant=variant
        )


class LikelihoodReranker(_ModelReranker):
    """log p(text | everything else); see `LikelihoodRerankerConfig`."""

    def __init__(self, likelihood: Likelihood, *, normalise: bool, with_retrieved: bool) -> None:
        super().__init__(likelihood, with_retrieved=with_retrieved)
        self.normalise = normalise

    @property
    def measure(self) -> str:
        """Name of the measure, with its unit."""
        return f"log p(text | picture), {'nats a token' if self.normalise else 'nats'}"

    def _score(self, candidates: Sequence[Candidate]) -> list[float]:
        _require(candidates, pictures=False)
        asked = self._ask(candidates, self._texts_as_holes(candidates))
        return [one.per_token if self.normalise else one.nats for one in asked]


class TextPMIReranker(_ModelReranker):
    """log p(text | pictures) - log p(text); see `PMIRerankerConfig`."""

    @property
    def measure(self) -> str:
        """Name of the measure, with its unit."""
        return "log p(text | picture) - log p(text), nats"

    def _score(self, candidates: Sequence[Candidate]) -> list[float]:
        _require(candidates, pictures=True)
        documents = self._texts_as_holes(candidates)
        beside, alone = (
            self._ask(candidates, documents),
            self._ask(candidates, documents, without_pictures=True),
        )
        return [one.nats - other.nats for one, other in zip(beside, alone, strict=True)]


class ImagePMIReranker(_ModelReranker):
    """log p(pictures | text) - log p(pictures | mask); see `PMIRerankerConfig`."""

    @property
    def measure(self) -> str:
        """Name of the measure, with its unit."""
        return "log p(picture | text) - log p(picture), nats"

    def _score(self, candidates: Sequence[Candidate]) -> list[float]:
        _require(candidates, pictures=True)
        documents: list[Document] = [
            tuple(
                asked if isinstance(filled, Codes) else filled
                for asked, filled in zip(one.request, one.document, strict=True)
            )
            if one.drawn
            else tuple(
                ImageHole() if isinstance(segment, Codes) else segment for segment in one.document
            )
            for one in candidates
        ]
        told = self._ask(candidates, documents)
        untold = self._ask(candidates, documents, variant=PromptVariant(hide_text="all"))
        return [one.nats - other.nats for one, other in zip(told, untold, strict=True)]


def _has_text_hole(document: Document) -> bool:
    return any(
        isinstance(segment, (TextHole, MaskedText)) and has_holes([segment]) for segment in document
    )


def _require(candidates: Sequence[Candidate], *, pictures: bool) -> None:
    """Reject candidates without a text and, if `pictures` are needed, those without a picture."""
    for index, one in enumerate(candidates):
        if not one.texts:
            raise GenerationError(
                f"candidate {index}",
                "has no text to score",
                "give the request a text, or use a reranker that needs no text",
            )
        if pictures and not (one.drawn or one.given):
            raise GenerationError(
                f"candidate {index}",
                "has no picture to score its text against",
                "use the reranker 'likelihood' for texts without pictures",
            )
