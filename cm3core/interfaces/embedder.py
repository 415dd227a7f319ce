"""Kind `embedder`: text or picture -> one unit vector in a shared space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, Image, PixelArray, text_of
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig, broken, shown

if TYPE_CHECKING:
    import torch

VectorArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(kw_only=True)
class EmbedderConfig(ComponentConfig):
    """Base of embedders' configs."""

    kind: ClassVar[str] = "embedder"

    def offers(self) -> Mapping[str, bool]:
        """Vectors of texts and pictures in one space."""
        return {"embedder": True}

    def build(self) -> Embedder:
        """Return the embedder with its weights loaded."""
        raise NotImplementedError


class Embedder(ABC):
    """Maps text and pictures to unit vectors in one space: dot product is cosine similarity."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of config and weights; a memory bank built with a different one is refused."""

    @abstractmethod
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        """Return vectors float32 [N, dimension] of any length; the caller normalises them."""

    @abstractmethod
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        """Return vectors float32 [N, dimension] of pictures uint8 [H, W, 3] of any size.

        The vectors may have any length; the caller normalises them."""

    @property
    def looks_fingerprint(self) -> str:
        """Hash of everything that determines `embed_looks`; by default `fingerprint`."""
        return self.fingerprint

    def _embed_looks(self, images: Sequence[PixelArray]) -> VectorArray:
        """Like `_embed_images`, but only for comparison with other pictures; by default the same vectors."""
        return self._embed_images(images)

    def move_to(self, device: torch.device) -> None:  # noqa: B027 (staying on the CPU is valid)
        """Compute on this device from now on; vectors stay arrays. The default does nothing."""

    def knows_word(self, word: str) -> bool:
        """Whether a word is whole in the vocabulary of the encoder of texts, so that it is no typing error. By default
        False: unknown."""
        return False

    def embed_texts(self, texts: Sequence[str]) -> VectorArray:
        """Return unit vectors float32 [N, dimension]. Raises `DataError` on NaN or infinity."""
        return (
            self._unit(self._embed_texts(texts), "text", len(texts))
            if texts
            else np.zeros((0, self.dimension), np.float32)
        )

    def embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        """Return unit vectors float32 [N, dimension] of pictures uint8 [H, W, 3] of any size.

        Raises `DataError` for another shape or dtype, and as `embed_texts` does."""
        return self._of_pictures(images, self._embed_images)

    def embed_looks(self, images: Sequence[PixelArray]) -> VectorArray:
        """Return unit vectors float32 [N, dimension] for comparing pictures with pictures.

        They may belong to another space than those of texts and `embed_images`, one in which versions of the same
        object are nearer to each other. Raises as `embed_images` does."""
        return self._of_pictures(images, self._embed_looks)

    def _of_pictures(
        self, images: Sequence[PixelArray], embed: Callable[[Sequence[PixelArray]], VectorArray]
    ) -> VectorArray:
        for place, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                found = f"{image.dtype} {list(image.shape)}"
                raise DataError(
                    f"picture {place}",
                    f"{found}, but an embedder takes uint8 [height, width, 3]",
                    "open it with cm3core.images.open_image",
                )
        return (
            self._unit(embed(images), "picture", len(images))
            if images
            else np.zeros((0, self.dimension), np.float32)
        )

    def _unit(self, vectors: VectorArray, what: str, num: int) -> VectorArray:
        shape = (num, self.dimension)
        if not isinstance(vectors, np.ndarray) or vectors.shape != shape:
            raise broken(
                self,
                "vectors_are_finite_unit_float32",
                f"it returned {shown(vectors)} for {num} {what}s, not float32 {list(shape)}",
            )
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} {int(np.argmin(finite))}",
                f"its vector by {type(self).__name__} contains NaN or infinity",
                "check the embedder's weights",
            )
        return normalise(vectors)

    def embed_document(self, document: Document) -> VectorArray:
        """Return the document's unit vector, float32 [dimension]; see `embed_documents`."""
        return np.asarray(self.embed_documents([document])[0], np.float32)

    def embed_documents(self, documents: Sequence[Document]) -> VectorArray:
        """Return unit vectors float32 [N, dimension], as in paper section 2.1.

        Text and image parts are encoded separately, normalised, averaged and normalised again;
        a document with only one part uses that part. Raises `DataError` for a document with
        neither."""
        texts = [text_of(document) for document in documents]
        pictures = [
            [segment.load() for segment in document if isinstance(segment, Image)]
            for document in documents
        ]
        for text, own in zip(texts, pictures, strict=True):
            if not text and not own:
                raise DataError(
                    "document", "has neither text nor a picture to embed", "give it one of them"
                )
        total = np.zeros((len(documents), self.dimension), np.float32)
        with_text = [i for i, text in enumerate(texts) if text]
        total[with_text] += self.embed_texts([texts[i] for i in with_text])
        owner = [i for i, own in enumerate(pictures) for _ in own]
        image_part = np.zeros_like(total)
        np.add.at(
            image_part, owner, self.embed_images([picture for own in pictures for picture in own])
        )
        return normalise(total + normalise(image_part))


def normalise(vectors: VectorArray) -> VectorArray:
    """Scale rows to length 1; a zero row stays zero.

    >>> normalise(np.array([[3.0, 4.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
