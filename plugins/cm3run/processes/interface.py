"""`Processes`: one process, and the interface to several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: Next step where processes differ.
SAME = "install the same versions, and give all machines the same recipe, data and folders"


class Processes:
    """One process, and the interface to several.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        num_local: processes on this machine.
        num_restarts: how often the launcher has started them again.
        signal_patience_s: seconds in which further stop signals count as the same one: a launcher
            passes on a Ctrl-C that the terminal sent already.
    """

    rank = 0
    world_size = 1
    num_local = 1
    num_restarts = 0
    signal_patience_s = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and talks to the user."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The process group for numbers on the host; None: one process."""
        return None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; of several, on the CPU."""
        return tensor

    def all_of(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return flag

    def agreed(
        self, elapsed_s: float, save: bool, stop: bool, written: bool = True
    ) -> tuple[float, bool, bool, bool]:
        """What all do after a step: the first one's clock, whether it wants to save, whether any
        was told to stop, and whether what is written in the background is written in all."""
        return elapsed_s, save, stop, written

    def aside(self) -> Processes:
        """The same processes, for a thread beside the one that trains: what each of the two says to the
        others is kept apart."""
        return self

    def first(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process; its result, or its error, is that of all."""
        return work()

    def in_turn(self) -> AbstractContextManager[None]:
        """Context that the first process leaves before the others enter it: it fills caches that they
        read. An error in the first one is raised in all."""
        return nullcontext()

    def check_same(self, values: Mapping[str, str], step: str = SAME) -> None:
        """Raise `ProcessError`, in all, where a named value differs between processes; `step`: what to do
        then."""

    def only_first_talks(self) -> AbstractContextManager[None]:
        """Context in which the others print nothing on stderr: notes and warnings are the same."""
        return nullcontext()

    def seed(self, seed: int, step: int) -> int | None:
        """The seed of torch's generator at the start of this process, so that dropout differs between
        processes; None: as it is."""
        return None


def is_divided(tensor: object) -> bool:
    """Whether each process has a part of a tensor (a DTensor)."""
    return hasattr(tensor, "placements")


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself where it is not divided."""
    if not is_divided(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # a DTensor
    return part
