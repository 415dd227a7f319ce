"""Kind `reranker`: completions of one request -> a score each, to choose the best.

Sources: CM3leon paper, Table 1 (8 candidates, the best by CLIP); RA-CM3 (captions by perplexity).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from cm3core.document import Codes, Document, IntArray, PixelArray, Text, has_holes
from cm3core.errors import CM3Error, GenerationError
from cm3core.interfaces.component import ComponentConfig

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.sampler import PromptVariant


@dataclass(frozen=True, eq=False)
class Candidate:
    """One completion of a request.

    Args:
        request: the document with its holes, pictures as `Codes`.
        document: the same document, each hole filled by `Text` or `Codes`.
        decode: turns `Codes` into pixels, uint8 [height, width, 3].
        retrieved: the documents that were prepended to the request.
        log_probability, num_tokens: see `cm3run.generation.engine.Completion`.
        seed: the completion's seed.
    """

    request: Document
    document: Document
    decode: Callable[[Codes], PixelArray] = field(repr=False)
    retrieved: tuple[Document, ...] = ()
    log_probability: float = 0.0
    num_tokens: int = 0
    seed: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """The filled document's non-empty texts, given and generated, in order."""
        return tuple(
            segment.text for segment in self.document if isinstance(segment, Text) and segment.text
        )

    @property
    def drawn(self) -> tuple[Codes, ...]:
        """The filled document's pictures that were generated, whole or in part, in order.

        One for each segment that asked for one."""
        return tuple(
            filled
            for asked, filled in zip(self.request, self.document, strict=True)
            if isinstance(filled, Codes) and has_holes([asked])
        )

    @property
    def given(self) -> tuple[Codes, ...]:
        """The document's pictures that were given in the request, in order."""
        return tuple(
            filled
            for asked, filled in zip(self.request, self.document, strict=True)
            if isinstance(filled, Codes) and not has_holes([asked])
        )

    @cached_property
    def pixels(self) -> tuple[PixelArray, ...]:
        """The pictures of `drawn`, uint8 [height, width, 3] each, decoded on first use."""
        return tuple(self.decode(codes) for codes in self.drawn)


class LogProbability(NamedTuple):
    """Natural-log probability (`nats`) summed over the tokens with a choice, and their number."""

    nats: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats per token: minus the logarithm of the perplexity."""
        return self.nats / self.num_tokens


class Likelihood(Protocol):
    """Computes the likelihood of given contents of holes under the model.

    `cm3run.generation.Likelihood` implements it."""

    @property
    def max_text_tokens(self) -> int | None:
        """Each text of a prompt is cut to this many tokens, as in training. None: never."""

    def log_probability(
        self,
        documents: Sequence[Document],
        contents: Sequence[Sequence[IntArray]],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        variant: PromptVariant | None = None,
    ) -> list[LogProbability]:
        """Return log p(contents | rest of the document) for each document, in order.

        Args:
            documents: at least one hole each, pictures as `Codes`.
            contents: each document's hole contents in order, as `contents_of` returns them. A text
                shorter than its hole's `max_tokens` ends there, and the end token counts; for a
                hole without a limit it always counts.
            retrieved: the documents prepended to each document. None: none.
            variant: which parts of the prompts are visible. None: all.
        """

    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """Return the contents, int32, of each hole of `document`, in order.

        `filled` is the same document with its holes filled."""

    def num_text_tokens(self, text: str) -> int:
        """Return the number of tokens in a text."""


@dataclass(kw_only=True)
class RerankerConfig(ComponentConfig):
    """Base of rerankers' configs."""

    kind: ClassVar[str] = "reranker"

    @property
    def hides_texts(self) -> bool:
        """Whether it hides all texts of a document at once, to score what the model fills in. By default not."""
        return False

    def build(self, *, embedder: Embedder | None, likelihood: Likelihood) -> Reranker:
        """Return the reranker.

        `embedder` is the recipe's, None if it has none; `likelihood` queries the model itself."""
        raise NotImplementedError


class Reranker(ABC):
    """Scores the candidates of one request; higher is better."""

    @property
    @abstractmethod
    def measure(self) -> str:
        """The name of what a score measures, as shown to users, e.g. "cosine similarity of HashEmbedder".

        It must be accurate: CLIP means CLIP."""

    @abstractmethod
    def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Return a finite score for each candidate, in order; each may depend only on its candidate.

        There is at least one candidate.

        Raises:
            GenerationError: a candidate contains nothing that can be scored.
        """

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score for each candidate, in order; all belong to one request.

        Raises:
            GenerationError: the reranker failed, or did not return a finite number for each
                candidate.
            CM3Error: raised by the reranker itself; its place is prefixed with the reranker's name.
        """
        assert all(candidate.request == candidates[0].request for candidate in candidates), (
            "candidates are of one request"
        )
        if not candidates:
            return []
        place = f"reranker ({self.measure})"
        try:
            scores = list(self._score(candidates))
        except CM3Error as error:
            raise type(error)(f"{place}, {error.place}", error.cause, error.next_step) from error
        except Exception as error:
            # a plugin may raise anything, but only this request may fail
            raise GenerationError(
                place,
                f"failed with {type(error).__name__}: {error}",
                "correct it, or leave the section 'reranker' out of the recipe",
            ) from error
        if len(scores) != len(candidates):
            raise GenerationError(
                place,
                f"returned {len(scores)} scores for {len(candidates)} candidates",
                "correct its _score: one number for each candidate, in order",
            )
        for index, score in enumerate(scores):
            if not _is_finite(score):
                raise GenerationError(
                    place,
                    f"returned {score!r} for candidate {index}",
                    "correct its _score: only finite numbers",
                )
        return [float(score) for score in scores]


def _is_finite(score: object) -> bool:
    try:
        return math.isfinite(score)  # type: ignore[arg-type]  # whatever a plugin gave; numpy's numbers are welcome
    except (TypeError, ValueError, OverflowError):
        return False
