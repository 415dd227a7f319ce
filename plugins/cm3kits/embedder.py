"""Conformance kit of embedders.

class TestMine(EmbedderContract):
    config = MyEmbedderConfig()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import Document, Image, PixelArray, Text
from cm3core.errors import CM3Error, DataError
from cm3core.interfaces.embedder import Embedder, normalise
from cm3kits._config_laws import ConfigLaws, of_small_batches
from cm3kits._findings import LawBroken, difference, every, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits.samples import SAMPLE_TEXTS, example_pictures
from cm3kits.strategies import pictures, texts

_TOLERANCE = 1e-4


def _texts(max_num: int = 6) -> st.SearchStrategy[list[str]]:
    """Draw lists of short texts in any script, including empty ones and ones without words."""
    return st.lists(
        st.sampled_from(["red apple, noto style", "a dog", "", "...", "été 猫"])
        | texts(max_size=30),
        min_size=1,
        max_size=max_num,
    )


def _pictures(max_num: int) -> st.SearchStrategy[list[PixelArray]]:
    """Draw pictures of up to 90 pixels per side, each with another size."""
    return st.lists(pictures(max_side=90), min_size=1, max_size=max_num)


class EmbedderContract(ConfigLaws[Embedder]):
    """Laws of an embedder."""

    kind: ClassVar[str] = "embedder"
    max_examples: ClassVar[int | None] = 15

    def build(self, config: Any) -> Embedder:
        """See `EmbedderConfig.build`."""
        embedder: Embedder = config.build()
        return embedder

    def observe(self, component: Embedder) -> Outputs:
        """Return vectors of texts and pictures."""
        some = [*example_pictures(32), example_pictures(90)[0][:, :40]]
        return {
            "vectors of texts": component.embed_texts(SAMPLE_TEXTS),
            "vectors of pictures": component.embed_images(some),
            "looks": component.embed_looks(some[:2]),
        }

    def declared(self, component: Embedder) -> Iterator[tuple[str, bool, str, Any]]:
        """Words."""
        for word in ("bell", "zzqxv", "é", "", "\0"):
            known = component.knows_word(word)
            yield f"knows_word({word!r})", isinstance(known, bool), "True or False", known

    def law_it_moves_between_devices(self) -> None:
        """`move_to` takes the device "cpu", and changes no vector and no fingerprint; `looks_fingerprint` is a text."""
        component = self.make_again()
        name = component.looks_fingerprint
        holds(isinstance(name, str) and name, "looked at looks_fingerprint", "a text", name)
        if type(component).move_to is Embedder.move_to:
            return  # the default does nothing
        import torch  # here: embedders need none

        before = component.embed_texts(SAMPLE_TEXTS[:2]), component.fingerprint
        component.move_to(torch.device("cpu"))
        did = "moved it to the CPU, and compared "
        same(
            component.embed_texts(SAMPLE_TEXTS[:2]),
            before[0],
            f"{did}vectors",
            tolerance=_TOLERANCE,
        )
        same(component.fingerprint, before[1], f"{did}fingerprints")

    def abilities(self, component: Embedder) -> Mapping[str, bool]:
        """Vectors of texts and pictures."""
        return {"embedder": True}

    def law_vectors_are_finite_unit_float32(self, data: st.DataObject) -> None:
        """Vectors are float32 [N, dimension], finite and of length 1."""
        many_texts, many_pictures = data.draw(_texts()), data.draw(_pictures(3))
        dimension = self.subject.dimension
        for what, vectors, count in (
            ("texts", self.subject.embed_texts(many_texts), len(many_texts)),
            ("pictures", self.subject.embed_images(many_pictures), len(many_pictures)),
            ("looks", self.subject.embed_looks(many_pictures), len(many_pictures)),
        ):
            did = f"embedded {count} {what}"
            holds(
                vectors.dtype == np.float32 and vectors.shape == (count, dimension),
                did,
                f"float32 [{count}, {dimension}]",
                vectors,
            )
            every(vectors, np.isfinite(vectors), did, "finite numbers")
            lengths = np.linalg.norm(vectors, axis=1)
            same(lengths, np.ones(count), did + ", and took lengths", tolerance=_TOLERANCE)

    def law_nothing_gives_no_rows(self) -> None:
        """No texts, pictures or documents give the shape [0, dimension]."""
        for what, vectors in (
            ("texts", self.subject.embed_texts([])),
            ("images", self.subject.embed_images([])),
            ("documents", self.subject.embed_documents([])),
        ):
            same(list(vectors.shape), [0, self.subject.dimension], f"embedded no {what}")

    def law_a_batch_is_its_items(self, data: st.DataObject) -> None:
        """An item's vector does not depend on what else is in the batch."""
        many_texts, many_pictures = data.draw(_texts()), data.draw(_pictures(4))
        for name, items in (
            ("embed_texts", many_texts),
            ("embed_images", many_pictures),
            ("embed_looks", many_pictures),
        ):
            embed = getattr(self.subject, name)
            same(
                embed(items),
                np.concatenate([embed([one]) for one in items]),
                f"called {name} with {len(items)} items together, and one by one",
                tolerance=_TOLERANCE,
            )

    def law_any_number_of_items_is_a_batch(self) -> None:
        """With a key `batch_size`, one item less than a batch has, a batch, and one more have the vectors that they have
        alone."""
        component, size = of_small_batches(self), 3
        some, pictures = SAMPLE_TEXTS, [*example_pictures(32), *example_pictures(24)]
        for name, items in (
            ("embed_texts", some),
            ("embed_images", pictures),
            ("embed_looks", pictures),
        ):
            embed = getattr(component, name)
            for count in (size - 1, size, size + 1, 2 * size):
                did = f"called {name} with {count} items and a batch_size of {size}, and one by one"
                own = list(items[:count])
                try:
                    vectors = embed(own)
                except CM3Error as error:
                    raise LawBroken(did, f"{count} vectors", error.cause) from error
                same(
                    vectors,
                    np.concatenate([embed([one]) for one in own]),
                    did,
                    tolerance=_TOLERANCE,
                )

    def law_a_document_is_the_mean_of_its_parts(self, data: st.DataObject) -> None:
        """Text and picture vectors are normalised, averaged and normalised; a single one is kept."""
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
        expected = np.stack(
            [text_part, image_part, normalise((text_part + image_part)[None] / 2)[0]]
        )
        did = "embedded a text, a picture, and a document of both"
        advice = "don't override embed_documents, or use the mean of the parts' unit vectors"
        for got, wanted in (
            (self.subject.embed_documents(documents), expected),
            (self.subject.embed_document(documents[2]), expected[2]),
        ):
            same(got, wanted, did, tolerance=_TOLERANCE, next_step=advice)

    def law_an_empty_document_is_refused(self) -> None:
        """Embedding a document without text and picture raises an error."""
        refuses(
            lambda: self.subject.embed_documents([(Text("a dog"),), ()]),
            "embedded an empty document",
            DataError,
            match="neither text nor a picture",
        )

    def law_what_is_no_picture_is_refused(self) -> None:
        """Pictures must be non-empty uint8 [height, width, 3]; the error names the invalid one."""
        good = np.zeros((4, 4, 3), np.uint8)
        wrong: list[Any] = [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
        ]
        for bad in wrong:
            refuses(
                lambda bad=bad: self.subject.embed_images([good, bad]),  # type: ignore[misc]  # a default
                f"embedded a picture and {bad.dtype} {list(bad.shape)}",
                DataError,
                match=r"^picture 1: ",
            )

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Lists and pictures are not changed, and pictures may be read-only."""
        many_texts, picture = data.draw(_texts()), data.draw(pictures(max_side=90))
        given_texts, given_pictures, before = list(many_texts), [picture], picture.copy()
        self.subject.embed_texts(given_texts)
        same(given_texts, many_texts, "embedded a list of texts, and looked at the list")
        vectors = self.subject.embed_images(given_pictures)
        holds(
            len(given_pictures) == 1 and given_pictures[0] is picture,
            "embedded a list of one picture, and looked at the list",
            "the same picture in it",
            f"{len(given_pictures)} others",
        )
        same(picture, before, "embedded a picture, and looked at its pixels")
        picture.setflags(write=False)
        same(
            self.subject.embed_images([picture]),
            vectors,
            "embedded a picture, and again as a read-only array",
            tolerance=_TOLERANCE,
        )

    def law_equal_makes_are_equal(self) -> None:
        """Two embedders of the same config have the same fingerprint and vectors."""
        other, did = self.make_again(), "made it twice, and compared "
        holds(other.fingerprint != "", "looked at its fingerprint", "a text", other.fingerprint)
        same(other.fingerprint, self.subject.fingerprint, did + "the fingerprints")
        same(
            other.embed_texts(["red apple"]),
            self.subject.embed_texts(["red apple"]),
            did + "the vectors of 'red apple'",
        )

    def law_different_things_have_different_vectors(self) -> None:
        """Different texts have different vectors, and so do different pictures."""
        rows = np.arange(32)[:, None, None]
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        flat, striped = (
            np.zeros((32, 32, 3), np.uint8),
            np.broadcast_to(rows // 4 % 2 * 255, (32, 32, 3)).astype(np.uint8),
        )
        names = ["'a red apple'", "'two dogs'", "'the green house'"]
        looks = ["noise", "a black picture", "a striped one"]
        for what, vectors in (
            (names, self.subject.embed_texts(["a red apple", "two dogs", "the green house"])),
            (looks, self.subject.embed_images([noise, flat, striped])),
        ):
            for first, second in ((0, 1), (0, 2), (1, 2)):
                holds(
                    difference(vectors[first], vectors[second], _TOLERANCE) is not None,
                    f"embedded {what[first]} and {what[second]}",
                    "two vectors",
                    "one vector for both",
                )
