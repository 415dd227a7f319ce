"""A synthetic bank like a two-tower embedder's: clusters, low intrinsic dimension, and a modality
gap.

A document has a latent point of 24 numbers near its concept's; concept sizes differ widely (Zipf). Each tower maps latent
points to E numbers with a matrix that it partly shares with the other tower, adds its own direction (so that texts
cluster together and pictures cluster together, as CLIP's do: Liang et al. 2022, "Mind the Gap"), and adds noise in all
directions. A document's vector is the mean of both, as in the paper; a query is another point of a document's concept,
seen by one tower. So queries differ from documents, and text queries differ from them in another way than picture
queries.

Legend: M documents, E numbers per vector, L latent numbers, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3run.bank.manifest import ImageTokenizerMaker, Maker, Manifest
from cm3run.bank.shard import BankDocument, write_shard

LATENT = 24
#: Mean number of documents per concept, and their distance from its centre (whose numbers have variance
#: 1).
OF_A_CONCEPT, SPREAD = 100, 0.5
#: Lengths, relative to a latent part of length 1: of the part that the towers don't share, of a tower's own
#: direction, and of noise.
UNSHARED, GAP, NOISE = 0.5, 1.0, 0.3
GRID, CODEBOOK = (16, 16), 1024
SHARD_ROWS = 32_768
SEED = 20_240_229
MODALITIES = ("text", "image")
#: Styles of documents; the filter of a search, by the end of an engine's name: one document in ten and one in a
#: hundred match.
NUM_STYLES = 100
FILTERS: dict[str, list[str]] = {
    "": [],
    ", ten styles": [f"style {number}" for number in range(10)],
    ", one style": ["style 7"],
}


def styles_of(number: int) -> str:
    """Return the style of a document in the bank.

    >>> styles_of(1207)
    'style 7'
    """
    return f"style {number % NUM_STYLES}"


class Towers:
    """The two towers and the concepts.

    Args:
        num: M.
        dimension: E.
    """

    def __init__(self, num: int, dimension: int) -> None:
        rng = np.random.default_rng(SEED)
        self.num, self.dimension = num, dimension
        num_concepts = max(1, num // OF_A_CONCEPT)
        self._concepts = rng.standard_normal((num_concepts, LATENT), np.float32)
        shares = 1 / np.arange(1, num_concepts + 1) ** 0.7
        self._ends = np.cumsum(shares / shares.sum())
        shared = rng.standard_normal((LATENT, dimension), np.float32)
        self._maps = [
            (shared + UNSHARED * rng.standard_normal(shared.shape, np.float32))
            / np.sqrt(LATENT * dimension)
            for _ in MODALITIES
        ]
        self._gaps = [
            GAP * direction / np.linalg.norm(direction)
            for direction in rng.standard_normal((len(MODALITIES), dimension), np.float32)
        ]

    def latent(self, numbers_n: npt.NDArray[np.int64], rng: np.random.Generator) -> VectorArray:
        """Return latent points float32 [n, L] of documents, from their concept, which their number determines, and
        noise."""
        places = (numbers_n * 0.6180339887498949) % 1
        concepts = np.searchsorted(self._ends, places).clip(0, len(self._concepts) - 1)
        points_nL: VectorArray = self._concepts[concepts] + SPREAD * rng.standard_normal(
            (len(concepts), LATENT), np.float32
        )
        return points_nL

    def see(self, tower: int, latent_nL: VectorArray, rng: np.random.Generator) -> VectorArray:
        """Return unit vectors float32 [n, E] of one tower."""
        noise = rng.standard_normal((len(latent_nL), self.dimension), np.float32) * np.float32(
            NOISE / np.sqrt(self.dimension)
        )
        return normalise(latent_nL @ self._maps[tower] + self._gaps[tower] + noise)

    def blocks(self, rows: int = SHARD_ROWS) -> Iterator[VectorArray]:
        """Yield all documents' vectors in order, each block from its own generator."""
        for start in range(0, self.num, rows):
            rng = np.random.default_rng((SEED, start))
            latent_nL = self.latent(np.arange(start, min(start + rows, self.num)), rng)
            yield normalise(self.see(0, latent_nL, rng) + self.see(1, latent_nL, rng))

    def queries(self, number: int) -> VectorArray:
        """Return unit vectors float32 [2 * number, E]: texts, then pictures; each from a document's
        concept."""
        found = []
        for tower in range(len(MODALITIES)):
            rng = np.random.default_rng((SEED, self.num, tower))
            latent_QL = self.latent(rng.integers(0, self.num, number), rng)
            found.append(self.see(tower, latent_QL, rng))
        return np.concatenate(found)


class TableEmbedder(Embedder):
    """Holds the queries' vectors: embedding them is a look-up.

    Args:
        vectors: float32 [2 * Q, E], from `Towers.queries`.
    """

    def __init__(self, vectors: VectorArray) -> None:
        self._vectors = vectors

    @property
    def dimension(self) -> int:
        """E."""
        return int(self._vectors.shape[1])

    @property
    def fingerprint(self) -> str:
        """The same for all banks of this module."""
        return "synthetic"

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return self._vectors[[int(text) for text in texts]]

    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return self._vectors[[int.from_bytes(image.tobytes(), "big") for image in images]]


def query_documents(number: int) -> dict[str, list[Document]]:
    """Return modality -> queries known to a `TableEmbedder` with 2 * number vectors."""

    def picture(row: int) -> Image:
        return Image(
            f"query {row}", lambda: np.frombuffer(row.to_bytes(3, "big"), np.uint8).reshape(1, 1, 3)
        )

    return {
        "text": [(Text(str(row)),) for row in range(number)],
        "image": [(picture(row),) for row in range(number, 2 * number)],
    }


def write_bank(folder: Path, towers: Towers) -> Manifest:
    """Write a complete memory bank of the towers' documents, each a text and a picture with random codes."""
    manifest = Manifest(
        towers.dimension,
        Maker("synthetic", {}, "synthetic"),
        ImageTokenizerMaker("synthetic", {}, "synthetic", GRID, CODEBOOK),
    )
    shards, start = [], 0
    for vectors_nE in towers.blocks():
        shard = write_shard(folder, _documents(start, vectors_nE), manifest)
        assert shard is not None
        shards.append(shard)
        start += len(vectors_nE)
    manifest = manifest.with_shards(tuple(shards))
    manifest.write(folder)
    return manifest


def _documents(start: int, vectors_nE: VectorArray) -> Iterator[BankDocument]:
    codes_nc = np.random.default_rng((SEED, start, 1)).integers(
        0, CODEBOOK, (len(vectors_nE), GRID[0] * GRID[1]), np.int32
    )
    for number, (vector, codes) in enumerate(zip(vectors_nE, codes_nc, strict=True), start):
        document = (Text(f"document {number}"), Codes(codes, GRID))
        yield BankDocument(f"d{number}", document, content_keys(document), vector)
