"""A pretended CUDA device: tensors on it are fake, those on the CPU are real.

What a program does with it is recorded with its call site: launches, copies, waits, operations that
mix devices, launches while another device is current, and what a CUDA graph can't hold. It shows no
race and no time, and no number that a GPU would compute: values read back are constants.

    with the compiled guard.cpp preloaded: pretend(); with machine() as it: ...; it.log
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
import weakref
from collections import Counter, namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from weakref import WeakSet

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

#: Operations that launch nothing: views, and memory without contents.
FREE = frozenset(
    [
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "device",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "lift_fresh",
        "movedim",
        "narrow",
        "new_empty",
        "new_empty_strided",
        "permute",
        "reshape",
        "resize_",
        "select",
        "set_",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "sym_size",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
    ]
)
#: Operations whose result has as many elements as the values say: the host must wait for them.
WAITING = frozenset(["nonzero", "masked_select", "unique2", "_unique2", "bincount"])
#: What the host reads of tensors on the device.
READ = {torch.bool: True, "integer": 0, "floating": 0.0}
PACKAGES = ("cm3core", "cm3run", "cm3plugins", "cm3kernels", "cm3apps")


@dataclass
class Log:
    """What was done: name or (name, call site) -> how often."""

    launches: Counter[str] = field(default_factory=Counter)
    #: Of the tensors that each launch reads or writes, once each; what a kernel reads again, or a gather
    #: leaves out, is not known.
    num_bytes: int = 0
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    pinned_copies: Counter[str] = field(default_factory=Counter)
    blocking_copies: Counter[str] = field(default_factory=Counter)
    #: CPU tensors in an operation of the device's.
    mixed: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Launches for tensors of a device that was not the current one.
    unguarded: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: What can't be captured, done while capturing.
    uncaptured: Counter[tuple[str, str]] = field(default_factory=Counter)
    replays: int = 0
    #: Launches of each graph that was captured.
    graphs: list[int] = field(default_factory=list)

    @property
    def num_launches(self) -> int:
        return sum(self.launches.values())


class State:
    """Of the one pretended machine in this process."""

    log: ClassVar[Log] = Log()
    #: The memory of tensors on a card, their bytes, and the most that these ever were.
    storages: ClassVar[WeakSet[torch.UntypedStorage]] = WeakSet()
    live: ClassVar[int] = 0
    peak: ClassVar[int] = 0
    current: ClassVar[list[int]] = [0]
    capturing: ClassVar[bool] = False


def call_site(number: int = 2) -> str:
    """The innermost lines of this project's code."""
    found: list[str] = []
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        if own := [place for place, part in enumerate(parts) if part in PACKAGES]:
            found.append(f"{'/'.join(parts[own[-1] :])}:{frame.lineno}")
            if len(found) == number:
                break
    return " < ".join(found)


def on_cuda(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def bytes_of(values: Iterable[Any]) -> int:
    """Of the tensors on a device among the values."""
    return sum(one.numel() * one.element_size() for one in values if on_cuda(one))


def count_memory(values: Iterable[Any]) -> None:
    """Count tensors on a device among the values as live until their memory is freed."""
    for value in filter(on_cuda, values):
        storage = value.untyped_storage()
        if storage not in State.storages:
            State.storages.add(storage)
            weakref.finalize(storage, _freed, storage.nbytes())
            State.live += storage.nbytes()
            State.peak = max(State.peak, State.live)


def _freed(num_bytes: int) -> None:
    State.live -= num_bytes


def check_device(name: str, index: int | None) -> None:
    """Record a launch where another device is current: Triton, streams and graphs take that."""
    if index is not None and index != State.current[-1]:
        State.log.unguarded[name, call_site()] += 1


class _Device:
    def __init__(self, device: Any) -> None:
        self.index = torch.device(device).index if not isinstance(device, int) else device

    def __enter__(self) -> None:
        State.current.append(State.current[-1] if self.index is None else self.index)

    def __exit__(self, *_: object) -> None:
        State.current.pop()


class _Stream:
    def __init__(self) -> None:
        self.index = State.current[-1]

    def wait_stream(self, other: _Stream) -> None:
        check_device("wait_stream", other.index)


class _Graph:
    launches = 0

    def replay(self) -> None:
        check_device("replay", self.index)
        State.log.replays += 1

    def __init__(self) -> None:
        self.index = State.current[-1]


@contextlib.contextmanager
def _capture(graph: _Graph, *, capture_error_mode: str = "global") -> Iterator[None]:
    before, State.capturing = State.log.num_launches, True
    try:
        yield
    finally:
        State.capturing = False
    State.log.graphs.append(State.log.num_launches - before)


def pretend(*, memory: int = 80 << 30) -> None:
    """Two cards in this process from now on, as `torch.cuda` and Triton would say."""
    cuda: Any = torch.cuda
    properties = namedtuple("properties", "total_memory multi_processor_count")
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.is_bf16_supported = lambda including_emulation=True: True
    cuda.get_device_name = lambda device=None: "pretended"
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.get_device_properties = lambda device=None: properties(memory, 132)
    cuda.current_device = lambda: State.current[-1]
    cuda.device_count = lambda: 2
    cuda.manual_seed_all = cuda.manual_seed = lambda seed: None
    cuda.max_memory_allocated = lambda *_: 0
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    cuda.set_rng_state = lambda *_: None
    cuda.is_current_stream_capturing = lambda: State.capturing
    cuda.device = _Device
    cuda.Stream = cuda.current_stream = _Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.CUDAGraph, cuda.graph = _Graph, _capture
    # torch takes its kernels of many tensors for its own types alone
    torch.utils._foreach_utils._foreach_supported_types.append(FakeTensor)
    # random first weights would only cost time
    torch.nn.init.trunc_normal_ = lambda tensor, *_, **options: tensor  # type: ignore[assignment]  # a stand-in
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    for module in (torch.amp, torch.amp.autocast_mode):
        module.is_autocast_available = lambda device: True  # type: ignore[attr-defined]  # a stand-in
    from triton.runtime.jit import JITFunction

    JITFunction.__getitem__ = _launcher


def _launcher(kernel: Any, grid: Any) -> Any:
    """In place of a Triton kernel's launch."""

    def launch(*arguments: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        State.log.launches[name] += 1
        State.log.num_bytes += bytes_of((*arguments, *options.values()))
        for tensor in (*arguments, *options.values()):
            if isinstance(tensor, torch.Tensor):
                if on_cuda(tensor):
                    check_device(name, tensor.fake_device.index)
                else:
                    State.log.mixed[name, call_site()] += 1

    return launch


class _Functions(TorchFunctionMode):
    """What `torch` does before it dispatches."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        to_cuda = device is not None and torch.device(device).type == "cuda"
        if func in (torch.tensor, torch.as_tensor) and to_cuda:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        if func is torch.Tensor.pin_memory:
            args[0].pretended_pinned = True
            return args[0]
        if func is torch.Tensor.tolist and on_cuda(args[0]):
            return func(args[0].cpu())
        if func is torch.Tensor.numpy and on_cuda(args[0]):
            raise TypeError(f"can't convert a CUDA tensor to numpy: {call_site()}")
        return func(*args, **kwargs)


class Pretended(TorchDispatchMode):
    """See `machine`. `log`: since the last `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    @property
    def log(self) -> Log:
        return State.log

    def reset(self) -> None:
        State.log = Log()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        name = func._opname
        if func.namespace == "cm3":  # the kernels' own code, down to its launches
            with self:
                return torch._library.custom_ops.OPDEFS[f"cm3::{name}"]._init_fn(*args, **kwargs)
        if func.namespace == "aten" and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        ours = [value for value in flat if on_cuda(value)]
        hosts = [value for value in flat if isinstance(value, torch.Tensor) and not on_cuda(value)]
        target = next((value for value in flat if isinstance(value, torch.device)), None)
        to_cuda = target is not None and target.type == "cuda"
        if not ours and not to_cuda:
            return func(*args, **kwargs)
        if name in ("uniform_", "normal_", "trunc_normal_", "erfinv_") and ours:
            State.log.launches[name] += 1
            return args[0]
        if ours and (read := self._read(name, args, kwargs, target)) is not None:
            return read[0]
        copied = (name == "_to_copy" and hosts and to_cuda) or (name == "copy_" and ours and hosts)
        if copied:
            self._sent(hosts[0], kwargs)
            if name == "copy_":
                return args[0]
            with self.fake:
                sent = torch.empty(
                    hosts[0].shape, dtype=kwargs.get("dtype") or hosts[0].dtype, device=target
                )
            count_memory([sent])
            return sent
        if ours and any(host.dim() for host in hosts):
            State.log.mixed[name, call_site(3)] += 1
        for tensor in ours:
            tensor.constant = None
        with self.fake:
            result = func(*args, **kwargs)
        count_memory(tree_flatten(result)[0])
        if name not in FREE:
            State.log.launches[name] += 1
            # what is changed in place is among both
            State.log.num_bytes += bytes_of(
                {id(one): one for one in (*flat, *tree_flatten(result)[0])}.values()
            )
        return result

    def _sent(self, host: torch.Tensor, options: Any) -> None:
        pinned = getattr(host, "pretended_pinned", False) and options.get("non_blocking")
        (State.log.pinned_copies if pinned else State.log.blocking_copies)[call_site()] += 1
        if State.capturing:
            State.log.uncaptured["copy to the device", call_site(3)] += 1

    def _read(
        self, name: str, args: Any, options: Any, target: torch.device | None
    ) -> tuple[Any] | None:
        """What the host gets where it waits for the device; None where it does not."""
        tensor = args[0] if isinstance(args[0], torch.Tensor) else None
        to_host = target is not None and target.type == "cpu"
        indexed = name in ("index", "index_put", "index_put_") and any(
            isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)
            for value in args[1]
        )
        moved = name == "_to_copy" and to_host
        into_host = name == "copy_" and not on_cuda(args[0])
        scalar = name in ("_local_scalar_dense", "is_nonzero", "equal")
        if not (moved or into_host or scalar or name in WAITING or indexed):
            return None
        assert tensor is not None
        State.log.waits["boolean index" if indexed else name, call_site()] += 1
        if State.capturing:
            State.log.uncaptured[name, call_site(3)] += 1
        if indexed:
            return None
        if moved:
            dtype = options.get("dtype") or tensor.dtype
            return (torch.full(tuple(tensor.shape), value_of(dtype), dtype=dtype),)
        if into_host:
            return (args[0],)
        if scalar:
            return (True if name != "_local_scalar_dense" else value_of(tensor.dtype),)
        assert name == "nonzero", f"{name} is not pretended"
        with self.fake:
            return (
                torch.empty(
                    tensor.numel(), tensor.dim(), dtype=torch.int64, device=tensor.fake_device
                ),
            )


@contextlib.contextmanager
def machine() -> Iterator[Pretended]:
    """Context in which tensors may be on "cuda:0" and "cuda:1"."""
    # in this order: operations below must not come back through the functions
    with Pretended() as pretended, _Functions():
        yield pretended


def value_of(dtype: torch.dtype) -> Any:
    """What the host reads."""
    if dtype == torch.bool:
        return READ[torch.bool]
    return READ["floating" if dtype.is_floating_point else "integer"]


def end(found: object) -> NoReturn:
    """Print what was found as JSON and end the process without finalising the interpreter: autograd has started threads for
    the pretended devices, and one that asks for the lock of a finalising interpreter ends the process with SIGABRT."""
    print(json.dumps(found), flush=True)
    os._exit(0)
