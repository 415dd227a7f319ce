"""A pretended device: its tensors have values, computed on the CPU, and an operation that mixes them with tensors that
were left on the CPU is refused, as a GPU would.

    with pretended() as device:
        elsewhere = device.moved(tensor)
        elsewhere.device  # meta: the pretended device's name, and that of no tensor with values
        elsewhere + torch.ones(3)  # raises LawBroken, with the line that did so
        elsewhere + torch.ones(3, device=elsewhere.device)  # right

Needs no GPU and no compiler. The name is "meta", since code that chooses a kernel by "cuda" must not find that here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cm3kits._findings import LawBroken
from cm3kits._sources import calling_line

#: The pretended device.
DEVICE = torch.device("meta")
#: Operations that may mix devices: copies between them, and indices, which torch moves itself.
_MAY_MIX = frozenset(
    ["_to_copy", "to", "type_as", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"]
)


class Elsewhere(Tensor):
    """A tensor on the pretended device. `held`: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        # outside of inference mode, whose tensors torch lets nobody write to
        with torch.inference_mode(False):
            made: Elsewhere = cls._wrapped(values)
        made.held = values
        return made

    @classmethod
    def _wrapped(cls, values: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        return made

    def __init__(self, values: Tensor) -> None:
        pass

    def tolist(self) -> Any:
        """Return the values, as a GPU's tensor does."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as a GPU's tensor does, unless `force` copies it."""
        if force:
            return self.held.numpy()
        raise LawBroken(
            "called it with all tensors on another device",
            "a copy to the CPU before numpy",
            "numpy() of a tensor there",
            calling_line(),
            "write x.cpu().numpy(), or compute with torch",
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: object) -> str:  # type: ignore[override]  # torch's has an argument
        return f"{self.held!r} on the pretended device"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own has no types
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(operation, args, kwargs or {})


def _computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; its result is on the device of its tensors, or on the one it names."""
    name = operation.__name__.partition(".")[0]
    flat = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    here = [one for one in flat if not isinstance(one, Elsewhere) and one.ndim > 0]
    there = [one for one in flat if isinstance(one, Elsewhere)]
    if there and here and name not in _MAY_MIX:
        dtype = str(here[0].dtype).removeprefix("torch.")
        raise LawBroken(
            "called it with all tensors on another device",
            "operations on that device alone",
            f"{name} of a tensor there and of {dtype} {list(here[0].shape)} on the cpu",
            calling_line(),
            "create tensors on the device of the inputs or parameters: torch.zeros(n, device=x.device)",
        )
    if any(one.is_meta for one in flat if not isinstance(one, Elsewhere)):
        pytest.skip(
            f"can't be tried here: {name} reads a tensor that has no values on the pretended device"
        )
    # in inference mode, torch passes `to` with the device in its place
    devices = [one for one in (*args, kwargs.get("device")) if isinstance(one, (torch.device, str))]
    device = devices[-1] if devices and (name == "to" or "device" in kwargs) else None
    leaves = there if device is None else torch.device(device) == DEVICE
    if device is not None:
        args = [torch.device("cpu") if isinstance(one, torch.device) else one for one in args]
        kwargs = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs
    elif name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
        leaves = isinstance(args[1], Elsewhere)
    inside = tree_map(_values_of, (args, kwargs))
    out = operation(*inside[0], **inside[1])
    if name in ("copy_", "index_put_", "_index_put_impl_"):
        leaves = isinstance(args[0], Elsewhere)
    if not leaves:
        return out
    # an operation in place returns the tensor that it was given
    given = {id(one.held): one for one in there}
    return tree_map(lambda one: given.get(id(one)) if id(one) in given else _placed(one), out)


def _placed(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) else value


def _values_of(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


class _Making(TorchDispatchMode):
    """Makes new tensors on the pretended device where it is named."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(operation, args, kwargs or {})


#: Functions that copy Python values to a device before any operation is called.
_OF_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


#: Functions whose lists of places become tensors before any operation is called.
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


def _index(value: Any) -> Any:
    """Return an index with tensors, which torch moves itself, in place of lists."""
    if isinstance(value, tuple):
        return tuple(_index(one) for one in value)
    return torch.tensor(value) if isinstance(value, list) else value


class _Copying(TorchFunctionMode):
    """Copies Python values to the pretended device where it is named."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _INDEXING:
            return function(args[0], _index(args[1]), *args[2:], **kwargs)
        if function not in _OF_VALUES or isinstance(args[-1], Tensor):
            return function(*args, **kwargs)
        own = args[0].device if function is Tensor.new_tensor else "cpu"
        there = torch.device(kwargs.get("device") or own) == DEVICE
        if function is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, **kwargs}
        made = torch.tensor(args[-1], **{**kwargs, "device": "cpu"})
        return Elsewhere(made) if there else made


class Moving:
    """Moves tensors and modules to the pretended device."""

    device = DEVICE

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a copy of the tensor there."""
        return Elsewhere(tensor.detach().clone())

    def move(self, module: nn.Module) -> None:
        """Move a module's parameters and buffers, in place."""
        for part in module.modules():
            for name, one in part._parameters.items():
                if one is not None:
                    part._parameters[name] = nn.Parameter(self.moved(one), requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.moved(buffer)

    def back(self, tensor: Tensor) -> Tensor:
        """Return the values on the CPU."""
        return _values_of(tensor)  # type: ignore[no-any-return]  # a tensor


@contextmanager
def pretended() -> Iterator[Moving]:
    """Context in which the device can be named."""
    asked = torch.is_autocast_enabled

    def enabled(device_type: str | None = None) -> bool:
        """Whether autocast is on, which torch can't say of this device: it is off."""
        if device_type == DEVICE.type:
            return False
        return asked() if device_type is None else asked(device_type)

    def autocast(device_type: str, *rest: Any, **options: Any) -> Any:
        """Return torch's context, which doesn't know this device: there it changes nothing."""
        return nullcontext() if device_type == DEVICE.type else cast(device_type, *rest, **options)

    cast = torch.autocast
    making: Any = _Making()  # type: ignore[no-untyped-call]  # torch's
    with (
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(torch, "is_autocast_enabled", enabled),
        making,
        _Copying(),
        torch.no_grad(),
    ):
        yield Moving()
