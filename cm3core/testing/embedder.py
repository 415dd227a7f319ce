"""Conformance kit of embedders.

class TestMine(EmbedderContract):
    config = MyEmbedderConfig()
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Document, Image, PixelArray, Text
from cm3core.errors import DataError
from cm3core.interfaces.embedder import Embedder, normalise
from cm3core.testing._laws import Contract
from cm3core.testing.strategies import pictures, texts

_TOLERANCE = 1e-4


def _texts(max_num: int = 6) -> st.SearchStrategy[list[str]]:
    """Lists of short texts in any script, including empty ones and ones without words."""
    return st.lists(
        st.sampled_from(["red apple, noto style", "a dog", "", "...", "été 猫"])
        | texts(max_size=30),
        min_size=1,
        max_size=max_num,
    )


def _pictures(max_num: int) -> st.SearchStrategy[list[PixelArray]]:
    """Pictures of up to 90 pixels per side, each of a different size."""
    return st.lists(pictures(max_side=90), min_size=1, max_size=max_num)


class EmbedderContract(Contract[Embedder]):
    """Laws of an embedder."""

    kind: ClassVar[str] = "embedder"
    max_examples: ClassVar[int | None] = 15

    def build(self, config: Any) -> Embedder:
        """See `EmbedderConfig.build`."""
        embedder: Embedder = config.build()
        return embedder

    def law_vectors_are_finite_unit_float32(self, data: st.DataObject) -> None:
        """Vectors are float32 [N, dimension], finite and of length 1."""
        many_texts, many_pictures = data.draw(_texts()), data.draw(_pictures(3))
        for vectors, count in (
            (self.subject.embed_texts(many_texts), len(many_texts)),
            (self.subject.embed_images(many_pictures), len(many_pictures)),
            (self.subject.embed_looks(many_pictures), len(many_pictures)),
        ):
            assert vectors.dtype == np.float32
            assert vectors.shape == (count, self.subject.dimension)
            assert np.isfinite(vectors).all()
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=_TOLERANCE)

    def law_nothing_gives_no_rows(self) -> None:
        """No texts, no pictures, no documents: shape [0, dimension]."""
        for vectors in (
            self.subject.embed_texts([]),
            self.subject.embed_images([]),
            self.subject.embed_documents([]),
        ):
            assert vectors.shape == (0, self.subject.dimension)

    def law_a_batch_is_its_items(self, data: st.DataObject) -> None:
        """An item's vector does not depend on what else is in the batch."""
        many_texts, many_pictures = data.draw(_texts()), data.draw(_pictures(4))
        np.testing.assert_allclose(
            self.subject.embed_texts(many_texts),
            np.concatenate([self.subject.embed_texts([text]) for text in many_texts]),
            atol=_TOLERANCE,
        )
        np.testing.assert_allclose(
            self.subject.embed_images(many_pictures),
            np.concatenate([self.subject.embed_images([one]) for one in many_pictures]),
            atol=_TOLERANCE,
        )
        np.testing.assert_allclose(
            self.subject.embed_looks(many_pictures),
            np.concatenate([self.subject.embed_looks([one]) for one in many_pictures]),
            atol=_TOLERANCE,
        )

    def law_a_document_is_the_mean_of_its_parts(self, data: st.DataObject) -> None:
        """Text and picture vectors are normalised, averaged, normalised; a single one is kept."""
        text, picture = (
            data.draw(st.sampled_from(["red apple", "a dog, noto style"])),
            data.draw(pictures(max_side=90)),
        )
        image = Image("test", lambda: picture)
        text_part, image_part = (
            self.subject.embed_texts([text])[0],
            self.subject.embed_images([picture])[0],
        )
        documents: list[Document] = [(Text(text),), (image,), (Text(text), image)]
        expected = [text_part, image_part, normalise((text_part + image_part)[None] / 2)[0]]
        np.testing.assert_allclose(
            self.subject.embed_documents(documents), expected, atol=_TOLERANCE
        )
        np.testing.assert_allclose(
            self.subject.embed_document(documents[2]), expected[2], atol=_TOLERANCE
        )

    def law_an_empty_document_is_refused(self) -> None:
        """A document with neither text nor picture has no vector."""
        with pytest.raises(DataError, match="neither text nor a picture"):
            self.subject.embed_documents([(Text("a dog"),), ()])

    def law_what_is_no_picture_is_refused(self) -> None:
        """Pictures must be non-empty uint8 [height, width, 3]; the message names the wrong one."""
        good = np.zeros((4, 4, 3), np.uint8)
        wrong: list[Any] = [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
        ]
        for bad in wrong:
            with pytest.raises(DataError, match=r"^picture 1: "):
                self.subject.embed_images([good, bad])

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Lists and pictures are not changed, and pictures may be read-only."""
        many_texts, picture = data.draw(_texts()), data.draw(pictures(max_side=90))
        given_texts, given_pictures, before = list(many_texts), [picture], picture.copy()
        self.subject.embed_texts(given_texts)
        assert given_texts == many_texts
        vectors = self.subject.embed_images(given_pictures)
        assert len(given_pictures) == 1
        assert given_pictures[0] is picture
        np.testing.assert_array_equal(picture, before)
        picture.setflags(write=False)
        np.testing.assert_allclose(self.subject.embed_images([picture]), vectors, atol=_TOLERANCE)

    def law_equal_makes_are_equal(self) -> None:
        """Two embedders of one config have the same fingerprint and vectors."""
        other = self.make_again()
        assert other.fingerprint == self.subject.fingerprint != ""
        np.testing.assert_array_equal(
            other.embed_texts(["red apple"]), self.subject.embed_texts(["red apple"])
        )

    def law_different_things_have_different_vectors(self) -> None:
        """Different texts have different vectors, and so have different pictures."""
        rows = np.arange(32)[:, None, None]
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        flat, striped = (
            np.zeros((32, 32, 3), np.uint8),
            np.broadcast_to(rows // 4 % 2 * 255, (32, 32, 3)).astype(np.uint8),
        )
        for vectors in (
            self.subject.embed_texts(["a red apple", "two dogs", "the green house"]),
            self.subject.embed_images([noise, flat, striped]),
        ):
            for first, second in ((0, 1), (0, 2), (1, 2)):
                assert np.abs(vectors[first] - vectors[second]).max() > _TOLERANCE
