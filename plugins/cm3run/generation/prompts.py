"""Prefill: read each distinct prompt and each common prefix once, and reuse kept prefixes.

Common prefixes are retrieved documents. The keys and values of finished requests are kept for requests that continue
from there: parts of a reply, turns of a conversation. A kept prefix is one row's tokens with their keys and values; a
prompt that starts with the same tokens reads only the rest.

Legend: U distinct prompts, T tokens of the longest, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cm3core.document import NO_CELL, IntArray

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import InferenceDecoder, KVCache
    from cm3core.sequence.prompt_writer import Prompt


#: Share of the memory for keys and values that kept prefixes may use while it is free; rows in flight
#: have priority.
KEPT_SHARE = 0.25
#: Limit in bytes when the machine's memory is unknown.
KEPT_BYTES = 10**9
#: Maximum number of kept prefixes.
NUM_KEPT = 64
#: Shortest common part, in tokens, for which a prefix is reused: copying keys and values has a
#: cost too.
SHORTEST_KEPT = 16


@dataclass(frozen=True, eq=False)
class Kept:
    """A kept prefix: a row's tokens with their keys and values.

    Args:
        tokens, cells: int32 [N], as in `Prompt`.
        cache: one row of N tokens; never written.
        num_bytes: of the cache.
    """

    tokens: IntArray
    cells: IntArray
    cache: KVCache
    num_bytes: int

    def common(self, tokens: IntArray, cells: IntArray) -> int:
        """Length of the common prefix."""
        length = min(len(self.tokens), len(tokens))
        same = (self.tokens[:length] == tokens[:length]) & (self.cells[:length] == cells[:length])
        return length if same.all() else int(same.argmin())


class KeptPrefixes:
    """Kept prefixes, least recently used dropped first. Thread-safe.

    Args:
        bytes_of: bytes of keys and values for a row of so many tokens (`InferenceDecoder.cache_bytes`).
        limit: total bytes for keys and values, see `cache_limit`. None: unknown.
    """

    def __init__(self, bytes_of: Callable[[int], int], limit: int | None) -> None:
        self._bytes_of = bytes_of
        self._most = KEPT_BYTES if limit is None else int(KEPT_SHARE * limit)
        self._kept: list[Kept] = []  # the most recently used is last
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of all kept prefixes together."""
        return sum(one.num_bytes for one in self._kept)

    def room_for(self, num_tokens: int) -> bool:
        """Whether a prefix of this many tokens would be kept at all."""
        return num_tokens >= SHORTEST_KEPT and self._bytes_of(num_tokens) <= self._most

    def put(self, tokens: IntArray, cells: IntArray, cache: KVCache) -> None:
        """Keep a row's tokens; kept prefixes of these tokens are dropped.

        Args:
            tokens, cells: int32 [N].
            cache: one row of these tokens, written by no one else.
        """
        new = Kept(tokens, cells, cache, self._bytes_of(len(tokens)))
        with self._lock:
            self._kept = [
                one for one in self._kept if one.common(tokens, cells) < len(one.tokens)
            ] + [new]
        self.shrink(self._most)

    def longest(self, prompt: Prompt) -> tuple[KVCache, int] | None:
        """The kept row with the longest common prefix, and how many of its tokens the prompt reuses. The prompt's last
        token is always read again, for its hidden state. None: no row has enough in common."""
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
        """Drop prefixes until they use at most `num_bytes`."""
        with self._lock:
            while self._kept and (self.num_bytes > num_bytes or len(self._kept) > NUM_KEPT):
                self._kept.pop(0)


#: A row that holds the beginning of a prompt, and the length of that beginning in tokens.
Begun: TypeAlias = "tuple[KVCache, int]"
#: Prompts read a common prefix shorter than this separately: a second forward pass would cost more.
SHORTEST_COMMON = 48
#: Padding of one forward pass, in tokens, from which a CPU reads shorter prompts in a forward pass of their own: it
#: computes padding like tokens.
MOST_PADDING = 96
#: Maximum tokens of one forward pass, padding included; bounds the memory of activations.
MOST_TOKENS = 16_384


def read_prompts(
    decoder: InferenceDecoder,
    prompts: Sequence[Prompt],
    begun: Sequence[Begun | None] | None = None,
) -> tuple[KVCache, Tensor]:
    """Read prompts; return a cache with a row per prompt and the hidden states [len(prompts), E] after them.

    Args:
        decoder: reads them.
        prompts: at least one.
        begun: for each prompt, a row that already holds its beginning, which is not read again.
    """
    index: dict[bytes, int] = {}
    source = [index.setdefault(key(prompt), len(index)) for prompt in prompts]
    firsts = [source.index(place) for place in range(len(index))]
    different = [prompts[first] for first in firsts]
    known = [None if begun is None else begun[first] for first in firsts]
    new = [place for place, one in enumerate(known) if one is None]
    order, families = _families([different[place] for place in new])
    order = [new[place] for place in order]
    cache: KVCache | None = None
    states = []
    most_padding = MOST_PADDING if decoder.device.type == "cpu" else None
    parts = [_read_families(decoder, chunk) for chunk in _chunks(families, most_padding)]
    continued = [(different[place], one) for place, one in enumerate(known) if one is not None]
    order += [place for place, one in enumerate(known) if one is not None]
    parts += [_read_on(decoder, chunk) for chunk in _of_bounded_size(continued)]
    for part, hidden_UE in parts:
        states.append(hidden_UE)
        if cache is None:
            cache = part
        else:
            cache.join(part)
    assert cache is not None
    rows = [order.index(place) for place in source]
    hidden_UE = torch.cat(states)
    if rows != list(range(len(order))):
        cache.select(rows)
        hidden_UE = hidden_UE[torch.tensor(rows, device=hidden_UE.device)]
    return cache, hidden_UE


def _of_bounded_size(
    continued: list[tuple[Prompt, Begun]],
) -> list[list[tuple[Prompt, Begun]]]:
    """Split into groups to read together, in order: at most `MOST_TOKENS` tokens after the beginnings."""
    chunks: list[list[tuple[Prompt, Begun]]] = []
    longest = 0
    for prompt, begun in continued:
        longest = max(longest, len(prompt) - begun[1])
        if not chunks or longest * (len(chunks[-1]) + 1) > MOST_TOKENS:
            chunks.append([])
            longest = len(prompt) - begun[1]
        chunks[-1].append((prompt, begun))
    return chunks


def _read_on(
    decoder: InferenceDecoder, continued: list[tuple[Prompt, Begun]]
) -> tuple[KVCache, Tensor]:
    """Read what follows the beginnings that rows already hold."""
    caches = [row.copy(0, common) for _, (row, common) in continued]
    cache = caches[0]
    for other in caches[1:]:
        cache.join(other)
    tokens = [prompt.tokens[common:] for prompt, (_, common) in continued]
    cells = [prompt.cells[common:] for prompt, (_, common) in continued]
    cache.reserve(list(map(len, tokens)))
    return cache, feed(decoder, cache, tokens, cells)


def key(prompt: Prompt) -> bytes:
    """Equal for prompts that are identical to the decoder."""
    return prompt.tokens.tobytes() + prompt.cells.tobytes()


class _Family:
    """Prompts with a common prefix, and the prefix's length in tokens.

    The prefix of a single prompt is all but its last token.
    """

    def __init__(self, place: int, prompt: Prompt) -> None:
        self.places, self.members, self.common = [place], [prompt], len(prompt) - 1

    def takes(self, prompt: Prompt) -> bool:
        first = self.members[0]
        longest = min(self.common, len(prompt) - 1)
        same = (first.tokens[:longest] == prompt.tokens[:longest]) & (
            first.cells[:longest] == prompt.cells[:longest]
        )
        common = longest if same.all() else int(same.argmin())
        if common < SHORTEST_COMMON:
            return False
        self.common = common
        return True


def _families(prompts: Sequence[Prompt]) -> tuple[list[int], list[_Family]]:
    """The positions in `prompts` in the order of the families, and the families."""
    families: list[_Family] = []
    for place, prompt in enumerate(prompts):
        for family in families:
            if family.takes(prompt):
                family.places.append(place)
                family.members.append(prompt)
                break
        else:
            families.append(_Family(place, prompt))
    # similar lengths next to each other reduce padding
    families.sort(key=lambda family: (len(family.members) == 1, -len(family.members[0])))
    return [place for family in families for place in family.places], families


def _chunks(families: list[_Family], most_padding: int | None = None) -> list[list[_Family]]:
    """Split families into groups to read together: only single prompts or only larger families, at most
    `MOST_TOKENS` tokens.

    Args:
        families: in the order of `_families`.
        most_padding: limit for single prompts, in tokens; it keeps a nearly empty guidance stream from being
            padded to the length of streams that read documents. None: no limit.
    """
    chunks: list[list[_Family]] = []
    longest, rows = 0, 0
    for place, (before, family) in enumerate(pairwise([None, *families])):
        assert family is not None
        length = max(len(member) for member in family.members)
        longest, rows = max(longest, length), rows + len(family.members)
        alone = len(family.members) == 1
        # the following ones are at most as long as this one
        padding = (longest - length) * (len(families) - place) if alone else 0
        if (
            before is None
            or alone != (len(before.members) == 1)
            or longest * rows > MOST_TOKENS
            or (most_padding is not None and padding > most_padding)
        ):
            chunks.append([])
            longest, rows = length, len(family.members)
        chunks[-1].append(family)
    return chunks


def _read_families(decoder: InferenceDecoder, families: list[_Family]) -> tuple[KVCache, Tensor]:
    members = [member for family in families for member in family.members]
    if len(members) == len(families):
        cache = decoder.allocate_cache(len(members), max(map(len, members)))
        return cache, feed(
            decoder,
            cache,
            [member.tokens for member in members],
            [member.cells for member in members],
        )
    cache = decoder.allocate_cache(len(families), max(family.common for family in families))
    feed(
        decoder,
        cache,
        [family.members[0].tokens[: family.common] for family in families],
        [family.members[0].cells[: family.common] for family in families],
    )
    cache.select([place for place, family in enumerate(families) for _ in family.members])
    tails = [slice(family.common, None) for family in families for _ in family.members]
    cache.reserve([len(member.tokens[tail]) for member, tail in zip(members, tails, strict=True)])
    return cache, feed(
        decoder,
        cache,
        [member.tokens[tail] for member, tail in zip(members, tails, strict=True)],
        [member.cells[tail] for member, tail in zip(members, tails, strict=True)],
    )


def feed(
    decoder: InferenceDecoder, cache: KVCache, tokens: Sequence[IntArray], cells: Sequence[IntArray]
) -> Tensor:
    """Feed each row its own tokens (at least one); return the hidden states after the last [rows, E]."""
    counts, device = [len(row) for row in tokens], decoder.device
    tokens_BT, cells_BT = padded(tokens, cells)
    hidden_BTE = decoder.hidden_states(
        tokens_BT.to(device), cells_BT=cells_BT.to(device), cache=cache
    )
    cache.advance(counts)
    if max(counts) == 1:
        return hidden_BTE[:, 0]
    last_B = torch.tensor(counts, device=device) - 1
    return hidden_BTE[torch.arange(len(counts), device=device), last_B]


def padded(tokens: Sequence[IntArray], cells: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """Tokens and cells of rows of different lengths as int64 [B, T], right-padded with token 0 and no cell."""
    tokens_BT = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
    cells_BT = np.full(tokens_BT.shape, NO_CELL, np.int64)
    for row, (own, own_cells) in enumerate(zip(tokens, cells, strict=True)):
        tokens_BT[row, : len(own)], cells_BT[row, : len(own)] = own, own_cells
    return torch.from_numpy(tokens_BT), torch.from_numpy(cells_BT)
