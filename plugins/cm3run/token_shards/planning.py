"""Which documents become shards, decided before any is encoded, the same in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cm3core.document import text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3run.token_shards.manifest import FORMAT, TokenizerInfo

#: What counts as the same document: its pictures and words, its pictures alone (words, where it has none),
#: or nothing.
DUPLICATES = ("documents", "pictures", "keep")


@dataclass(frozen=True)
class Settings:
    """What decides the shards besides the data.

    Args:
        shard_size: documents of a shard.
        duplicates: see `DUPLICATES`.
        num_texts: texts drawn of a document whose texts vary without end, the canonical one included.
    """

    shard_size: int
    duplicates: str = DUPLICATES[0]
    num_texts: int = 8


def kept_documents(source: DocumentSource, duplicates: str) -> npt.NDArray[np.int64]:
    """Return the indices of the documents that are no duplicates of earlier ones, int64, ascending.

    Documents are compared by their content keys, all of them; under "documents" also by the words of their
    canonical text, ignoring case and spacing. One without a key has nothing to compare and is kept.
    """
    if duplicates == "keep":
        return np.arange(len(source), dtype=np.int64)
    seen: set[bytes] = set()
    kept = []
    for index in range(len(source)):
        try:
            name = _content(source, index, with_words=duplicates == "documents")
        except DataError:
            name = None  # reported when it is encoded
        if name is not None:
            if name in seen:
                continue
            seen.add(name)
        kept.append(index)
    return np.array(kept, np.int64)


def _content(source: DocumentSource, index: int, *, with_words: bool) -> bytes | None:
    """16 bytes of a hash of a document's content; None without a key."""
    keys = sorted(source.content_keys(index))
    if not keys:
        return None
    if with_words:
        words = " ".join(text_of(source.document(index)).casefold().split())
        keys.append(f"words:{words}")
    return hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).digest()[:16]


def plan_of(
    sources: Mapping[str, DocumentSource],
    text_tokenizer: TokenizerInfo,
    image_tokenizer: TokenizerInfo,
    task: str,
    settings: Settings,
) -> str:
    """Return a hash of all that decides the shards."""
    parts = [
        FORMAT,
        {name: source.content_fingerprint for name, source in sources.items()},
        [text_tokenizer.fingerprint, image_tokenizer.fingerprint, task],
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
