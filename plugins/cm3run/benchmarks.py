"""Benchmarks: an op has cases, a reference and providers.

Plugins add ops and providers with the hook `cm3_benchmarks`. A complete addition, which the hook
names as "my_package.benchmarks:add":

    class MyAttention(Provider):
        name = "mine"

        def enabled(self, case, where):
            return None if where.device.type == "cuda" else "is for CUDA"

        def prepare(self, case, inputs):
            return lambda: my_attention(inputs["q"], inputs["k"], inputs["v"])

    def add(registry):
        registry.add_provider("attention", MyAttention())

docs/plugins/reference.md lists the inputs of each op. `registry.add_decoder(MyDecoding)` adds a `DecodeProvider` to
`cm3 bench decode`. Retrievers need no provider: `cm3 bench retrieval --retriever NAME` takes any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from cm3core.errors import CM3Error, close_match

if TYPE_CHECKING:
    import torch

#: The inputs of one call: tensors and settings by name.
Inputs = dict[str, Any]
Size = Literal["full", "quick", "dry"]
#: Codes drawn in a warm-up of `cm3 bench decode`.
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Where:
    """Where and how a benchmark runs.

    device: of the tensors. For a dry run of CUDA without a GPU: the CPU.
    target: "cpu" or "cuda", the device that the benchmark is meant for.
        size: "full", "quick" (fewer cases) or "dry" (tiny cases, nothing is timed).
    """

    device: torch.device
    target: str
    size: Size

    @property
    def dry(self) -> bool:
        return self.size == "dry"


@dataclass(frozen=True)
class Case:
    """One workload.

    Args:
        name: unique within its op; states the shape.
        parameters: determine the inputs.
        dtype: of the inputs.
        num_bytes: minimum bytes read and written: every input and output once.
        flop: useful floating-point operations; 0 if memory traffic is the bottleneck.
    """

    name: str
    parameters: Mapping[str, Any]
    dtype: torch.dtype
    num_bytes: int
    flop: int


@dataclass(frozen=True)
class Verdict:
    """The gate's result: `error` must not exceed `limit`; `what` names the error measure."""

    error: float
    limit: float
    what: str

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


class Provider(ABC):
    """One way to compute an op."""

    #: Unique within its op.
    name: str

    def enabled(self, case: Case, where: Where) -> str | None:
        """Return None if it can run, otherwise the reason in a few words."""
        return None

    @abstractmethod
    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        """Return the function to time, which takes no arguments.

        Plans, compilation and layouts are prepared here and not timed."""


def compiling_refusal(where: Where) -> str | None:
    """Return why compilation is skipped here, or None. Short runs on a CPU skip it."""
    if where.device.type == "cpu" and where.size != "full":
        return "compiling takes ten seconds on a CPU; only the full run does it"
    return None


class TorchProvider(Provider):
    """A function of torch operations, run eagerly or compiled once for all cases."""

    def __init__(self, name: str, function: Callable[[Inputs], Any], compiled: bool) -> None:
        self.name, self._function, self._compiled = (
            f"{name} compiled" if compiled else name,
            function,
            compiled,
        )

    def enabled(self, case: Case, where: Where) -> str | None:
        return compiling_refusal(where) if self._compiled else None

    @cached_property
    def function(self) -> Callable[[Inputs], Any]:
        if not self._compiled:
            return self._function
        import torch

        return torch.compile(self._function, dynamic=False)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        """Return a call of the function on the inputs; override it if the inputs need preparation."""
        function = self.function
        return lambda: function(inputs)


class DecodeProvider(Provider):
    """One way to draw a case's pictures, for `cm3 bench decode`.

    `prepare` gets no inputs, and returns the timed function, which draws `case.parameters["batch"]`
    (or `["candidates"]`) pictures of `case.parameters["tokens"]` codes and returns them, int64 [pictures, tokens] on the CPU.

    Args:
        setup: settings shared by all providers of a run: `size` (of the decoder: `width`, `num_layers`,
            `num_heads`, `num_codes`, ...), `context` (maximum tokens of a prompt and a picture), `device`,
            `dtype` of weights and caches, `threads`.
    """

    def __init__(self, setup: Any) -> None:
        self.setup = setup

    @property
    def number_bytes(self) -> tuple[float, float]:
        """Bytes of one weight and of one value in the cache, for the lower bound."""
        return self.setup.dtype.itemsize, self.setup.dtype.itemsize

    @property
    @abstractmethod
    def trunk_parameters(self) -> int:
        """Weights of the layers, the same number for all providers."""

    @abstractmethod
    def verify(self) -> Verdict:
        """Generate a short sample and check it; a provider that fails is not timed."""

    def warm_up(self, case: Case) -> None:
        """Warm-up before a case's first timed call: the same number of pictures, of a few
        tokens."""
        short = {**case.parameters, "tokens": WARM_UP_TOKENS}
        self.prepare(replace(case, parameters=short), {})()


class Op(ABC):
    """One operation: its workloads, their minimum cost, the reference and the providers."""

    #: Unique among ops.
    name: str
    #: The provider that the others are compared with in the table.
    baseline: str

    def __init__(self) -> None:
        self.providers: list[Provider] = []

    @abstractmethod
    def cases(self, where: Where) -> list[Case]:
        """Return the workloads for this target and size."""

    @abstractmethod
    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        """Return fresh random inputs."""

    @abstractmethod
    def expected(self, case: Case, inputs: Inputs) -> Any:
        """Return the reference result in float64; for large cases a part of it is enough."""

    @abstractmethod
    def gate(self, case: Case, expected: Any, output: Any) -> Verdict:
        """Compare a provider's output with `expected`."""


class BenchmarkRegistry:
    """The ops and their providers. A plain value, passed as an argument."""

    def __init__(self) -> None:
        self.ops: dict[str, Op] = {}
        #: Each makes a provider of `cm3 bench decode` for a run's setup.
        self.decoders: list[Callable[[Any], DecodeProvider]] = []

    def add_decoder(self, make: Callable[[Any], DecodeProvider]) -> None:
        """Add a provider to `cm3 bench decode`: `make(setup)` returns it, so its class will do."""
        self.decoders.append(make)

    def add_op(self, op: Op) -> None:
        """Add an op with its providers. Raises `CM3Error` if the name is used."""
        if op.name in self.ops:
            raise CM3Error(
                f"benchmark {op.name!r}", "another op has this name", "give it another name"
            )
        self.ops[op.name] = op

    def add_provider(self, op: str, provider: Provider) -> None:
        """Add a provider to an op. Raises `CM3Error` if there is no such op or the name is used."""
        if op not in self.ops:
            raise CM3Error(
                f"provider {provider.name!r}",
                f"there is no op {op!r} to benchmark",
                close_match(op, self.ops),
            )
        if provider.name in {other.name for other in self.ops[op].providers}:
            raise CM3Error(
                f"provider {provider.name!r}",
                f"{op} already has a provider with this name",
                "give it another name",
            )
        self.ops[op].providers.append(provider)


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the RMS of the difference over the RMS of the expected values.

    Where the expected values are all zero: the norm of the difference."""
    difference = (output.double() - expected.double()).norm()
    scale = expected.double().norm()
    return float(difference / scale) if scale > 0 else float(difference)
