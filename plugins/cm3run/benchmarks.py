"""Benchmarks: an op has shapes, a reference and providers.

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

A provider computes the forward pass; the benchmark takes the gradients by autograd, where a case has a backward.
docs/plugins/reference.md lists the inputs of each op. `registry.add_decoder(MyDecoding)` adds a `DecodeProvider` to
`cm3 bench decode`. Attention backends and retrievers need no provider: `cm3 bench kernels --op attention` times every
registered backend, and `cm3 bench retrieval --retriever NAME` takes any retriever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.errors import CM3Error, close_match

if TYPE_CHECKING:
    import torch

#: The inputs of one call: tensors and settings by name.
Inputs = dict[str, Any]
Size = Literal["full", "quick", "dry"]
#: What is timed: the forward pass, the gradients given a finished forward pass, or both one after the other.
Direction = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
#: A workload of an op: its keys with their values.
Shape = Mapping[str, int | str]
#: Largest whole number in a shape.
LARGEST = 2**31 - 1
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
        name: unique within its op, dtype and direction; states the shape.
        parameters: determine the inputs.
        dtype: of the inputs.
        num_bytes: minimum bytes read and written: in each pass every input and output once.
        flop: useful floating-point operations; 0 if memory traffic is the bottleneck.
        direction: what is timed.
    """

    name: str
    parameters: Mapping[str, Any]
    dtype: torch.dtype
    num_bytes: int
    flop: int
    direction: Direction = "forward"


@dataclass(frozen=True)
class ShapeKey:
    """A key of an op's shapes.

    Args:
        meaning: in a few words, such as "tokens of a row".
        choices: the words that it may be; empty: a whole number from 1.
    """

    meaning: str
    choices: tuple[str, ...] = ()

    def value(self, text: str) -> int | str:
        """Read a value. Raises `ValueError` that says what it must be."""
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"must be one of {', '.join(self.choices)}")
            return text
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:11]) <= LARGEST):
            raise ValueError(f"must be a whole number from 1 to {LARGEST:,}")
        return int(text)


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
        """Return the function to time, which takes no arguments: the forward pass.

        Plans, compilation and layouts are prepared here and not timed. For a case with a backward, `directed` takes
        the gradients of what the function returns, a tensor."""


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
    """One operation: its shapes, their minimum cost, the reference and the providers."""

    #: Unique among ops.
    name: str
    #: The provider that the others are compared with in the table.
    baseline: str
    #: The keys of its shapes.
    keys: ClassVar[Mapping[str, ShapeKey]]
    #: Dtypes that it is measured in, as in `torch` without the prefix -> largest error of a result.
    limits: ClassVar[Mapping[str, float]]
    #: The inputs with a gradient; none: it has no backward. The input "grad" is the gradient of the result, None or
    #: absent for a loss.
    gradients: tuple[str, ...] = ()
    #: The formulas of `cost`, in the keys and w, the bytes of an element.
    costs: str

    def __init__(self) -> None:
        self.providers: list[Provider] = []

    @property
    def directions(self) -> tuple[Direction, ...]:
        return DIRECTIONS if self.gradients else ("forward",)

    @abstractmethod
    def shapes(self, where: Where) -> Sequence[Shape]:
        """Return the workloads that are measured by default; the first has the defaults of the keys. Empty: not measured
        on this device."""

    @abstractmethod
    def cost(self, shape: Shape, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        """Return the minimum bytes and the useful operations of the forward pass, or of the backward."""

    @abstractmethod
    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        """Return fresh random inputs."""

    @abstractmethod
    def reference(self, case: Case, inputs: Inputs) -> Any:
        """Return the forward pass of float64 inputs."""

    def refusal(self, shape: Shape) -> str | None:
        """Return why values don't fit each other; None if they do."""
        return None

    def reference_bytes(self, case: Case) -> int:
        """Return about how much memory the reference takes."""
        return 4 * case.num_bytes

    def dtypes(self, where: Where) -> Sequence[str]:
        """Return the dtypes that are measured by default."""
        return ("bfloat16",) if where.target == "cuda" and not where.dry else ("float32",)

    def case(self, shape: Shape, dtype: str, direction: Direction) -> Case:
        """Return the case of a shape that has all keys. The cost of both passes is their sum."""
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        passes = {"forward": (False,), "backward": (True,), "both": (False, True)}[direction]
        costs = [self.cost(shape, kind, backward=backward) for backward in passes]
        name = ",".join(f"{key}={value}" for key, value in shape.items())
        num_bytes, flop = (sum(parts) for parts in zip(*costs, strict=True))
        return Case(name, dict(shape), kind, num_bytes, flop, direction)

    def cases(
        self,
        where: Where,
        shapes: Sequence[Shape] = (),
        dtypes: Sequence[str] = (),
        directions: Sequence[Direction] = (),
    ) -> list[Case]:
        """Return the cases of these shapes, dtypes and directions; empty: the default ones, and every direction but the
        backward alone."""
        return [
            self.case(shape, dtype, direction)
            for shape in shapes or self.shapes(where)
            for dtype in dtypes or self.dtypes(where)
            for direction in directions or [one for one in self.directions if one != "backward"]
        ]

    def expected(self, case: Case, inputs: Inputs) -> Any:
        """Return the reference result in float64; for large cases a part of it is enough."""
        doubled = in_float64(inputs, self.gradients if case.direction != "forward" else ())
        return directed(self, case, doubled, lambda: self.reference(case, doubled))()

    def gate(self, case: Case, expected: Any, output: Any) -> Verdict:
        """Compare a provider's output with `expected`: the largest relative error of its tensors."""
        pairs = zip(_tensors(output), _tensors(expected), strict=True)
        error = max(relative_error(one, right) for one, right in pairs)
        return Verdict(error, self.limits[str(case.dtype).removeprefix("torch.")], "relative error")


def _tensors(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def in_float64(inputs: Inputs, gradients: Sequence[str] = ()) -> Inputs:
    """Return copies of the floating tensors in float64, those named with a gradient; the rest as it is."""
    doubled = {
        name: value.detach().double().clone() if _floats(value) else value
        for name, value in inputs.items()
    }
    for name in gradients:
        doubled[name].requires_grad_()
    return doubled


def _floats(value: Any) -> bool:
    return bool(getattr(value, "is_floating_point", lambda: False)())


def directed(op: Op, case: Case, inputs: Inputs, forward: Callable[[], Any]) -> Callable[[], Any]:
    """Return the timed function of a case.

    forward: as it is. both: the forward pass and its gradients, (result, *gradients). backward: the gradients alone, of
    one forward pass that is done here and whose graph is kept.
    """
    if case.direction == "forward":
        return forward
    import torch

    wanted = [inputs[name] for name in op.gradients]

    def gradients(result: torch.Tensor, *, keep: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(result, wanted, inputs.get("grad"), retain_graph=keep)

    if case.direction == "backward":
        kept = forward()
        return lambda: gradients(kept, keep=True)

    def both() -> tuple[torch.Tensor, ...]:
        result = forward()
        return (result.detach(), *gradients(result, keep=False))

    return both


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
