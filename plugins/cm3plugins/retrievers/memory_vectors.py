"""The document vectors of a memory: computed once, kept under the fingerprints of all that decides them.

Legend: M documents of the memory, E dimension of the embedder.
"""

from __future__ import annotations

import hashlib

import numpy as np
from tqdm import tqdm

from cm3core.document import text_of
from cm3core.files import atomic_path, cache_directory
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray

_CHUNK = 256


def memory_vectors(memory: DocumentSource, embedder: Embedder, *, cache: bool = True) -> VectorArray:
    """Unit vectors float32 [M, E] of the canonical documents of `memory`, from the cache when they are there.

    A cached file that is damaged or of another shape is computed again and replaced.
    """
    path = cache_directory() / "embeddings" / f"{vectors_key(memory, embedder)}.npy"
    if cache and path.is_file():
        try:
            cached = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            cached = None  # cut off or foreign
        if cached is not None and cached.shape == (len(memory), embedder.dimension) and cached.dtype == np.float32:
            return np.asarray(cached, np.float32)
    vectors = np.zeros((len(memory), embedder.dimension), np.float32)
    with tqdm(total=len(memory), desc="embedding the memory", unit="document", disable=len(memory) <= _CHUNK) as bar:
        for start in range(0, len(memory), _CHUNK):
            chunk = [memory.document(index) for index in range(start, min(start + _CHUNK, len(memory)))]
            vectors[start:start + len(chunk)] = embedder.embed_documents(chunk)
            bar.update(len(chunk))
    if cache:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    return vectors


def vectors_key(memory: DocumentSource, embedder: Embedder) -> str:
    """Name of the cached file: hash of the embedder, the memory (its pictures), and every document's id and text.

    The source's fingerprint covers ids and pictures only; captions may change under it, so they are hashed here.
    """
    digest = hashlib.sha256(f"{embedder.fingerprint}\0{memory.fingerprint}\0".encode())
    for index in range(len(memory)):
        digest.update(f"{memory.id(index)}\0{text_of(memory.document(index))}\0".encode())
    return digest.hexdigest()[:32]
