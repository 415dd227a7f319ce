"""`clip`: cosine similarity of text and pictures under any embedder.

Source: CM3leon paper, Table 1 (8 candidates, CLIP). Retrieved documents as what to compare with are our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cm3core.document import Codes, Document, PixelArray
from cm3core.errors import GenerationError
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reranker import Candidate, Reranker


class CosineReranker(Reranker):
    """Mean cosine of a candidate's pictures to its text and, on request, to the pictures of its documents.

    Uses the generated pictures, or the given ones if only text was generated.
    """

    def __init__(self, embedder: Embedder, *, with_retrieved: bool = False) -> None:
        self.embedder, self.with_retrieved = embedder, with_retrieved

    @property
    def measure(self) -> str:
        """Name of the measure. It contains the embedder: only with CLIP is the cosine a CLIP score."""
        name = f"cosine similarity of {type(self.embedder).__name__}"
        return f"{name}, to text and documents" if self.with_retrieved else name

    def _score(self, candidates: Sequence[Candidate]) -> list[float]:
        texts: dict[str, int] = {}
        # decode and embed a picture once if all candidates share it
        pictures: dict[bytes, PixelArray] = {}
        compared: list[tuple[int, list[bytes], list[bytes]]] = []
        for index, one in enumerate(candidates):
            own = _judged(index, one)
            if one.drawn:
                pictures |= dict(zip((_key(codes) for codes in own), one.pixels, strict=True))
            beside = _pictures_of(one.retrieved) if self.with_retrieved else []
            for codes in (*own, *beside):
                if _key(codes) not in pictures:
                    pictures[_key(codes)] = one.decode(codes)
            text = texts.setdefault("\n".join(one.texts), len(texts))
            compared.append(
                (text, [_key(codes) for codes in own], [_key(codes) for codes in beside])
            )
        row_of = {key: row for row, key in enumerate(pictures)}
        vectors_ND = self.embedder.embed_images(list(pictures.values()))
        texts_MD = self.embedder.embed_texts(list(texts))
        scores = []
        for text, keys, others in compared:
            targets_KD = np.concatenate(
                [texts_MD[[text]], vectors_ND[[row_of[key] for key in others]]]
            )
            scores.append(float((vectors_ND[[row_of[key] for key in keys]] @ targets_KD.T).mean()))
        return scores


def _judged(index: int, candidate: Candidate) -> tuple[Codes, ...]:
    """The pictures that are compared; rejects a candidate without a text or without any."""
    if not candidate.texts:
        raise GenerationError(
            f"candidate {index}",
            "has no text to compare its pictures with",
            "give the request a text, or use a reranker that needs no text",
        )
    if not (codes := candidate.drawn or candidate.given):
        raise GenerationError(
            f"candidate {index}",
            "has no picture to compare its text with",
            "use the reranker 'likelihood' for texts without pictures",
        )
    return codes


def _pictures_of(documents: Sequence[Document]) -> list[Codes]:
    """The pictures of documents, in order."""
    return [segment for one in documents for segment in one if isinstance(segment, Codes)]


def _key(codes: Codes) -> bytes:
    return codes.codes.tobytes()
