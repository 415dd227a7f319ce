"""Vectors of texts: computed in advance and read from a file, or computed now and cached.

A file of vectors has few numbers a text, in four bits: the vectors' first principal components. It is searched by the
texts themselves, so it serves any memory that has some of its texts.

Legend: N texts, E dimension of the embedder, D of the vectors, K texts of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cm3core.errors import DataError
from cm3core.files import atomic_path, cache_folder
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3plugins.trained.four_bits import GROUP, dequantise, quantise
from cm3run.built_once import computed_once
from cm3run.json_text import parse_json
from cm3run.npy import load_array, save_array
from cm3run.progress import estimated_bar

_FORMAT = "cm3leon text vectors 1"
_NEXT = "reinstall what brings it, or build it again with this embedder"
#: Texts embedded together; with more than `_TOLD` to embed, a progress bar is shown and they are cached.
_AT_ONCE, _TOLD = 256, 2000


class TextVectors:
    """Unit vectors of texts by an embedder, from a file where it has them.

    Args:
        embedder: embeds the other texts.
        file: written by `save_vectors`; None: there is none, and vectors are the embedder's own.

    Raises:
        DataError: the file can't be read, or its vectors come from another embedder.
    """

    def __init__(self, embedder: Embedder, file: Path | None = None) -> None:
        self._embedder = embedder
        self._kept: VectorArray | None = None
        self._rows: dict[int, int] = {}
        self._space: tuple[VectorArray, VectorArray] | None = None
        if file is not None:
            self._open(file)

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as opened:
                stated = (opened.metadata() or {}).get("cm3leon", "{}")
                header = parse_json(stated, str(file), form=dict[str, Any])
                names = ("hashes", "codes", "scales", "mean", "projection")
                hashes, codes, scales, mean, projection = map(opened.get_tensor, names)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(str(file), "is not a file of text vectors", _NEXT) from error
        if header.get("format") != _FORMAT or header.get("embedder") != self._embedder.fingerprint:
            raise DataError(
                str(file),
                f"has vectors by {header.get('embedder')!r}, not by {self._embedder.fingerprint!r}",
                "name the embedder that computed them (retriever.encoder), or set retriever.vectors=null",
            )
        self._rows = {one: row for row, one in enumerate(hashes.tolist())}
        self._kept = normalise(dequantise(codes, scales).numpy())
        self._space = mean.float().numpy(), projection.float().numpy()

    def knows_word(self, word: str) -> bool:
        """See `Embedder.knows_word`."""
        return self._embedder.knows_word(word)

    def of_queries(self, texts: Sequence[str]) -> VectorArray:
        """Return unit vectors float32 [N, D] of queries, which are never read from the file: computed by the same
        weights, they would differ by its rounding only."""
        return self._placed(self._embedder.embed_texts(texts))

    def of_memory(self, texts: Sequence[str]) -> VectorArray:
        """Return unit vectors float32 [N, D] of the distinct texts of a memory."""
        rows = [self._rows.get(hash_of(text), -1) for text in texts]
        missing = [place for place, row in enumerate(rows) if row < 0]
        computed = self._computed([texts[place] for place in missing])
        if self._kept is None:
            return computed
        vectors: VectorArray = self._kept[np.maximum(rows, 0)]
        vectors[missing] = self._placed(computed)
        return vectors

    def _placed(self, vectors_NE: VectorArray) -> VectorArray:
        """Return the vectors in the file's dimensions."""
        if self._space is None:
            return vectors_NE
        mean, projection = self._space
        return normalise(np.asarray((vectors_NE - mean) @ projection, np.float32))

    def _computed(self, texts: Sequence[str]) -> VectorArray:
        """Return the embedder's vectors float32 [N, E]; many are cached."""
        if len(texts) <= _TOLD:
            return self._embedder.embed_texts(texts)
        digest = hashlib.sha256("\n".join([self._embedder.fingerprint, *texts]).encode())
        path = cache_folder("texts") / f"{digest.hexdigest()[:32]}.npy"
        shape = (len(texts), self._embedder.dimension)

        def read(path: Path) -> npt.NDArray[np.float16] | None:
            try:
                cached: npt.NDArray[np.float16] = load_array(path)
            except (OSError, ValueError):  # missing or damaged
                return None
            return cached if cached.shape == shape and cached.dtype == np.float16 else None

        def compute() -> npt.NDArray[np.float16]:
            embed = self._embedder.embed_texts
            return in_order_of_length(texts, embed, "done once, then cached").astype(np.float16)

        what = f"embedding {len(texts):,} texts"
        return normalise(computed_once(path, what, read, compute, save_array).astype(np.float32))


def in_order_of_length(
    texts: Sequence[str], embed: Callable[[Sequence[str]], VectorArray], note: str = ""
) -> VectorArray:
    """Return the vectors of texts, embedded in order of length (the longest of a batch decides its time), with a
    progress bar; `note`: see `estimated_bar`."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    rows: list[VectorArray] = []
    with estimated_bar("embedding texts", total=len(texts), unit="text", note=note) as advance:
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            rows.append(embed([texts[place] for place in some]))
            advance(len(some))
    vectors = np.concatenate(rows)
    unsorted = np.empty_like(vectors)
    unsorted[order] = vectors
    return unsorted


def hash_of(text: str) -> int:
    """Return the key of a text in a file of vectors, a signed number of eight bytes."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def save_vectors(texts: Sequence[str], embedder: Embedder, path: Path, dimension: int) -> float:
    """Write a file of vectors; returns the mean cosine of a vector and its stored form.

    Args:
        texts: distinct.
        embedder: computes the vectors.
        path: the file.
        dimension: D, a multiple of 64.
    """
    assert dimension % GROUP == 0
    hashes = np.asarray([hash_of(text) for text in texts], np.int64)
    order = np.argsort(hashes)
    vectors_KE = in_order_of_length(texts, embedder.embed_texts)[order]
    mean_E = vectors_KE.mean(0).astype(np.float16)
    projection_ED = _directions(vectors_KE - mean_E, dimension).astype(np.float16)
    placed_KD = normalise((vectors_KE - mean_E) @ projection_ED.astype(np.float32))
    codes, scales = quantise(torch.from_numpy(placed_KD))
    tensors = {
        "hashes": torch.from_numpy(hashes[order]),
        "codes": codes,
        "scales": scales,
        "mean": torch.from_numpy(mean_E),
        "projection": torch.from_numpy(np.ascontiguousarray(projection_ED)),
    }
    header = {"format": _FORMAT, "embedder": embedder.fingerprint}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"cm3leon": json.dumps(header)})
    return float((normalise(dequantise(codes, scales).numpy()) * placed_KD).sum(1).mean())


def _directions(vectors_KE: VectorArray, dimension: int) -> npt.NDArray[np.float64]:
    """Return the principal components [E, D]; of each, the largest number is positive."""
    vectors = vectors_KE.astype(np.float64)
    components = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :dimension]
    largest = components[np.abs(components).argmax(0), np.arange(components.shape[1])]
    signed: npt.NDArray[np.float64] = components * np.sign(largest)
    return signed
