"""Text -> words -> hashed features: each word as a whole and its character n-grams.

An unseen word, a plural or a misspelling thus still lands near its relatives (the subwords of
fastText, Bojanowski et al. 2017). Pure Python.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import lru_cache

#: Part of the embedder's fingerprint: raise it when the same text gets other features.
TEXT_FEATURES_VERSION = 1

_WORD = re.compile(r"[^\W_]+")
_NGRAM_LENGTHS = (3, 4, 5)


def words_of(text: str) -> list[str]:
    """Lower-case words without accents or punctuation.

    >>> words_of("A Red-Apple, Noto style: piñata's")
    ['a', 'red', 'apple', 'noto', 'style', 'pinata', 's']
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall(
        "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    )


def ngrams_of(word: str) -> list[str]:
    """Character n-grams (3 to 5) of a word with boundary marks, except the marked word itself.

    >>> ngrams_of("owl")
    ['<ow', 'owl', 'wl>', '<owl', 'owl>']
    """
    marked = f"<{word}>"
    return [
        marked[start : start + length]
        for length in _NGRAM_LENGTHS
        for start in range(len(marked) - length + 1)
        if length < len(marked)
    ]


@lru_cache(maxsize=1 << 16)
def features_of(word: str, num_buckets: int) -> tuple[int, ...]:
    """Buckets 0..num_buckets-1 of a word and of its n-grams.

    The word counts twice, so that it outweighs a single n-gram.
    """
    whole = _bucket(f"word:{word}", num_buckets)
    return whole, whole, *(_bucket(ngram, num_buckets) for ngram in ngrams_of(word))


def _bucket(name: str, num_buckets: int) -> int:
    """CRC-32, because Python's own hash differs in every process."""
    return zlib.crc32(name.encode("utf-8")) % num_buckets
