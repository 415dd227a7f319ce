"""`clip`: cosine similarity of text and pictures under any embedder.

Source: CM3leon paper, Table 1 (8 candidates, CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence

from cm3core.document import PixelArray
from cm3core.errors import GenerationError
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reranker import Candidate, Reranker


class CosineReranker(Reranker):
    """Mean cosine of a candidate's text and its pictures.

    Uses the generated pictures, or the given ones if only text was generated.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    @property
    def measure(self) -> str:
        """Name of the measure. It contains the embedder: only with CLIP is the cosine a CLIP score."""
        return f"cosine similarity of {type(self.embedder).__name__}"

    def _score(self, candidates: Sequence[Candidate]) -> list[float]:
        texts: dict[str, int] = {}
        # decode and embed a picture once if all candidates share it
        pictures: dict[bytes, PixelArray] = {}
        pairs: list[tuple[int, list[bytes]]] = []
        for index, one in enumerate(candidates):
            if not one.texts:
                raise GenerationError(
                    f"candidate {index}",
                    "has no text to compare its pictures with",
                    "give the request a text, or use a reranker that needs no text",
                )
            codes = one.drawn or one.given
            if not codes:
                raise GenerationError(
                    f"candidate {index}",
                    "has no picture to compare its text with",
                    "use the reranker 'likelihood' for texts without pictures",
                )
            keys = [own.codes.tobytes() for own in codes]
            for place, (key, own) in enumerate(zip(keys, codes, strict=True)):
                if key not in pictures:
                    pictures[key] = one.pixels[place] if one.drawn else one.decode(own)
            pairs.append((texts.setdefault("\n".join(one.texts), len(texts)), keys))
        similarity = (
            self.embedder.embed_texts(list(texts))
            @ self.embedder.embed_images(list(pictures.values())).T
        )
        place_of = {key: place for place, key in enumerate(pictures)}
        return [
            float(similarity[text, [place_of[key] for key in keys]].mean()) for text, keys in pairs
        ]
