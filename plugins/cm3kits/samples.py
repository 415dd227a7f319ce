"""Samples for tests without files: a memory, an embedder without weights, documents, pictures, and small id tables,
whose parts may be in any order, since components must not rely on one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cm3core.document import Document, Image, PixelArray, Text, content_keys, text_of
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3core.vocab import Vocabulary

#: A small corpus for trained tokenizers.
SAMPLE_TEXTS = (
    "a red apple, noto style",
    "a green apple, twemoji style",
    "two red cars",
    "the apple is red; the car is green",
    "Ein grüner Apfel",
    "日本の旗",
    "a flag 🇯🇵 and a family 👩‍👩‍👧",
)

#: Spellings of special tokens, here and in related systems.
SPECIAL_SPELLINGS = (
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<eos>",
    "<eoss>",
    "<break>",
    "<racm3:break>",
    "<mask>",
    "<infill>",
    "<sentinel:0>",
    "<|endoftext|>",
    "IMGIMGAZ",
    "[MASK]",
)


class ListSource(DocumentSource):
    """A memory of the given documents, with ids "d0", "d1", ... or the given ids."""

    def __init__(self, documents: Sequence[Document], ids: Sequence[str] | None = None) -> None:
        self._documents = list(documents)
        self._ids = [f"d{index}" for index in range(len(documents))] if ids is None else list(ids)

    def __len__(self) -> int:
        return len(self._documents)

    def id(self, index: int) -> str:
        """Return a document's id."""
        return self._ids[index]

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return self._documents[index]

    @property
    def fingerprint(self) -> str:
        """Hash of ids, texts and content keys."""
        held = [
            (name, text_of(one), sorted(content_keys(one)))
            for name, one in zip(self._ids, self._documents, strict=True)
        ]
        return hashlib.sha256(repr(held).encode()).hexdigest()


class HashEmbedder(Embedder):
    """An embedder without weights, for tests: pseudo-random vectors derived from the content's bytes."""

    def __init__(self, dimension: int = 8) -> None:
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Its name and dimension."""
        return f"hash-{self._dimension}"

    def _vector(self, content: bytes) -> VectorArray:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self._dimension).astype(np.float32)

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return np.stack([self._vector(text.encode()) for text in texts])

    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return np.stack([self._vector(image.tobytes()) for image in images])


def example_documents(count: int = 24) -> list[Document]:
    """Return documents with text and picture, a text, or a picture, in turn; the last two are equal."""
    documents: list[Document] = []
    for i in range(count - 1):
        picture = np.full((4, 4, 3), (i * 37 % 256, i * 101 % 256, i * 53 % 256), np.uint8)
        text, image = Text(f"thing number {i}"), Image(f"p{i}", picture.copy)
        documents.append(((text, image), (text,), (image,))[i % 3])
    return [*documents, documents[-1]]


def example_pictures(height: int, width: int | None = None) -> PixelArray:
    """Return six different pictures uint8 [6, height, width, 3]: a red square at the top left, a ramp from the left,
    one from the top, stripes, a blue disc at the bottom right, and noise."""
    width = height if width is None else width
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    y_HW, x_HW = y_HW / max(1, height - 1), x_HW / max(1, width - 1)
    white, black = np.full((height, width, 3), 255), np.zeros((height, width, 3))
    square, disc = (y_HW < 0.5) & (x_HW < 0.5), (y_HW - 0.7) ** 2 + (x_HW - 0.7) ** 2 < 0.07
    stripes = (x_HW * 4).astype(int) % 2 == 0
    drawn = [
        np.where(square[..., None], (210, 30, 40), white),
        np.stack([x_HW * 255, x_HW * 255, 128 + 0 * x_HW], axis=2),
        np.stack([y_HW * 255, 255 - y_HW * 255, 0 * y_HW], axis=2),
        np.where(stripes[..., None], white, (20, 120, 60)),
        np.where(disc[..., None], (30, 60, 200), black),
        np.random.default_rng(0).integers(0, 256, (height, width, 3)),
    ]
    return np.stack(drawn).round().astype(np.uint8)


@contextmanager
def own_cache() -> Iterator[None]:
    """Keep the kits' many small memories out of the user's cache."""
    before = os.environ.get("CM3_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CM3_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["CM3_CACHE"]
            else:
                os.environ["CM3_CACHE"] = before


#: Parts of `make_vocabulary`'s tables.
PARTS = ("special", "text", "image", "sentinels", "unused")
_SPECIAL = ("pad", "eos", "break", "eoss")


def make_vocabulary(
    num_text: int,
    num_image: int,
    num_sentinels: int,
    *,
    num_unused: int = 0,
    order: Sequence[str] = ("image", "special", "text", "sentinels", "unused"),
) -> Vocabulary:
    """Return a vocabulary with sentinels.

    Args:
        num_text, num_image, num_sentinels: number of ids of each part.
        num_unused: number of unused ids.
        order: order of `PARTS` among the ids.

    >>> table = make_vocabulary(3, 2, 1)
    >>> [table.name(token) for token in (0, 2, 6, 9, 10)]
    ['image:0', '<pad>', 'text:0', '<sentinel:0>', '<unused:10>']
    """
    sizes = {
        "special": len(_SPECIAL),
        "text": num_text,
        "image": num_image,
        "sentinels": num_sentinels,
        "unused": num_unused,
    }
    ranges, start = {}, 0
    for part in order:
        ranges[part] = range(start, start + sizes[part])
        start += sizes[part]
    return Vocabulary(
        start,
        (ranges["text"],),
        ranges["image"],
        dict(zip(_SPECIAL, ranges["special"], strict=True)),
        first_text=ranges["text"].start,
        sentinels=ranges["sentinels"],
    )
