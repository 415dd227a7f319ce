"""What finished requests have read, kept for those that go on from there: parts of a reply, turns of a
conversation.

A kept prefix is one row's tokens with their keys and values. A prompt that begins as it does reads only
what is behind the common part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from cm3core.document import IntArray

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import KVCache
    from cm3core.sequence.prompt_writer import Prompt

#: Share of the memory for keys and values that kept prefixes may take while it is free: rows in
#: flight come first.
KEPT_SHARE = 0.25
#: The same where the machine's memory is not known, in bytes.
KEPT_BYTES = 10**9
#: Most prefixes that are kept.
NUM_KEPT = 64
#: A prompt that has fewer tokens in common with a prefix is read from its beginning: copying keys and
#: values costs something too.
SHORTEST_KEPT = 16


@dataclass(frozen=True, eq=False)
class Kept:
    """Tokens that a row has read.

    Args:
        tokens, cells: int32 [N], as `Prompt` has them.
        cache: one row of N tokens; never written.
        num_bytes: of the cache.
    """

    tokens: IntArray
    cells: IntArray
    cache: KVCache
    num_bytes: int

    def common(self, tokens: IntArray, cells: IntArray) -> int:
        """Number of tokens with which both begin."""
        length = min(len(self.tokens), len(tokens))
        same = (self.tokens[:length] == tokens[:length]) & (self.cells[:length] == cells[:length])
        return length if same.all() else int(same.argmin())


class KeptPrefixes:
    """Kept prefixes, the least recently used dropped first. Any thread may use it.

    Args:
        bytes_of: bytes that so many tokens of a row take (`InferenceDecoder.cache_bytes`).
        limit: bytes for keys and values of everything, see `cache_limit`. None: unknown.
    """

    def __init__(self, bytes_of: Callable[[int], int], limit: int | None) -> None:
        self._bytes_of = bytes_of
        self._most = KEPT_BYTES if limit is None else int(KEPT_SHARE * limit)
        self._kept: list[Kept] = []  # the last one is the one used last
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(one.num_bytes for one in self._kept)

    def room_for(self, num_tokens: int) -> bool:
        """Whether a prefix of so many tokens would be kept at all."""
        return num_tokens >= SHORTEST_KEPT and self._bytes_of(num_tokens) <= self._most

    def put(self, tokens: IntArray, cells: IntArray, cache: KVCache) -> None:
        """Keep a row's tokens; prefixes with which they begin are dropped.

        Args:
            tokens, cells: int32 [N].
            cache: one row of these tokens, that nobody else writes.
        """
        new = Kept(tokens, cells, cache, self._bytes_of(len(tokens)))
        with self._lock:
            self._kept = [
                one for one in self._kept if one.common(tokens, cells) < len(one.tokens)
            ] + [new]
        self.shrink(self._most)

    def longest(self, prompt: Prompt) -> tuple[KVCache, int] | None:
        """The kept row that has most in common with a prompt, and the number of tokens that it takes
        from it: never the last, whose hidden state is needed. None: no row has enough."""
        tokens, cells = prompt.tokens[:-1], prompt.cells[:-1]
        with self._lock:
            common = [one.common(tokens, cells) for one in self._kept]
            if max(common, default=0) < SHORTEST_KEPT:
                return None
            place = int(np.argmax(common))
            kept = self._kept.pop(place)
            self._kept.append(kept)
            return kept.cache, common[place]

    def shrink(self, num_bytes: int) -> None:
        """Drop prefixes until they take no more than this."""
        with self._lock:
            while self._kept and (self.num_bytes > num_bytes or len(self._kept) > NUM_KEPT):
                self._kept.pop(0)
