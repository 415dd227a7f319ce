"""Conformance kit of decoders: causality, equality with and without cache, isolation of packed documents.

    class TestMine(DecoderContract):
        config = MyConfig(context_length=32, ...)

The kit works in float64 on weights perturbed after initialisation, so that branches that start at
zero have an effect. `attention` is the kit's dense oracle; override it to test a decoder with
another backend. Legend: B rows, T tokens, E model dimension, V ids.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, InferenceDecoder, KVCache
from cm3core.vocab import Vocabulary
from cm3kits._config_laws import ConfigLaws, Outputs
from cm3kits._findings import differ, holds, refuses, same
from cm3kits.attention import DenseAttention
from cm3kits.samples import make_vocabulary


class DecoderContract(ConfigLaws[Decoder]):
    """Laws of `Decoder` and its cache.

    The config must describe a tiny decoder with a context of at least 24 tokens.
    """

    kind: ClassVar[str] = "decoder"
    vocabulary: ClassVar[Vocabulary] = make_vocabulary(26, 16, 4, num_unused=6)
    grid: ClassVar[tuple[int, int]] = (4, 4)
    attention: ClassVar[AttentionBackend] = DenseAttention()
    tolerance: ClassVar[float] = 1e-9
    max_examples: ClassVar[int | None] = 8
    _trained: ClassVar[bool]

    def build(self, config: Any) -> Decoder:
        """Build for the kit's vocabulary, attention and grid, from a fixed seed.

        torch's global generator is not changed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            decoder: Decoder = config.build(self.vocabulary, self.attention, self.grid)
        return decoder

    @property
    def decoder(self) -> Decoder:
        """The subject in float64 and evaluation mode, with noise added to every parameter.

        Created once per test class.
        """
        subject = self.subject
        if "_trained" not in type(self).__dict__:
            module = subject.module
            module.double().eval()
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(
                        0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    )
            type(self)._trained = True
        return subject

    def tokens(self, data: st.DataObject, B: int, T: int) -> Tensor:
        """Draw random ids [B, T]."""
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="tokens"))
        return torch.randint(0, self.vocabulary.size, (B, T), generator=generator)

    def cells(self, tokens_BT: Tensor) -> Tensor:
        """Return a cell for each image code, with a position if the decoder takes any; -1 elsewhere."""
        code_BT = tokens_BT - self.vocabulary.image.start
        is_code_BT = (code_BT >= 0) & (code_BT < self.vocabulary.num_image)
        axes = {} if self.config is None else self.config.position_axes()
        position_BT = code_BT * 11 % prod(axes.values())
        number = self.grid[0] * self.grid[1]
        return torch.where(is_code_BT, (code_BT * 7 + 3) % number + number * position_BT, -1)

    def observe(self, component: Decoder) -> Outputs:
        """Return states and logits in evaluation and training, a cache, sizes, groups of parameters."""
        tokens_BT = torch.arange(24).view(2, 12) * 5 % self.vocabulary.size
        cells_BT, module = self.cells(tokens_BT), component.module
        found: Outputs = {
            "context_length": component.context_length,
            "groups of parameters": {
                name: sum(one.numel() for one in group)
                for name, group in component.parameter_groups().items()
            },
        }
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            generator = torch.Generator().manual_seed(0)
            for parameter in module.parameters():
                parameter.add_(
                    0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                )
            for name, training in (("evaluation", False), ("training", True)):
                torch.manual_seed(0)
                module.train(training)
                states_BTE = component.hidden_states(tokens_BT, cells_BT=cells_BT)
                found[f"states in {name}"] = states_BTE
                found[f"logits in {name}"] = component.logits(states_BTE)
            module.eval()
            far_BT = tokens_BT[:, :4] * 0 + 7 + torch.arange(4)
            last = component.context_length - 4
            found["states at the end of the context"] = component.hidden_states(
                far_BT, positions_BT=torch.arange(last, last + 4).expand_as(far_BT)
            )
        return found

    def assert_close(
        self, actual: Tensor, expected: Tensor, did: str = "computed states in two ways"
    ) -> None:
        """Raise unless they are equal up to the rounding of float64 sums."""
        same(actual, expected, did, tolerance=self.tolerance)

    def plain(self, tokens_BT: Tensor) -> Tensor:
        """Compute hidden states without cache or packing."""
        return self.decoder.hidden_states(tokens_BT, cells_BT=self.cells(tokens_BT))

    @torch.no_grad()
    def law_a_later_token_never_changes_an_earlier_state(self, data: st.DataObject) -> None:
        """Causality; the state of the changed position does change."""
        tokens_BT = self.tokens(data, 2, 12)
        changed = data.draw(st.integers(1, 11), label="changed position")
        other_BT = tokens_BT.clone()
        other_BT[:, changed:] = (other_BT[:, changed:] + 1) % self.vocabulary.size
        before, after = self.plain(tokens_BT), self.plain(other_BT)
        did = f"changed the tokens from position {changed} on, and compared the states "
        self.assert_close(after[:, :changed], before[:, :changed], f"{did}before it")
        differ(after[:, changed], before[:, changed], f"{did}at it", "other states")

    @torch.no_grad()
    def law_positions_and_cells_have_defaults(self, data: st.DataObject) -> None:
        """Default positions are 0..T-1, cells -1, starts 0; and the input is not written to."""
        tokens_BT = self.tokens(data, 2, data.draw(st.integers(1, 8), label="T"))
        positions_BT, before_BT = (
            torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT),
            tokens_BT.clone(),
        )
        states_BTE = self.decoder.hidden_states(tokens_BT)
        explicit_BTE = self.decoder.hidden_states(
            tokens_BT,
            positions_BT=positions_BT,
            cells_BT=torch.full_like(tokens_BT, -1),
            kv_start_BT=torch.zeros_like(tokens_BT),
        )
        did = "computed states without positions, cells and starts, and with 0..T-1, -1 and 0"
        self.assert_close(states_BTE, explicit_BTE, did)
        same(tokens_BT, before_BT, "computed states, and looked at the tokens given")

    def law_sizes_are_as_stated(self) -> None:
        """`vocab_size`, the head's shape and the config's number of parameters are right."""
        decoder = self.decoder
        same(decoder.vocab_size, self.vocabulary.size, "compared vocab_size with the vocabulary's")
        state_BTE = self.plain(torch.zeros(1, 1, dtype=torch.int64))
        rows = decoder.vocab_size - len(decoder.own_head or ())
        shape = list(decoder.head_weight().shape)
        same(shape, [rows, state_BTE.shape[-1]], "looked at the shape of head_weight()")
        if self.config is not None:
            length = self.config.context_length
            same(decoder.context_length, length, "compared context_length with the config's")
            stated = self.config.num_parameters(self.vocabulary, self.grid)
            number = sum(p.numel() for p in decoder.module.parameters())
            did = "counted parameters without building, and in the module"
            holds(stated in (None, number), did, f"{number}, or None: not known", stated)

    @torch.no_grad()
    def law_a_full_cache_takes_no_more(self) -> None:
        """Advancing a row beyond its reserved room raises an error."""
        arranged = self.decoder.for_inference()
        cache = arranged.allocate_cache(2, 4)
        same(cache.length_B.tolist(), [0, 0], "looked at length_B of a new cache")
        dtype = cache.length_B.dtype
        holds(dtype == torch.int64, "looked at the type of length_B", "int64", str(dtype))
        arranged.hidden_states(torch.arange(8).view(2, 4), cache=cache)
        cache.advance([4, 3])
        did = "advanced a row of a cache of 4 tokens by a million"
        refuses(lambda: cache.advance([1 << 20, 0]), did, GenerationError)
        same(cache.length_B.tolist(), [4, 3], f"{did}, and looked at length_B")

    @torch.no_grad()
    def law_inference_equals_training(self, data: st.DataObject) -> None:
        """`for_inference` gives the same states and logits; an unknown precision raises an error."""
        tokens_BT = self.tokens(data, 2, 6)
        arranged = self.decoder.for_inference()
        did = "arranged it for inference, and compared "
        device = str(self.decoder.head_weight().device)
        same(str(arranged.device), device, f"{did}the device")
        for name in ("vocab_size", "context_length"):
            same(getattr(arranged, name), getattr(self.decoder, name), did + name)
        states_BTE = arranged.hidden_states(
            tokens_BT, cells_BT=self.cells(tokens_BT), cache=arranged.allocate_cache(2, 6)
        )
        self.assert_close(states_BTE, self.plain(tokens_BT), f"{did}the states")
        logits = self.decoder.logits(states_BTE)
        self.assert_close(arranged.logits(states_BTE), logits, f"{did}the logits")
        refuses(
            lambda: self.decoder.for_inference("fp3"),
            "arranged it for inference in the precision 'fp3'",
            GenerationError,
        )

    @torch.no_grad()
    def law_rows_are_independent(self, data: st.DataObject) -> None:
        """A row has the same states in a batch as alone."""
        tokens_BT = self.tokens(data, 3, data.draw(st.integers(1, 10), label="T"))
        alone = self.plain(tokens_BT[1:2])
        self.assert_close(self.plain(tokens_BT)[1:2], alone, "computed a row among 3, and alone")

    @torch.no_grad()
    def law_every_earlier_token_counts(self) -> None:
        """The first token affects the last state, i.e. attention works."""
        tokens_BT = torch.arange(10)[None]
        other_BT = tokens_BT.clone()
        other_BT[0, 0] = 11
        holds(
            not torch.allclose(self.plain(tokens_BT)[:, -1], self.plain(other_BT)[:, -1]),
            "changed the first of 10 tokens, and compared the last state",
            "another state",
            "the same state",
            next_step="check that attention sees all earlier keys",
        )

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

    @torch.no_grad()
    def law_documents_packed_into_a_row_are_isolated(self, data: st.DataObject) -> None:
        """With restarting positions and kv_start, packed documents have the same states as alone."""
        lengths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=3), label="documents")
        tokens_BT = self.tokens(data, 1, sum(lengths))
        starts_BT = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])[
            None
        ]
        positions_BT, cells_BT = torch.arange(sum(lengths))[None] - starts_BT, self.cells(tokens_BT)
        alone = torch.cat([self.plain(part) for part in torch.split(tokens_BT, lengths, dim=1)], 1)
        packed = self.decoder.hidden_states(
            tokens_BT, positions_BT=positions_BT, cells_BT=cells_BT, kv_start_BT=starts_BT
        )
        did = f"packed documents of {lengths} tokens into a row, and read each alone"
        self.assert_close(packed, alone, did)

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

    @torch.no_grad()
    def law_logits_of_a_range_are_a_slice(self, data: st.DataObject) -> None:
        """The head over a range of ids equals a slice of the full head, which is `head_weight` for all ids without
        a separate head."""
        hidden = self.plain(self.tokens(data, 1, 3))
        full = self.decoder.logits(hidden)
        same(list(full.shape), [1, 3, self.vocabulary.size], "computed logits of 3 states")
        own = self.decoder.own_head or range(0)
        others = torch.cat([full[..., : own.start], full[..., own.stop :]], -1) if own else full
        did = "computed logits, and states times head_weight()"
        self.assert_close(others, hidden @ self.decoder.head_weight().T, did)
        start = data.draw(st.integers(0, self.vocabulary.size - 1), label="start")
        stop = data.draw(st.integers(start + 1, self.vocabulary.size), label="stop")
        part = self.decoder.logits(hidden, range(start, stop))
        did = f"computed logits of the ids {start}..{stop - 1}, and of all"
        self.assert_close(part, full[..., start:stop], did)

    def law_loss_is_that_of_the_logits(self, data: st.DataObject) -> None:
        """`loss_sums` equals the logits' weighted cross entropy with z loss, groups and gradients, over the ids
        that share the target's head, and its slot."""
        hidden_NE = self.plain(self.tokens(data, 1, 9))[0].detach().requires_grad_()
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="targets"))
        targets_N = torch.randint(0, self.vocabulary.size, (9,), generator=generator)
        weights_N = torch.tensor([1.0, 0.0, 2.0] * 3, dtype=torch.float64)
        groups_N = torch.tensor([0, 1, 2] * 3, dtype=torch.int8)
        z_loss = data.draw(st.sampled_from([0.0, 0.01]), label="z_loss")
        logits_NV = self.decoder.logits(hidden_NE)
        apart = self.decoder.slots or (self.decoder.own_head or range(0),)
        ids_V = torch.arange(self.vocabulary.size)
        for ids in apart:
            is_own_N, is_own_V = (
                (one >= ids.start) & (one < ids.stop) for one in (targets_N, ids_V)
            )
            logits_NV = logits_NV.masked_fill(is_own_N[:, None] != is_own_V, -torch.inf)
        nll_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        expected = (weights_N * (nll_N + z_loss * logits_NV.logsumexp(1).square())).sum()
        head = self.decoder.head_weight()
        wanted = torch.autograd.grad(expected, (hidden_NE, head))
        loss, sums_G2 = self.decoder.loss_sums(
            hidden_NE, targets_N, weights_N, groups_N, num_groups=3, z_loss=z_loss
        )
        found = torch.autograd.grad(loss, (hidden_NE, head))
        names = ("the loss", "its gradient of the states", "its gradient of the head")
        for name, actual, right in zip(names, (loss, *found), (expected, *wanted), strict=True):
            did = f"computed {name} by loss_sums, and of the logits, with z_loss {z_loss}"
            self.assert_close(actual, right, did)
        unweighted = found[0][1::3]
        zeros = torch.zeros_like(unweighted)
        same(unweighted, zeros, "took gradients of the states whose weight is 0")
        right_G2 = torch.stack(
            [
                torch.stack([(weights_N * nll_N)[g::3].sum(), weights_N[g::3].sum()])
                for g in range(3)
            ]
        )
        same(list(sums_G2.shape), [3, 2], "summed losses and weights of 3 groups")
        self.assert_close(sums_G2, right_G2.detach(), "summed losses and weights of 3 groups")

    def law_gradient_reaches_every_parameter(self) -> None:
        """Every parameter is in exactly one optimiser group and gets a non-zero gradient."""
        module = self.decoder.module
        tokens_BT = torch.arange(20).repeat(2, 1) + torch.tensor([[0], [20]])
        logits = self.decoder.logits(self.plain(tokens_BT))
        module.zero_grad()
        nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
        ).backward()
        for name, parameter in module.named_parameters():
            did, advice = f"took the loss's gradient of {name}", "use it, or remove it"
            given = parameter.grad is not None
            holds(given, did, "a gradient", f"{name} gets no gradient", next_step=advice)
            assert parameter.grad is not None
            moved = bool(parameter.grad.any())
            holds(moved, did, "not zero", f"{name} gets a zero gradient", next_step=advice)
        names = {id(p): name for name, p in module.named_parameters()}
        counts = dict.fromkeys(names.values(), 0)
        for group in self.decoder.parameter_groups().values():
            for one in group:
                name = names.get(id(one), "another one")
                counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            did = f"looked for {name} in parameter_groups()"
            same(count, 1, f"{did}: each parameter belongs to one group")
