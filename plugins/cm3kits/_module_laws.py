"""Laws of components that compute with torch: training mode, and tensors on another device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pytest

from cm3core.errors import CM3Error
from cm3kits._findings import LawBroken, difference, holds, shown
from cm3kits._laws import Contract

if TYPE_CHECKING:
    from cm3kits._elsewhere import Moving

T = TypeVar("T")
#: Output -> values; see `ConfigLaws.observe`.
Outputs = dict[str, Any]


class ModuleLaws(Contract[T]):
    """Base of the kits of kinds with configs: what holds of torch modules and of calls with tensors."""

    #: Relative tolerance of output numbers that differ only by rounding.
    output_tolerance: ClassVar[float] = 1e-3

    def modules(self, component: T) -> Sequence[Any]:
        """Return the torch modules that the framework sets to training and evaluation mode: the component, if it is
        one."""
        torch = sys.modules.get("torch")
        return [component] if torch is not None and isinstance(component, torch.nn.Module) else []

    def results(self, component: T) -> Outputs:
        """Return results in the module's present mode."""
        return {}

    def works_elsewhere(self, device: Moving) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield calls of a new component whose tensors are all on another device, each with what it does. None by
        default: what takes and returns arrays keeps its tensors to itself."""
        yield from ()

    def law_training_mode_changes_nothing(self) -> None:
        """A module's results are the same after train() and after eval(), apart from dropout, which the law switches off,
        and from what the config declares in `differs_in_training`."""
        component = self.make_again()
        modules = self.modules(component)
        if not modules:
            return
        found = []
        with without_dropout(), self.building():
            for training in (True, False):
                for module in modules:
                    module.train(training)
                found.append(self.results(component))
        declared = "" if self.config is None else type(self.config).differs_in_training
        change = difference(found[0], found[1], self.output_tolerance)
        holds(
            bool(change) == bool(declared),
            "compared results after train(), without dropout, and after eval()",
            f"other results, as differs_in_training says: {declared!r}"
            if declared
            else "the same results",
            f"{change.got} instead of {change.expected}" if change else "the same results",
            where=change.where if change else "",
            next_step="use self.training for dropout only: a model generates in evaluation mode what it learned in training "
            "mode; if the difference is meant, say what it is in the config's differs_in_training",
        )

    def law_tensors_are_on_the_device(self) -> None:
        """What it computes from tensors of another device stays there: none of its tensors is left on the CPU. Tried on a
        pretended device, without a GPU."""
        if type(self).works_elsewhere is ModuleLaws.works_elsewhere:
            return
        if "torch" not in sys.modules:
            return  # there are no tensors
        from cm3kits._elsewhere import pretended

        did = "built it"
        with self.building(), pretended() as device:
            try:
                for did, call in self.works_elsewhere(device):  # noqa: B007  # named in the finding
                    call()
            except LawBroken as error:
                raise LawBroken(
                    f"{did} with all tensors on another device",
                    error.expected,
                    error.got,
                    error.where,
                    error.next_step,
                ) from None
            except CM3Error:
                raise
            except Exception as error:  # a kernel may need a device of its own
                pytest.skip(f"can't be tried on a pretended device: {shown(error)}")


@contextmanager
def without_dropout() -> Iterator[None]:
    """Context in which torch's dropout leaves its input as it is, also inside attention."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class WithoutDropout(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
            if "dropout" in name:
                return args[0] if args else kwargs["input"]
            if function is functional.scaled_dot_product_attention:
                kwargs["dropout_p"], args = 0.0, (*args[:4],)
            return function(*args, **kwargs)

    with WithoutDropout(), torch.no_grad():
        yield
