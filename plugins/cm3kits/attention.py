"""Conformance kit of attention backends: equal to a dense oracle, forward and backward.

    class TestMine(AttentionContract):
        config = MyAttentionConfig()

Legend: B rows, T queries, S keys, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.errors import DeviceError
from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import doing, every, holds, same
from cm3kits._laws import presupposes
from cm3kits._module_laws import Outputs
from cm3kits._work import check_growth, work_of

if TYPE_CHECKING:
    from cm3kits._elsewhere import Moving


def dense_attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    kv_start_BT: Tensor | None = None,
    offset_B: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute the oracle: one query at a time over the visible keys, in the inputs' dtype.

    Deliberately slow.
    """
    B, T, H, D = q_BTHD.shape
    K = k_BSKD.shape[2]
    starts = None if kv_start_BT is None else kv_start_BT.tolist()
    offsets = None if offset_B is None else offset_B.tolist()
    out = []
    for b in range(B):
        for i in range(T):
            first = 0 if starts is None else starts[b][i]
            stop = i + 1 + (0 if offsets is None else offsets[b])
            k_KSD = k_BSKD[b, first:stop].transpose(0, 1)
            v_KSD = v_BSKD[b, first:stop].transpose(0, 1)
            q_KGD = q_BTHD[b, i].view(K, H // K, D)  # neighbouring heads share a head of keys
            scores_KGS = q_KGD @ k_KSD.mT * (D**-0.5 if scale is None else scale)
            out.append(scores_KGS.softmax(-1) @ v_KSD)  # no visible keys: an empty sum, zeros
    return torch.stack(out).view(B, T, H, D)


class DenseAttention(AttentionBackend):
    """`dense_attention` as a backend, for tests of decoders."""

    def attend(
        self,
        q_BTHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        *,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        scale: float | None = None,
        plan: Any = None,
    ) -> Tensor:
        return dense_attention(q_BTHD, k_BSKD, v_BSKD, kv_start_BT, offset_B, scale)


@dataclass
class AttentionCase:
    """Inputs of one call, in float64."""

    q_BTHD: Tensor
    k_BSKD: Tensor
    v_BSKD: Tensor
    kv_start_BT: Tensor | None
    offset_B: Tensor | None
    scale: float | None

    def call(self, backend: AttentionBackend, dtype: torch.dtype, **options: Any) -> Tensor:
        """Return the backend's result for the inputs in `dtype`."""
        return backend.attend(
            self.q_BTHD.to(dtype),
            self.k_BSKD.to(dtype),
            self.v_BSKD.to(dtype),
            scale=self.scale,
            kv_start_BT=self.kv_start_BT,
            offset_B=self.offset_B,
            **options,
        )

    def told(self) -> str:
        """Describe the call."""
        B, T, H, D = self.q_BTHD.shape
        S, K = self.k_BSKD.shape[1:3]
        told = f"{B} rows of {T} queries and {S} keys, {H} heads of {D} over {K} of keys"
        if self.kv_start_BT is not None:
            told += f", kv_start {self.kv_start_BT.tolist()}"
        return told if self.offset_B is None else f"{told}, offset {self.offset_B.tolist()}"

    def expected(self) -> Tensor:
        """Return the oracle's result."""
        return dense_attention(
            self.q_BTHD, self.k_BSKD, self.v_BSKD, self.kv_start_BT, self.offset_B, self.scale
        )


class AttentionContract(ConfigLaws[AttentionBackend]):
    """Laws of the visibility rule.

    Override `dtype`, `tolerance` and `head_dims` for a backend that does not support them all.
    """

    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 2e-5
    head_dims: ClassVar[tuple[int, ...]] = (8, 32, 64)
    kind: ClassVar[str] = "attention"
    max_examples: ClassVar[int | None] = 15

    def build(self, config: Any) -> AttentionBackend:
        """See `AttentionConfig.build`."""
        backend: AttentionBackend = config.build()
        return backend

    def case(self, data: st.DataObject, *, cached: bool, max_tokens: int = 9) -> AttentionCase:
        """Draw a random call; with `cached`, rows have different lengths and unread slots after them."""
        B, T = (
            data.draw(st.integers(1, 3), label="B"),
            data.draw(st.integers(1, max_tokens), label="T"),
        )
        K, group = (
            data.draw(st.integers(1, 2), label="K"),
            data.draw(st.integers(1, 3), label="H / K"),
        )
        D = data.draw(st.sampled_from(self.head_dims), label="D")
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
        S, offset_B = T, None
        if cached:
            S = T + data.draw(st.integers(0, max_tokens), label="S - T")
            offset_B = torch.randint(0, S - T + 1, (B,), generator=generator)
        kv_start_BT = None
        if data.draw(st.booleans(), label="kv_start"):
            last_BT = torch.arange(T) + (
                torch.zeros(B, 1, dtype=torch.int64) if offset_B is None else offset_B[:, None]
            )
            kv_start_BT = (torch.rand(B, T, generator=generator) * (last_BT + 1)).long()
        q, k, v = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((B, T, K * group, D), (B, S, K, D), (B, S, K, D))
        )
        return AttentionCase(
            q, k, v, kv_start_BT, offset_B, data.draw(st.sampled_from([None, 0.3]), label="scale")
        )

    def observe(self, component: AttentionBackend) -> Outputs:
        """Return results of a plain call and of one with a cache."""
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(2, 9, heads, self.head_dims[0], generator=generator, dtype=torch.float64)
            for heads in (4, 2, 2)
        )
        starts_BT = torch.tensor([[0] * 9, [0, 0, 0, 3, 3, 3, 6, 7, 7]])
        plain = AttentionCase(q, k, v, starts_BT, None, None)
        cached = AttentionCase(q[:, :2], k, v, None, torch.tensor([7, 3]), 0.3)
        return {
            "is_plain_softmax": str(component.is_plain_softmax),
            "results": plain.call(component, self.dtype).double().numpy(),
            "results with a cache": cached.call(component, self.dtype).double().numpy(),
        }

    def assert_close(self, actual: Tensor, expected: Tensor, did: str = "attended") -> None:
        """Raise unless a result equals a float64 one within the kit's tolerance."""
        same(
            actual.double(),
            expected.double(),
            f"{did} in {str(self.dtype).removeprefix('torch.')}, and by a dense oracle in float64",
            tolerance=self.tolerance,
        )

    def declared(self, component: AttentionBackend) -> Iterator[tuple[str, bool, str, Any]]:
        """Bytes, devices, and sizes of heads."""
        config = self.config
        if config is None:
            return
        few, many = config.kept_bytes(1, 8, 2, 4), config.kept_bytes(2, 16, 2, 4)
        yield (
            "kept_bytes of more and longer rows",
            0 <= few <= many,
            "0 or more, growing",
            (few, many),
        )
        chosen = config.for_device("cpu")
        yield (
            'for_device("cpu")',
            isinstance(chosen, AttentionConfig),
            "a config",
            type(chosen).__name__,
        )
        largest = config.largest_head_dim
        yield (
            "largest_head_dim",
            largest is None or largest >= max(self.head_dims),
            f"None, or {max(self.head_dims)} or more",
            largest,
        )
        with suppress(DeviceError), doing('called check_training("cpu")'):
            config.check_training("cpu")

    def works_elsewhere(self, device: Moving) -> Iterator[tuple[str, Callable[[], object]]]:
        """A plain call with starts, and one with a cache, with and without a plan."""
        backend = self.make_again()
        q, k, v = (device.moved(one.repeat(2, 2, 1, 1)) for one in self._qkv())
        starts_BT = device.moved(torch.tensor([[0] * 8, [0, 0, 0, 3, 3, 3, 6, 7]]))
        offset_B = device.moved(torch.tensor([6, 3]))
        yield "attended", lambda: backend.attend(q, k, v, kv_start_BT=starts_BT)
        for planned in (False, True):
            plan = backend.plan(num_queries=2, num_keys=8, offset_B=offset_B) if planned else None
            yield (
                f"attended with a cache, {'with' if planned else 'without'} a plan",
                lambda plan=plan: backend.attend(q[:, :2], k, v, offset_B=offset_B, plan=plan),  # type: ignore[misc]  # a default
            )

    @torch.no_grad()
    def law_a_query_costs_what_it_sees(self) -> None:
        """The work of one query over n keys is at most proportional to n."""
        works, D = {}, self.head_dims[0]
        for size in (128, 256, 512):
            k = torch.randn(1, size, 2, D, generator=torch.Generator().manual_seed(0)).to(
                self.dtype
            )
            offset_B = torch.tensor([size - 1])
            works[size] = work_of(
                lambda k=k, offset_B=offset_B: self.subject.attend(  # type: ignore[misc]  # defaults
                    k[:, :1], k, k, offset_B=offset_B
                )
            )
        check_growth(works, "keys", "attended one query")

    @presupposes("training_mode_changes_nothing")
    def law_equals_the_oracle(self, data: st.DataObject) -> None:
        """Plain causal and packed rows."""
        case = self.case(data, cached=False)
        out = case.call(self.subject, self.dtype)
        holds(out.dtype == self.dtype, "attended", str(self.dtype), str(out.dtype))
        self.assert_close(out, case.expected(), f"attended {case.told()}")

    @presupposes("equals_the_oracle")
    def law_cached_rows_equal_the_oracle(self, data: st.DataObject) -> None:
        """Rows at their own lengths in a longer cache, one query or many."""
        case = self.case(
            data, cached=True, max_tokens=data.draw(st.sampled_from([1, 9]), label="most queries")
        )
        out = case.call(self.subject, self.dtype)
        self.assert_close(out, case.expected(), f"attended {case.told()}")

    @presupposes("equals_the_oracle")
    def law_starts_of_32_bits_and_strided_inputs(self, data: st.DataObject) -> None:
        """int32 `kv_start`, and q, k and v as strided views with last stride 1: the same result."""
        case = self.case(data, cached=False)
        expected = case.call(self.subject, self.dtype)
        if case.kv_start_BT is not None:
            case.kv_start_BT = case.kv_start_BT.int()
        case.q_BTHD, case.k_BSKD, case.v_BSKD = (
            torch.cat([x, x + 1], 2).to(self.dtype)[:, :, : x.shape[2]]
            for x in (case.q_BTHD, case.k_BSKD, case.v_BSKD)
        )
        same(
            case.call(self.subject, self.dtype).double(),
            expected.double(),
            f"attended {case.told()}, and the same as strided views with int32 starts",
            tolerance=self.tolerance,
        )

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Queries, keys, values, starts and offsets are unchanged."""
        case = self.case(data, cached=data.draw(st.booleans(), label="cached"))
        inputs = {
            "queries": case.q_BTHD.to(self.dtype),
            "keys": case.k_BSKD.to(self.dtype),
            "values": case.v_BSKD.to(self.dtype),
        }
        before = {name: x.clone() for name, x in inputs.items()}
        others = {"kv_start": case.kv_start_BT, "offset": case.offset_B}
        before |= {name: x.clone() for name, x in others.items() if x is not None}
        self.subject.attend(
            *inputs.values(),
            kv_start_BT=case.kv_start_BT,
            offset_B=case.offset_B,
            scale=case.scale,
        )
        for name, old in before.items():
            now = (inputs | others)[name]
            same(now, old, f"attended {case.told()}, and looked at the {name} given")

    @presupposes("equals_the_oracle")
    def law_a_plan_changes_nothing(self, data: st.DataObject) -> None:
        """`attend` with a plan equals `attend` without."""
        case = self.case(data, cached=data.draw(st.booleans(), label="cached"))
        plan = self.subject.plan(
            num_queries=case.q_BTHD.shape[1],
            num_keys=case.k_BSKD.shape[1],
            kv_start_BT=case.kv_start_BT,
            offset_B=case.offset_B,
        )
        out = case.call(self.subject, self.dtype, plan=plan)
        self.assert_close(out, case.expected(), f"attended {case.told()} with a plan")

    @presupposes("equals_the_oracle")
    def law_gradients_equal_the_oracles(self, data: st.DataObject) -> None:
        """Of q, k and v, against float64 autograd through the oracle."""
        case = self.case(data, cached=False, max_tokens=7)
        inputs = [case.q_BTHD, case.k_BSKD, case.v_BSKD]
        weight = torch.randn(
            case.q_BTHD.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        for tensor in inputs:
            tensor.requires_grad_()
        expected = torch.autograd.grad((case.expected() * weight).sum(), inputs)
        actual = torch.autograd.grad(
            (case.call(self.subject, self.dtype).double() * weight).sum(), inputs
        )
        names = ("queries", "keys", "values")
        for name, ours, oracles in zip(names, actual, expected, strict=True):
            self.assert_close(ours, oracles, f"took gradients of the {name} ({case.told()})")

    def law_unseen_keys_change_nothing(self, data: st.DataObject) -> None:
        """Slots past a row's queries may hold anything finite."""
        case = self.case(data, cached=True)
        assert case.offset_B is not None
        before = case.call(self.subject, self.dtype)
        T, S = case.q_BTHD.shape[1], case.k_BSKD.shape[1]
        unseen_BS = torch.arange(S) >= (case.offset_B + T)[:, None]
        case.k_BSKD[unseen_BS], case.v_BSKD[unseen_BS] = 1e3, -1e3
        same(
            case.call(self.subject, self.dtype).double(),
            before.double(),
            f"attended {case.told()}, and again with other keys and values past the queries",
            tolerance=1e-6,
        )

    @torch.no_grad()
    def law_a_query_that_sees_nothing_gives_zeros(self) -> None:
        """Padding: zeros, never NaN."""
        q, k, v = self._qkv()
        out = self.subject.attend(q, k, v, kv_start_BT=torch.tensor([[0, 0, 3, 4]]))
        did = "attended with kv_start [0, 0, 3, 4]"
        padding = out[0, 2:].double()
        every(padding, padding == 0, f"{did}: queries 2 and 3 see no key", "zeros")
        holds(out[0, :2].any(), f"{did}: queries 0 and 1 see keys", "not zeros", "zeros")

    def law_gradients_of_padding_are_finite(self) -> None:
        """Gradients are finite even where a query sees no keys."""
        q, k, v = (x.requires_grad_() for x in self._qkv())
        self.subject.attend(q, k, v, kv_start_BT=torch.tensor([[0, 0, 3, 4]])).sum().backward()
        for name, x in (("queries", q), ("keys", k), ("values", v)):
            did = f"took gradients of the {name} where queries 2 and 3 see no key"
            holds(x.grad is not None, did, "a gradient", "none")
            assert x.grad is not None
            every(x.grad.double(), x.grad.isfinite(), did, "finite numbers")

    def _qkv(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(1, 4, 2, self.head_dims[0], generator=generator, dtype=self.dtype)
            for _ in range(3)
        ]
