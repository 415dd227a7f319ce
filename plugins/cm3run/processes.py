"""The processes that train one decoder together: this one alone, or those that torchrun started.

Whoever trains asks a `Processes` and is written once, for any number of them: sums over all, values that
the first one decides, work that only the first one does. With one process every answer is its own, and
torch.distributed is not imported. Several send numbers through a group on the host (gloo), and the first one's results
through its key-value store.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cm3core.errors import CM3Error, DeviceError, ProcessError
from cm3run.faults import AlreadyReported

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Processes", "is_divided", "is_lost", "own_part", "started_processes"]


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


#: Seconds between two looks at whether the first process is done.
_PAUSE_S = 0.05
#: Seconds in which a process waits to see whether the first one reported the same error.
_REPORT_S = 3.0
#: What torch says of a connection that is gone.
_LOST = ("gloo", "NCCL", "TCPStore", "Connection closed", "Connection reset", "Broken pipe")
#: Next step where a process is gone.
RESUME = (
    "see what that process printed; the same command resumes from the newest checkpoint, and "
    "torchrun --max-restarts does that by itself"
)


@dataclass(frozen=True)
class _Place:
    """What the launcher says of this process."""

    rank: int
    world_size: int
    local_rank: int
    num_local: int

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> _Place | None:
        """None: nobody launched several. Raises `ProcessError` for numbers that can't be."""
        if not all(name in environment for name in _VARIABLES):
            return None
        rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        local_rank = _number(environment, "LOCAL_RANK", rank)
        num_local = _number(environment, "LOCAL_WORLD_SIZE", world_size)
        if not (rank < world_size and local_rank < num_local <= world_size):
            raise ProcessError(
                "environment",
                f"RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}, "
                f"LOCAL_WORLD_SIZE={num_local} can't be",
                "start with torchrun, which sets them, or unset them to train in one process",
            )
        return cls(rank, world_size, local_rank, num_local)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isascii() or not text.isdecimal():
        raise ProcessError(
            f"environment variable {name}",
            f"is {text!r}, not a number",
            "start with torchrun, which sets it, or unset it to train in one process",
        )
    return int(text)


class TorchProcesses(Processes):
    """Several processes, by torch.distributed. Values travel pickled, between processes of one run."""

    #: torchrun waits for 30 s before it kills; a second request comes later than this.
    signal_patience_s = 5.0

    def __init__(
        self,
        store: Any,
        group: Any,
        place: _Place,
        num_restarts: int,
        aside: TorchProcesses | None = None,
    ) -> None:
        self._store, self._group, self._number, self._aside = store, group, 0, aside
        self.rank, self.world_size, self.num_local = place.rank, place.world_size, place.num_local
        self.num_restarts = num_restarts

    @property
    def group(self) -> Any:
        return self._group

    @property
    def place(self) -> str:
        """For messages."""
        return f"process {self.rank} of {self.world_size} on {socket.gethostname()}"

    def sum(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        total = tensor.detach().to("cpu", copy=True)
        dist.all_reduce(total, group=self._group)
        return total

    def all_of(self, value: T) -> list[T]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        import torch

        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def agreed(
        self, elapsed_s: float, save: bool, stop: bool, written: bool = True
    ) -> tuple[float, bool, bool, bool]:
        import torch

        decided = (elapsed_s, float(save)) if self.is_first else (0.0, 0.0)
        clock, saving, stopping, writing = self.sum(
            torch.tensor([*decided, float(stop), float(not written)], dtype=torch.float64)
        ).tolist()
        return clock, saving > 0, stopping > 0, writing == 0

    def aside(self) -> Processes:
        assert self._aside is not None
        return self._aside

    def first(self, work: Callable[[], T]) -> T:
        key = self._key()
        if self.is_first:
            with self._told(key):
                result = work()
            self._tell(key, True, result)
            return result
        done: T = self._hear(key)
        return done

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        key = self._key()
        if self.is_first:
            with self._told(key):
                yield
            self._tell(key, True, None)
        else:
            self._hear(key)
            yield

    def check_same(self, values: Mapping[str, str], step: str = SAME) -> None:
        found = self.all_of((socket.gethostname(), dict(values)))
        first_host, wanted = found[0]
        for rank, (host, own) in enumerate(found):
            for name in sorted({*wanted, *own}):
                if own.get(name) != wanted.get(name):
                    raise ProcessError(
                        f"process {rank} of {self.world_size} on {host}",
                        f"has {name} {own.get(name, 'nothing')}, and process 0 on {first_host} has "
                        f"{wanted.get(name, 'nothing')}",
                        step,
                    )

    @contextmanager
    def only_first_talks(self) -> Iterator[None]:
        if self.is_first:
            yield
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            yield

    def seed(self, seed: int, step: int) -> int | None:
        import numpy as np

        if self.is_first:
            return None
        return int(np.random.SeedSequence((seed, step, self.rank)).generate_state(1)[0])

    def is_reported(self, error: CM3Error) -> bool:
        """Whether the first process reported the same error, so that once is enough."""
        end = time.monotonic() + _REPORT_S
        try:
            if self.is_first:
                self._store.set("error", str(error))
                # the store may be this process's: the others read it first
                while time.monotonic() < end and self._store.add("read", 0) < self.world_size - 1:
                    time.sleep(_PAUSE_S)
                return False
            while not self._store.check(["error"]) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
            reported = self._store.check(["error"]) and self._store.get("error")
            self._store.add("read", 1)
            return bool(reported == str(error).encode("utf-8", "surrogatepass"))
        except (RuntimeError, UnicodeError):  # the store went with its process
            return False

    def _key(self) -> str:
        self._number += 1
        return f"first/{self._number}"

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Context whose error the others hear of."""
        try:
            yield
        except CM3Error as error:
            self._tell(key, False, error)
            raise
        except BaseException as error:
            reason = f"failed ({type(error).__name__})"
            self._tell(key, False, ProcessError(self.place, reason, RESUME))
            raise

    def _tell(self, key: str, done: bool, value: object) -> None:
        self._store.set(key, pickle.dumps((done, value)))

    def _hear(self, key: str) -> Any:
        while not self._store.check([key]):
            time.sleep(_PAUSE_S)
        done, value = pickle.loads(self._store.get(key))
        if not done:
            raise value
        return value


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone."""
    from torch.distributed import DistNetworkError

    return isinstance(error, DistNetworkError) or any(word in str(error) for word in _LOST)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error, without the place in torch's sources."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    if line.startswith("["):
        line = line.partition("] ")[2]
    return line.partition(". ")[0][:200]


#: What torchrun and other launchers set.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Longest time that a process waits for the others in a sum. Preparing data has no such limit.
TIMEOUT = timedelta(minutes=30)


def _joined(place: _Place, *, on_gpu: bool) -> TorchProcesses:
    """This process as one of those that torchrun started. Raises `ProcessError` when it can't reach them."""
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    dist: Any = torch.distributed  # whose annotations leave out half of what it exports
    # torchrun keeps its store when it starts processes again
    restarts = _number(os.environ, "TORCHELASTIC_RESTART_COUNT", 0)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = dist.PrefixStore(f"cm3/{restarts}", store)
        _check_device_kinds(store, place, "GPU" if on_gpu else "CPU")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("groups", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=TIMEOUT,
        )
        group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu else dist.group.WORLD
        # of a thread that writes checkpoints while this one trains
        aside = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except CM3Error:  # which are ValueErrors
        raise
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"process {place.rank} of {place.world_size} on {socket.gethostname()}",
            f"can't reach the others ({first_sentence(error)})",
            "check that all machines reach --rdzv-endpoint (or MASTER_ADDR and MASTER_PORT), and "
            "that all of them were started",
        ) from error
    beside = TorchProcesses(dist.PrefixStore("aside", store), aside, place, restarts)
    return TorchProcesses(store, group, place, restarts, beside)


@contextmanager
def started_processes(
    device: str | None = None, *, same: Mapping[str, str] | None = None
) -> Iterator[tuple[Processes, str | None]]:
    """The processes that torchrun started with this one, or this one alone; and this one's device.

    Args:
        device: as the user named it; of several processes on GPUs, each gets its own.
        same: name -> value of what has to be the same in all, such as versions.

    Raises:
        ProcessError: the processes don't belong together, or another one is gone.
        DeviceError: there are fewer GPUs than processes.
    """
    place = _Place.find(os.environ)
    if place is None or place.world_size == 1:
        yield Processes(), device
        return
    import torch
    from torch.distributed import destroy_process_group

    own = _own_device(device, place)
    processes = _joined(place, on_gpu=own is not None and own.startswith("cuda"))
    try:
        processes.check_same({"torch version": torch.__version__, **(same or {})})
        yield processes, own
        processes.any(False)  # the first one keeps the store until all have read it
    except CM3Error as error:
        if processes.is_reported(error):
            raise AlreadyReported(2) from None
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise ProcessError(
            processes.place,
            f"lost the connection to another process, which ended or was killed ({first_sentence(error)})",
            RESUME,
        ) from error
    destroy_process_group()


def _check_device_kinds(store: Any, place: _Place, own: str) -> None:
    """Raise `ProcessError`, in all, unless all processes are on GPUs or all on CPUs: they would wait in
    groups that the others don't have."""
    store.set(f"device/{place.rank}", f"{own} on {socket.gethostname()}")
    keys = [f"device/{rank}" for rank in range(place.world_size)]
    store.wait(keys, TIMEOUT)
    kinds = [kind.decode() for kind in store.multi_get(keys)]
    for rank, kind in enumerate(kinds):
        if kind.split()[0] != kinds[0].split()[0]:
            raise ProcessError(
                f"process {rank} of {place.world_size}",
                f"is on a {kind}, and process 0 on a {kinds[0]}",
                "write --device cpu or --device cuda: without it, a machine whose GPUs can't be used "
                "takes its CPU",
            )


def _own_device(device: str | None, place: _Place) -> str | None:
    """This process's device: of GPUs, the one of its number on its machine."""
    import torch

    if device not in (None, "cuda"):
        if str(device).startswith("cuda:"):
            raise DeviceError(
                f"device {device!r}",
                f"is one GPU for {place.num_local} processes of this machine",
                "write --device cuda: each process takes its own",
            )
        return device
    if device is None and not torch.cuda.is_available():
        return "cpu"
    number = torch.cuda.device_count()
    if place.local_rank >= number:
        raise DeviceError(
            f"process {place.rank} of {place.world_size} on {socket.gethostname()}",
            f"has no GPU: there are {place.num_local} processes on this machine, and {number} GPUs",
            f"start with torchrun --nproc-per-node {number}"
            if number
            else "write --device cpu, or use a machine with GPUs",
        )
    torch.cuda.set_device(place.local_rank)
    return f"cuda:{place.local_rank}"
