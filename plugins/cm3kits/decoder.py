"""Conformance kit of decoders: causality, equality with and without cache, isolation of packed documents.

    class TestMine(DecoderContract):
        config = MyConfig(context_length=32, ...)

The kit works in float64 on weights perturbed after initialisation, so that branches that start at
zero have an effect. `attention` is the kit's dense oracle; override it to test a decoder with
another backend. Legend: B rows, T tokens, E model dimension, V ids.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import nn

from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder, TrainingPass
from cm3kits._cache_laws import CacheLaws
from cm3kits._findings import differ, doing, holds, refuses, same
from cm3kits._laws import presupposes
from cm3kits._module_laws import Outputs
from cm3kits._work import check_growth, work_of

if TYPE_CHECKING:
    from cm3kits._elsewhere import Moving

#: Cached tokens behind which a step's work is counted.
_CACHED = (128, 256, 512)


class DecoderContract(CacheLaws):
    """Laws of `Decoder` and its cache.

    The config must describe a tiny decoder with a context of at least 24 tokens.
    """

    kind: ClassVar[str] = "decoder"

    def members(self, component: Decoder) -> Iterator[type[Any]]:
        """Also those of its decoder for inference and of its cache."""
        yield from super().members(component)
        arranged, cache = self.arranged()
        yield from (type(arranged), type(cache))

    def declared(self, component: Decoder) -> Iterator[tuple[str, bool, str, Any]]:
        """Pictures that it can predict, and memory of training."""
        if self.config is not None:
            with doing("called check_pictures with the pictures that it was built for"):
                self.config.check_pictures(self.grid, self.vocabulary.num_image)
            one = TrainingPass(rows=1, length=8, itemsize=4)
            memory = self.config.training_memory(self.vocabulary, self.grid, one)
            if memory is not None:
                total = sum(parameter.numel() for parameter in component.module.parameters())
                own = memory.matrix_parameters + memory.other_parameters
                yield "training_memory: parameters", own == total, f"{total} together", own
                yield (
                    "training_memory: activations",
                    memory.activations > 0,
                    "above 0",
                    memory.activations,
                )

    def modules(self, component: Decoder) -> Sequence[Any]:
        """Return its module."""
        return [component.module]

    def results(self, component: Decoder) -> Outputs:
        """Return states, logits and losses in the module's mode."""
        tokens_BT = torch.arange(24).view(2, 12) * 5 % self.vocabulary.size
        states_BTE = component.hidden_states(tokens_BT, cells_BT=self.cells(tokens_BT))
        ones_N = torch.ones(24)
        loss, _ = component.loss_sums(
            states_BTE.flatten(0, 1), tokens_BT.flatten(), ones_N, ones_N.to(torch.int8)
        )
        return {"states": states_BTE, "logits": component.logits(states_BTE), "loss": loss}

    def works_elsewhere(self, device: Moving) -> Iterator[tuple[str, Callable[[], object]]]:
        """States, logits, losses, and steps with a cache."""
        decoder = self.make_again()
        decoder.module.eval()
        device.move(decoder.module)
        tokens_BT = device.moved(torch.arange(10).view(2, 5))
        cells_BT = device.moved(self.cells(torch.arange(10).view(2, 5)))
        zeros_BT = torch.zeros_like(tokens_BT)
        yield (
            "computed states and logits",
            lambda: decoder.logits(decoder.hidden_states(tokens_BT, cells_BT=cells_BT)),
        )
        yield (
            "computed states of packed documents",
            lambda: decoder.hidden_states(
                tokens_BT, positions_BT=zeros_BT, cells_BT=cells_BT, kv_start_BT=zeros_BT
            ),
        )
        states_NE = decoder.hidden_states(tokens_BT).flatten(0, 1)
        ones_N = torch.ones(10, device=device.device)
        yield (
            "computed losses",
            lambda: decoder.loss_sums(
                states_NE, tokens_BT.flatten(), ones_N, ones_N.to(torch.int8)
            ),
        )
        arranged = decoder.for_inference()
        cache = arranged.allocate_cache(2, 8)

        def steps() -> None:
            arranged.hidden_states(tokens_BT, cells_BT=cells_BT, cache=cache)
            cache.advance([5, 4])
            cache.select([1, 0])
            cache.reserve([2, 2])
            states_B1E = arranged.hidden_states(tokens_BT[:, :1], cache=cache)
            cache.advance([1, 1])
            arranged.logits(states_B1E, self.vocabulary.image)
            own = cache.length_B.device
            holds(own == device.device, "looked at length_B", "on the decoder's device", str(own))

        yield "read tokens with a cache", steps

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
    def law_the_whole_context_is_read(self) -> None:
        """A row of exactly `context_length` tokens is read at once and with a cache, and one of a token less; padding of a
        chunk may reach past the end."""
        length = self.decoder.context_length
        tokens_BT = torch.arange(length)[None] * 7 % self.vocabulary.size
        did = f"read a row of context_length, {length} tokens"
        with doing(did):
            whole = self.plain(tokens_BT)
        holds(whole.isfinite().all(), did, "finite states", whole)
        self.assert_close(
            self.plain(tokens_BT[:, :-1]), whole[:, :-1], f"{did}, and of one token less"
        )
        arranged = self.decoder.for_inference()
        cache = arranged.allocate_cache(1, length)
        self.read(arranged, cache, tokens_BT[:, :-1])
        cache.advance([length - 1])
        padded_BT = torch.cat([tokens_BT[:, -1:], tokens_BT[:, :2]], 1)
        last = self.read(arranged, cache, padded_BT)[:, :1]
        cache.advance([1])
        self.assert_close(
            last,
            whole[:, -1:],
            f"{did} with a cache, the last one in a chunk with padding, and at once",
        )

    @torch.no_grad()
    def law_every_id_has_its_own_state(self) -> None:
        """The first and the last ids of the vocabulary, of texts and of image codes have states of their own, and
        logits."""
        size = self.vocabulary.size
        places = {0, 1, size - 2, size - 1}
        for own in (self.vocabulary.text, self.vocabulary.image):
            places |= {own.start, own.stop - 1}
        ids = sorted(places)
        tokens_BT = torch.tensor(ids)[:, None]
        states_BE = self.decoder.hidden_states(tokens_BT)[:, 0]
        for first, second in itertools.pairwise(range(len(ids))):
            did = f"read the ids {ids[first]} and {ids[second]} alone, of a vocab_size of {size}"
            differ(states_BE[first], states_BE[second], did, "two states")
        logits = self.decoder.logits(states_BE)
        holds(
            logits.isfinite().all(),
            "computed logits of the ids at both ends",
            "finite numbers",
            logits,
        )

    @torch.no_grad()
    def law_a_step_costs_what_it_reads(self) -> None:
        """The work of one token behind n cached ones is at most proportional to n, counted up to 512 tokens if the config
        takes such a context."""
        if self.config is None:
            return
        try:
            config = dataclasses.replace(self.config, context_length=_CACHED[-1] + 8)
            config.check()
            decoder = self.build(config)
        except Exception:  # rejected by any error
            return
        decoder.module.eval()
        arranged = decoder.for_inference()
        works = {}
        for length in _CACHED:
            tokens_BT = torch.arange(length)[None] % self.vocabulary.size
            cache = arranged.allocate_cache(1, length + 1)
            self.read(arranged, cache, tokens_BT)
            cache.advance([length])
            one_BT = tokens_BT[:, :1]
            works[length] = work_of(partial(self.read, arranged, cache, one_BT))
        check_growth(works, "cached tokens", "read one token")

    @torch.no_grad()
    def law_what_it_declares_is_so(self) -> None:
        """`builds_without_weights`: built on the device "meta" it takes the parameters of another one; `sharded_blocks` are
        its own modules; a codebook can be taken; sizes of the config are numbers; `training_keys` are keys."""
        decoder = self.make_again()
        inside = {id(one) for one in decoder.module.modules()}
        for block in decoder.sharded_blocks():
            holds(
                id(block) in inside,
                "looked at sharded_blocks()",
                "modules of its own",
                type(block).__name__,
            )
        vectors = torch.randn(
            self.vocabulary.num_image, 6, generator=torch.Generator().manual_seed(0)
        )
        decoder.start_from_codebook(vectors, self.vocabulary)
        for name, parameter in decoder.module.named_parameters():
            did = f"called start_from_codebook, and looked at {name}"
            holds(parameter.isfinite().all(), did, "finite numbers", parameter)
        if self.config is not None:
            self._check_config(decoder)

    def _check_config(self, decoder: Decoder) -> None:
        """Raise unless the config's declarations are those of a built decoder."""
        config = self.config
        keys = {one.name for one in dataclasses.fields(config)}
        for key in config.training_keys:
            holds(key in keys, "looked at training_keys", f"one of {', '.join(sorted(keys))}", key)
        holds(
            config.codes_together >= 1,
            "looked at codes_together",
            "1 or more",
            config.codes_together,
        )
        head = config.attention_head_dim()
        holds(
            head is None or head > 0, "asked for attention_head_dim()", "None, or more than 0", head
        )
        few, many = config.cache_bytes(8, 2), config.cache_bytes(16, 4)
        good = few is None or (many is not None and 0 < few <= many)
        holds(
            good,
            "asked for cache_bytes of 8 tokens, and of 16 wider ones",
            "None, or growing numbers",
            (few, many),
        )
        if not config.builds_without_weights:
            return
        with torch.device("meta"):
            empty = self.build(config)
        did = 'built it on the device "meta", as builds_without_weights says'
        for name, one in [*empty.module.named_parameters(), *empty.module.named_buffers()]:
            holds(one.is_meta, f"{did}, and looked at {name}", "no values", str(one.device))
        empty.module.load_state_dict(decoder.module.state_dict(), assign=True)
        tokens_BT = torch.arange(6)[None]
        empty.module.eval()
        decoder.module.eval()
        states, wanted = empty.hidden_states(tokens_BT), decoder.hidden_states(tokens_BT)
        same(
            states,
            wanted,
            f"{did}, gave it the parameters of another one, and compared states",
            tolerance=1e-5,
        )

    @presupposes("a_cache_is_read_from_its_first_token", "training_mode_changes_nothing")
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
