"""Laws of decoders' caches: rooms and counts, rows that are forked and joined, and the abilities that a cache or a decoder
arranged for inference declares.

Part of the conformance kit of decoders (`cm3kits.decoder`). Legend: B rows, T tokens, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hypothesis import strategies as st

from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import InferenceDecoder, KVCache
from cm3kits._decoder_parts import DecoderParts
from cm3kits._findings import doing, holds, refuses, same
from cm3kits._laws import presupposes


class CacheLaws(DecoderParts):
    """Laws of `KVCache` and `InferenceDecoder`."""

    @torch.no_grad()
    def law_a_cache_is_read_from_its_first_token(self) -> None:
        """A new cache has no tokens, int64 on the decoder's device, and its first token has position 0."""
        decoder, cache = self.arranged()
        same(cache.length_B.tolist(), [0, 0], "looked at length_B of a new cache")
        dtype = cache.length_B.dtype
        holds(dtype == torch.int64, "looked at the type of length_B", "int64", str(dtype))
        first_BT = torch.tensor([[5], [9]])
        with doing("read a first token with a new cache, whose length_B is 0"):
            states = self.read(decoder, cache, first_BT)
        self.assert_close(
            states, self.plain(first_BT), "read a first token with a new cache, and without"
        )

    @presupposes("a_chunk_may_be_counted_in_parts")
    @torch.no_grad()
    def law_a_full_cache_takes_no_more(self) -> None:
        """A row holds exactly as many tokens as were allocated or reserved: a full one refuses one token more, and
        keeps its count."""
        decoder = self.decoder.for_inference()
        cache = decoder.allocate_cache(2, 4)
        self.read(decoder, cache, torch.arange(8).view(2, 4))
        cache.advance([4, 3])
        self._check_full(cache, [4, 3], "a cache of 4 tokens")
        cache.reserve([2, 3])
        self.read(decoder, cache, torch.arange(4).view(2, 2))
        did = "reserved room for 2 and 3 more tokens behind 4 and 3, and read as many"
        self._allowed(lambda: cache.advance([2, 2]), did)
        self.read(decoder, cache, torch.arange(2).view(2, 1))
        self._allowed(lambda: cache.advance([0, 1]), did)
        self._check_full(cache, [6, 6], "a cache with room for 2 and 3 more, by reserve,")

    def _allowed(self, call: Callable[[], object], did: str) -> None:
        try:
            call()
        except GenerationError as error:
            holds(False, did, "no error", f"a GenerationError: {error.cause}")

    def _check_full(self, cache: KVCache, length_B: list[int], what: str) -> None:
        same(cache.length_B.tolist(), length_B, f"filled {what} and looked at length_B")
        for more, word in ((1, "one"), (2, "two"), (1 << 20, "a million")):
            did = f"advanced the full row of {what} by {word}"
            refuses(lambda more=more: cache.advance([more, 0]), did, GenerationError)  # type: ignore[misc]  # a default
            same(cache.length_B.tolist(), length_B, f"{did}, and looked at length_B")

    @presupposes("a_cache_is_read_from_its_first_token")
    @torch.no_grad()
    def law_a_chunk_may_be_counted_in_parts(self, data: st.DataObject) -> None:
        """A cache with `counts_in_parts` counts a chunk by several calls of `advance` as by one: the counts add up, and
        what follows is the same."""
        decoder, cache = self.arranged()
        if not cache.counts_in_parts:
            return
        tokens_BT = self.tokens(data, 2, 7)
        self.read(decoder, cache, tokens_BT[:, :4])
        parts = data.draw(st.sampled_from([[1, 1], [1, 2], [2, 1, 1], [3, 1], [1, 1, 1, 1]]))
        for place, part in enumerate(parts):
            cache.advance([part, part])
            counted = sum(parts[: place + 1])
            did = f"read a chunk of 4 tokens, and counted {parts[: place + 1]} of them, as counts_in_parts says"
            same(cache.length_B.tolist(), [counted] * 2, f"{did}: length_B")
        counted = sum(parts)
        after = self.read(decoder, cache, tokens_BT[:, counted : counted + 2])
        whole = self.plain(tokens_BT)[:, counted : counted + 2]
        self.assert_close(
            after, whole, f"counted a chunk by {parts}, read 2 more tokens, and all at once"
        )

    @presupposes("a_full_cache_takes_no_more")
    @torch.no_grad()
    def law_a_copy_of_a_row_is_its_own(self, data: st.DataObject) -> None:
        """A cache with `can_be_copied` copies a row of any length; copy and cache then go on with other tokens, and neither
        changes the other."""
        decoder, cache = self.arranged()
        if not cache.can_be_copied:
            return
        tokens_BT, other_BT = self.tokens(data, 2, 6), self.tokens(data, 2, 6)
        self.read(decoder, cache, tokens_BT[:, :4])
        cache.advance([4, 4])
        length = data.draw(st.integers(1, 4), label="length")
        did = f"copied a row of 4 tokens, the first {length} (can_be_copied), "
        kept = cache.copy(1, length)
        same(kept.length_B.tolist(), [length], f"{did}and looked at length_B")
        kept.reserve([2])
        own = torch.cat([tokens_BT[1:, :length], other_BT[1:, :2]], 1)
        for place in range(2):  # in turns, each over what the other may share
            new = self.read(decoder, kept, own[:, length + place : length + place + 1])
            kept.advance([1])
            self.assert_close(
                new, self.plain(own)[:, length + place :][:, :1], f"{did}and read on in the copy"
            )
            more = self.read(decoder, cache, tokens_BT[:, 4 + place : 5 + place])
            cache.advance([1, 1])
            whole = self.plain(tokens_BT)[:, 4 + place : 5 + place]
            self.assert_close(more, whole, f"{did}read in the copy, and read on in the cache")

    @presupposes("a_full_cache_takes_no_more")
    @torch.no_grad()
    def law_a_recorded_step_counts_as_advance_does(self) -> None:
        """A cache with `can_be_recorded` counts a step by `count_on_device` and `count_on_host` as by `advance`, in the same
        tensor `length_B`, and is full at the same length."""
        decoder, cache = self.arranged()
        if not cache.can_be_recorded:
            return
        self.read(decoder, cache, torch.arange(4).view(2, 2))
        cache.advance([2, 1])
        place, did = (
            cache.length_B.data_ptr(),
            "counted a step by count_on_device and count_on_host, as can_be_recorded says",
        )
        for step in range(1, 7):
            self.read(decoder, cache, torch.arange(2).view(2, 1))
            cache.count_on_device()
            cache.count_on_host()
            same(cache.length_B.tolist(), [2 + step, 1 + step], f"{did}: length_B")
        same(cache.length_B.data_ptr(), place, f"{did}: the address of length_B")
        refuses(
            lambda: cache.advance([1, 0]),
            f"{did} until it was full, and advanced it by one",
            GenerationError,
        )

    @presupposes("a_cache_is_read_from_its_first_token")
    @torch.no_grad()
    def law_states_ahead_are_those_of_the_tokens(self, data: st.DataObject) -> None:
        """`hidden_states_ahead` gives the states of `hidden_states`, for any number of guesses, and writes as it does."""
        decoder, cache = self.arranged()
        tokens_BT = self.tokens(data, 2, 6)
        self.read(decoder, cache, tokens_BT[:, :2])
        cache.advance([2, 2])
        count = data.draw(st.integers(1, 4), label="tokens ahead")
        ahead_BT = tokens_BT[:, 2 : 2 + count]
        states = decoder.hidden_states_ahead(ahead_BT, cells_BT=self.cells(ahead_BT), cache=cache)
        whole = self.plain(tokens_BT)
        did = f"read {count} tokens by hidden_states_ahead behind 2"
        self.assert_close(states, whole[:, 2 : 2 + count], f"{did}, and all at once")
        cache.advance([1, 1])
        after = self.read(decoder, cache, tokens_BT[:, 3:5])
        self.assert_close(after, whole[:, 3:5], f"{did}, counted one of them, and read on")

    @torch.no_grad()
    def law_every_precision_it_names_is_one(self) -> None:
        """Each of `faster_precisions` is one that `for_inference` takes; bytes of weights and caches are numbers of
        bytes."""
        for precision in self.make_again().faster_precisions():
            did = f"arranged it for inference in {precision!r}, one of faster_precisions()"
            self._allowed(partial(self.make_again().for_inference, precision), did)
        decoder = self.decoder.for_inference()
        holds(
            decoder.rows_at_once >= 0, "looked at rows_at_once", "0 or more", decoder.rows_at_once
        )
        weights = decoder.weight_bytes()
        holds(
            weights is None or weights > 0,
            "asked for weight_bytes()",
            "None, or more than 0",
            weights,
        )
        few, many = decoder.cache_bytes(8), decoder.cache_bytes(16)
        holds(
            0 <= few <= many,
            "asked for cache_bytes(8) and cache_bytes(16)",
            "0 or more, growing",
            (few, many),
        )

    @presupposes("a_cache_is_read_from_its_first_token")
    @torch.no_grad()
    def law_token_by_token_equals_at_once(self, data: st.DataObject) -> None:
        """A cache filled one token at a time gives the states of one forward pass."""
        tokens_BT = self.tokens(data, 2, 7)
        cells_BT = self.cells(tokens_BT)
        arranged = self.decoder.for_inference()
        cache = arranged.allocate_cache(2, 7)
        steps = []
        for t in range(7):
            steps.append(
                arranged.hidden_states(
                    tokens_BT[:, t : t + 1], cells_BT=cells_BT[:, t : t + 1], cache=cache
                )
            )
            cache.advance([1, 1])
        did = "read 7 tokens one by one with a cache, and at once without"
        self.assert_close(torch.cat(steps, 1), self.plain(tokens_BT), did)

    @presupposes("a_cache_is_read_from_its_first_token", "a_full_cache_takes_no_more")
    @torch.no_grad()
    def law_ragged_chunks_equal_at_once(self, data: st.DataObject) -> None:
        """Rows may use different numbers of a chunk's tokens; the rest is padding."""
        tokens_BT = self.tokens(data, 3, 11)
        expected = self.plain(tokens_BT)
        length_B = torch.tensor(
            data.draw(st.lists(st.integers(1, 11), min_size=3, max_size=3), label="row lengths")
        )
        arranged = self.decoder.for_inference()
        cache = arranged.allocate_cache(3, int(length_B.max()))
        held_B = torch.zeros(3, dtype=torch.int64)
        while bool((held_B < length_B).any()):
            counts = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3), label="chunk")
            count_B = torch.minimum(torch.tensor(counts), length_B - held_B)
            if not count_B.any():
                count_B = (held_B < length_B).long()
            chunk_T = torch.arange(int(count_B.max()))
            chunk_BT = tokens_BT.gather(1, (held_B[:, None] + chunk_T).clamp(max=10))
            states = arranged.hidden_states(chunk_BT, cells_BT=self.cells(chunk_BT), cache=cache)
            for row, (held, count) in enumerate(
                zip(held_B.tolist(), count_B.tolist(), strict=True)
            ):
                did = f"read {count} more tokens of row {row} behind {held}, and all at once"
                self.assert_close(states[row, :count], expected[row, held : held + count], did)
            cache.advance(count_B.tolist())
            held_B = held_B + count_B
            same(cache.length_B, held_B, f"advanced rows by {count_B.tolist()}: length_B")

    @presupposes("a_cache_is_read_from_its_first_token", "a_full_cache_takes_no_more")
    @torch.no_grad()
    def law_rows_of_a_cache_are_forked_dropped_and_joined(self, data: st.DataObject) -> None:
        """After any such operations, each row continues as if read alone from its start."""
        decoder = self.decoder.for_inference()
        whole: list[list[int]] = [[], []]
        cache = self._read(decoder, data, whole)
        for _ in range(data.draw(st.integers(1, 6), label="events")):
            event = data.draw(st.sampled_from(["select", "join", "copy", "read"]), label="event")
            if event == "select":
                rows = data.draw(
                    st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4), label="rows"
                )
                cache.select(rows)
                whole = [list(whole[row]) for row in rows]
            elif event == "join" and len(whole) < 5:
                others: list[list[int]] = [
                    [] for _ in range(data.draw(st.integers(1, 2), label="joining"))
                ]
                cache.join(self._read(decoder, data, others))
                whole += others
            elif event == "copy" and cache.can_be_copied:
                row = data.draw(st.integers(0, len(whole) - 1), label="row")
                length = data.draw(st.integers(1, len(whole[row])), label="length")
                kept, own = cache.copy(row, length), [whole[row][:length]]
                same(kept.length_B.tolist(), [length], "copied a row of a cache: length_B")
                kept.reserve([1])
                self._read_more(decoder, kept, data, own, [1])
            else:
                counts = data.draw(
                    st.lists(st.integers(1, 2), min_size=len(whole), max_size=len(whole)),
                    label="tokens",
                )
                counts = [
                    min(count, 24 - len(row)) for count, row in zip(counts, whole, strict=True)
                ]
                if min(counts) > 0:
                    cache.reserve(counts)
                    self._read_more(decoder, cache, data, whole, counts)
            lengths = [len(row) for row in whole]
            same(cache.length_B.tolist(), lengths, f"did {event!r} with a cache: length_B")

    def _read(
        self, decoder: InferenceDecoder, data: st.DataObject, rows: list[list[int]]
    ) -> KVCache:
        counts = data.draw(
            st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows)),
            label="first tokens",
        )
        cache = decoder.allocate_cache(len(rows), max(counts))
        self._read_more(decoder, cache, data, rows, counts)
        return cache

    def _read_more(
        self,
        decoder: InferenceDecoder,
        cache: KVCache,
        data: st.DataObject,
        rows: list[list[int]],
        counts: list[int],
    ) -> None:
        """Read `counts` new tokens per row, compare with the whole row, and append them to `rows`."""
        new_BT = self.tokens(data, len(rows), max(counts))
        states_BTE = decoder.hidden_states(new_BT, cells_BT=self.cells(new_BT), cache=cache)
        cache.advance(counts)
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            row += new_BT[place, :count].tolist()
            self.assert_close(
                states_BTE[place, :count],
                self.plain(torch.tensor([row]))[0, -count:],
                f"read {count} more tokens of a cached row of {len(row) - count}, and all at once",
            )
