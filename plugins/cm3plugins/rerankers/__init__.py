"""Configs of the bundled rerankers. `build` imports the implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cm3core.interfaces.reranker import Reranker, RerankerConfig

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.reranker import Likelihood


@dataclass(kw_only=True)
class ClipRerankerConfig(RerankerConfig):
    """Cosine similarity of a candidate's text and pictures under the recipe's embedder.

    This is the paper's protocol if the embedder is CLIP. Scores generated pictures against their prompt, or
    a generated text against the pictures that it was generated for; several pictures are averaged.
    Costs one embedding per picture and text. It can only distinguish what the embedder was
    trained on.

    Args:
        with_retrieved: compare with the pictures of the retrieved documents, too; the mean counts each as much as the
            text. Helps where the embedder knows pictures better than words. Near copies of a document come last in
            any case (`cm3run.model.candidates`).
    """

    needs: ClassVar[tuple[str, ...]] = ("embedder",)
    later_keys: ClassVar[tuple[str, ...]] = ("with_retrieved",)

    with_retrieved: bool = False

    def build(self, *, embedder: Embedder | None, likelihood: Likelihood) -> Reranker:
        """Return the reranker; `likelihood` is not used."""
        from cm3plugins.rerankers.cosine import CosineReranker

        assert embedder is not None  # guaranteed by `needs`
        return CosineReranker(embedder, with_retrieved=self.with_retrieved)


@dataclass(kw_only=True)
class LikelihoodRerankerConfig(RerankerConfig):
    """log p(text | everything else) under the model itself, from infilling the text.

    For a generated picture, the prompt is masked and infilled after the picture, as a caption. For
    a generated text, that text is scored next to its pictures. Needs no other model. Costs one
    forward of the decoder over the prompt and text of each candidate, batched.

    Args:
        normalise: take the mean over the text's tokens (minus the logarithm of the perplexity)
            instead of their sum, which prefers short texts. If all candidates have the same
            text, the order is the same.
        with_retrieved: keep the retrieved documents prepended. They reveal the text that the model should
            read from the picture, and make the forward pass longer; turn it on for texts whose form only the
            retrieved documents show.
    """

    normalise: bool = True
    with_retrieved: bool = False

    @property
    def hides_texts(self) -> bool:
        """Always."""
        return True

    def requires(self) -> tuple[str, ...]:
        """Texts before pictures are filled in again."""
        return ("holes",)

    def build(self, *, embedder: Embedder | None, likelihood: Likelihood) -> Reranker:
        """Return the reranker; `embedder` is not used."""
        from cm3plugins.rerankers.model_scores import LikelihoodReranker

        return LikelihoodReranker(
            likelihood, normalise=self.normalise, with_retrieved=self.with_retrieved
        )


@dataclass(kw_only=True)
class PMIRerankerConfig(RerankerConfig):
    """Pointwise mutual information of text and pictures under the model itself, in nats.

    Both directions are equal for exact probabilities, but not for a model's. Either way, common
    texts or pictures (a text that fits all pictures, a picture generated for every prompt) gain nothing.
    Needs no other model. Choose by "text": "image" is the difference of two sums over hundreds of
    codes, and with the bundled model it is largest for broken pictures.

    Args:
        direction: "text": log p(text | pictures) - log p(text), of the generated texts, or of all texts if
            none was generated. For pictures of one prompt the second term is constant, so the order is
            that of `likelihood`. Costs as much as `likelihood`, plus a short forward pass without pictures.
            "image": log p(pictures | text) - log p(pictures | mask in place of the text), of the
            generated pictures, or of all. Costs two forward passes over text and pictures.
        with_retrieved: keep the retrieved documents prepended, in both terms.
    """

    direction: Literal["text", "image"] = "text"
    with_retrieved: bool = False

    @property
    def hides_texts(self) -> bool:
        """By direction."""
        return self.direction == "text"

    def requires(self) -> tuple[str, ...]:
        """Texts and pictures are filled in again, wherever they are."""
        return ("holes",)

    def build(self, *, embedder: Embedder | None, likelihood: Likelihood) -> Reranker:
        """Return the reranker; `embedder` is not used."""
        from cm3plugins.rerankers.model_scores import ImagePMIReranker, TextPMIReranker

        reranker = TextPMIReranker if self.direction == "text" else ImagePMIReranker
        return reranker(likelihood, with_retrieved=self.with_retrieved)
