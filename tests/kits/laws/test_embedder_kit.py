"""The embedders' kit: a right embedder passes, and each law fails for one that is wrong in just
that way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cm3core.document import Document, Image, PixelArray, text_of
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3kits.embedder import EmbedderContract
from cm3kits.samples import HashEmbedder
from kit_mutants import assert_covers, assert_law_fails, cases


class TestRight(EmbedderContract):
    def make(self) -> Embedder:
        return HashEmbedder()


class AgainstTheMean(HashEmbedder):
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        vectors = super()._embed_texts(texts)
        return vectors - vectors.mean(axis=0) * (len(texts) > 1)


class WordsAloneCount(HashEmbedder):
    def embed_documents(self, documents: Sequence[Document]) -> VectorArray:
        return np.concatenate(
            [
                self.embed_texts([text_of(one)])
                if text_of(one)
                else super(WordsAloneCount, self).embed_documents([one])
                for one in documents
            ]
        )


class PicturesCountTwice(HashEmbedder):
    def embed_documents(self, documents: Sequence[Document]) -> VectorArray:
        parts = [
            [self.embed_texts([text_of(one)])] * bool(text_of(one))
            + [2 * self.embed_images([part.load()]) for part in one if isinstance(part, Image)]
            for one in documents
        ]
        return normalise(np.concatenate([np.sum(many, axis=0) for many in parts]))


class EmptyIsTheOrigin(HashEmbedder):
    def embed_documents(self, documents: Sequence[Document]) -> VectorArray:
        return np.stack(
            [
                super(EmptyIsTheOrigin, self).embed_documents([one])[0]
                if one
                else np.zeros(8, np.float32)
                for one in documents
            ]
        )


class WordsAreAlike(HashEmbedder):
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return np.ones((len(texts), 8), np.float32)


class PicturesAreAlike(HashEmbedder):
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return np.ones((len(images), 8), np.float32)


class DrawnAnew(HashEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.salt = np.random.default_rng().standard_normal(8).astype(np.float32)

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return super()._embed_texts(texts) + self.salt


class Nameless(HashEmbedder):
    fingerprint = ""


class SortsTexts(HashEmbedder):
    def _embed_texts(self, texts: list[str]) -> VectorArray:  # type: ignore[override]  # wrong on purpose
        vectors = super()._embed_texts(texts)
        texts.sort()
        return vectors


class WritesOnPictures(HashEmbedder):
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        vectors = super()._embed_images(images)
        for image in images:
            if image.flags.writeable:
                image[:] = 255 - image
        return vectors


class AtLeastOne(HashEmbedder):
    def embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return super().embed_texts(texts or [""])


class NotNormalised(HashEmbedder):
    def embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return 2 * super().embed_texts(texts)


class Doubles(HashEmbedder):
    def embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return super().embed_images(images).astype(np.float64)  # type: ignore[return-value]  # wrong on purpose


class DimensionOffByOne(HashEmbedder):
    dimension = 9


class EmptyTextIsNoNumber(HashEmbedder):
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return np.stack(
            [self._vector(text.encode()) / np.float32(len(text) > 0 or np.nan) for text in texts]
        )


class TakesAnything(HashEmbedder):
    def embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return super().embed_images([np.zeros((4, 4, 3), np.uint8) for _ in images])


class RefusesTheFirst(HashEmbedder):
    def embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return super().embed_images(images[::-1])[::-1]


MUTANTS = {
    "a_batch_is_its_items": [AgainstTheMean],
    "a_document_is_the_mean_of_its_parts": [WordsAloneCount, PicturesCountTwice],
    "an_empty_document_is_refused": [EmptyIsTheOrigin],
    "different_things_have_different_vectors": [WordsAreAlike, PicturesAreAlike],
    "equal_makes_are_equal": [DrawnAnew, Nameless],
    "inputs_are_not_written_to": [SortsTexts, WritesOnPictures],
    "nothing_gives_no_rows": [AtLeastOne],
    "vectors_are_finite_unit_float32": [
        NotNormalised,
        Doubles,
        DimensionOffByOne,
        EmptyTextIsNoNumber,
    ],
    "what_is_no_picture_is_refused": [TakesAnything, RefusesTheFirst],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_embedder_fails(law: str, wrong: type[HashEmbedder]) -> None:
    assert_law_fails(EmbedderContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(EmbedderContract, MUTANTS)
