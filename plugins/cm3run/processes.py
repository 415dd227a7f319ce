"""The processes that train one decoder together: this one alone, or those started by torchrun.

Training code talks to a `Processes` and is the same for any number of them: sums over all, values that the first one
decides, work that only the first one does. With one process all answers are its own, and torch.distributed is not
imported. Several processes exchange numbers through a group on the host (gloo), and the first one's results through
its key-value store.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    suppress,
)
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cm3core.errors import CM3Error, DeviceError, ProcessError
from cm3core.files import cache_folder
from cm3run.faults import AlreadyReported

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Processes", "is_divided", "is_lost", "own_part", "started_processes"]


T = TypeVar("T")

#: Next step if processes differ.
SAME = "install the same versions, and give all machines the same recipe, data and folders"


class Processes:
    """The interface to all processes; this class: a single process.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        num_local: processes on this machine.
        num_restarts: how often the launcher has restarted them.
        signal_patience_s: seconds within which further stop signals count as one: a launcher
            passes on a Ctrl-C that the terminal has already sent.
    """

    rank = 0
    world_size = 1
    num_local = 1
    num_restarts = 0
    signal_patience_s = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The process group for numbers on the host; None: a single process."""
        return None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; on the CPU if there are several."""
        return tensor

    def all_of(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def agreed(
        self, elapsed_s: float, save: bool, stop: bool, written: bool = True
    ) -> tuple[float, bool, bool, bool]:
        """What all processes do after a step: the first one's clock and whether it wants to save, whether any
        received a stop signal, and whether all have finished their background writes."""
        return elapsed_s, save, stop, written

    def aside(self) -> Processes:
        """The same processes, for a thread beside the training thread: the messages of the two threads are
        kept apart."""
        return self

    def first(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process; all processes get its result or its error."""
        return work()

    def in_turn(self) -> AbstractContextManager[None]:
        """A context that the first process leaves before the others enter, to fill caches that they
        read. An error in the first process is raised in all."""
        return nullcontext()

    def check_same(self, values: Mapping[str, str], step: str = SAME) -> None:
        """Raise `ProcessError` in all processes if a named value differs between them; `step`: the next
        step."""

    def only_first_talks(self) -> AbstractContextManager[None]:
        """A context in which the other processes print nothing on stderr: their notes and warnings are the same."""
        return nullcontext()

    def seed(self, seed: int, step: int) -> int | None:
        """The seed of torch's generator when this process starts, so that dropout differs between
        processes; None: leave it unchanged."""
        return None

    def before_steps(self) -> str | None:
        """Limit how long GPUs wait for each other in the first step; return a note about it. None: there is no limit."""
        return None

    def after_step(self) -> None:
        """Called after each step: the limit of later steps applies from the first one on."""


def is_divided(tensor: object) -> bool:
    """Whether each process holds a part of a tensor (a DTensor)."""
    return hasattr(tensor, "placements")


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself if it is not divided."""
    if not is_divided(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # a DTensor
    return part


#: Polling interval while waiting for the first process, in seconds.
_PAUSE_S = 0.05
#: How long a process waits for the first one to report the same error, in seconds.
_REPORT_S = 3.0
#: Phrases in torch's errors about a lost connection.
_LOST = ("gloo", "NCCL", "TCPStore", "Connection closed", "Connection reset", "Broken pipe")
#: Next step after a process was lost.
RESUME = (
    "see the output of that process; the same command resumes from the newest checkpoint, and "
    "torchrun --max-restarts does so automatically"
)


@dataclass(frozen=True)
class _Place:
    """This process's position, as set by the launcher."""

    rank: int
    world_size: int
    local_rank: int
    num_local: int

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> _Place | None:
        """None: there is no launcher. Raises `ProcessError` for impossible numbers."""
        if not all(name in environment for name in _VARIABLES):
            return None
        rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        local_rank = _number(environment, "LOCAL_RANK", rank)
        num_local = _number(environment, "LOCAL_WORLD_SIZE", world_size)
        if not (rank < world_size and local_rank < num_local <= world_size):
            raise ProcessError(
                "environment",
                f"RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}, "
                f"LOCAL_WORLD_SIZE={num_local} are inconsistent",
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
    """Several processes, using torch.distributed. Values are pickled between processes of the same run."""

    #: torchrun waits 30 s before it kills; a deliberate second request comes later than this.
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
        self._in_first_step = False

    @property
    def group(self) -> Any:
        return self._group

    @property
    def place(self) -> str:
        """Name of this process in messages."""
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
                        f"has {name} {own.get(name, 'nothing')}, but process 0 on {first_host} has "
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

    def before_steps(self) -> str | None:
        if not _limit_waits(FIRST_STEP):
            return None
        self._in_first_step = True
        traces = Path(os.environ[_TRACES])
        return (
            f"note: a GPU that waits for the others longer than {FIRST_STEP.seconds} s in the first step, or "
            f"{LATER_STEPS.seconds} s later, ends the run. Each process then writes its last operations to "
            f"{traces}RANK on its machine; next: torchfrtrace {traces.parent} -p {traces.name} compares them"
        )

    def after_step(self) -> None:
        if self._in_first_step:
            _limit_waits(LATER_STEPS)
            self._in_first_step = False

    def is_reported(self, error: CM3Error) -> bool:
        """Whether the first process reported the same error, so that it need not be repeated."""
        end = time.monotonic() + _REPORT_S
        try:
            if self.is_first:
                self._store.set("error", str(error))
                # this process may own the store: let the others read it first
                while time.monotonic() < end and self._store.add("read", 0) < self.world_size - 1:
                    time.sleep(_PAUSE_S)
                return False
            while not self._store.check(["error"]) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
            reported = self._store.check(["error"]) and self._store.get("error")
            self._store.add("read", 1)
            return bool(reported == str(error).encode("utf-8", "surrogatepass"))
        except (RuntimeError, UnicodeError):  # the store's process has ended
            return False

    def _key(self) -> str:
        self._number += 1
        return f"first/{self._number}"

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """A context whose errors are passed on to the other processes."""
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
    """Whether an error of torch means that another process was lost."""
    from torch.distributed import DistNetworkError

    return isinstance(error, DistNetworkError) or any(word in str(error) for word in _LOST)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error, without the place in torch's sources."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    if line.startswith("["):
        line = line.partition("] ")[2]
    return line.partition(". ")[0][:200]


#: Variables that torchrun and other launchers set.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Longest wait for the others in a sum. Data preparation has no such limit.
TIMEOUT = timedelta(minutes=30)
#: Longest wait of GPUs for each other in a step. Only the first one loads libraries and compiles. Whatever takes a process
#: longer (data, checkpoints, samples) is waited for on the host.
FIRST_STEP, LATER_STEPS = timedelta(seconds=300), timedelta(seconds=100)
#: Where torch's flight recorder writes after a timeout: the beginning of a path, which the rank follows.
_TRACES = "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"


def _record_operations() -> None:
    """Turn torch's flight recorder on, except for what the user's environment sets. Before the groups are made."""
    run = "".join(c if c.isalnum() else "-" for c in os.environ.get("TORCHELASTIC_RUN_ID", "run"))
    for name, value in {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        _TRACES: str(cache_folder("nccl", run) / "rank-"),
    }.items():
        os.environ.setdefault(name, value)
    with suppress(OSError):  # then torch says that it can't write
        Path(os.environ[_TRACES]).parent.mkdir(parents=True, exist_ok=True)


def _limit_waits(limit: timedelta) -> bool:
    """Set the timeout of all groups of GPUs; return whether there are any. Groups on the host keep theirs."""
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    on_gpus = getattr(dist, "ProcessGroupNCCL", ())  # () if torch was built without NCCL
    gpu, found = torch.device("cuda"), False
    for group in list(c10d._world.pg_map):
        backend: Any = group._get_backend(gpu) if gpu in group._device_types else None
        if isinstance(backend, on_gpus):
            backend._set_default_timeout(limit)  # torch has no public function for this
            found = True
    return found


def _joined(place: _Place, *, on_gpu: bool) -> TorchProcesses:
    """Connect this process to the others that torchrun started. Raises `ProcessError` if they can't be reached."""
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    dist: Any = torch.distributed  # its annotations omit half of its exports
    # torchrun keeps its store across restarts
    restarts = _number(os.environ, "TORCHELASTIC_RESTART_COUNT", 0)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = dist.PrefixStore(f"cm3/{restarts}", store)
        _check_device_kinds(store, place, "GPU" if on_gpu else "CPU")
        if on_gpu:
            _record_operations()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("groups", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=TIMEOUT,
        )
        group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu else dist.group.WORLD
        # for a thread that writes checkpoints during training
        aside = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except CM3Error:  # a subclass of ValueError
        raise
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"process {place.rank} of {place.world_size} on {socket.gethostname()}",
            f"can't reach the other processes ({first_sentence(error)})",
            "check that all machines reach --rdzv-endpoint (or MASTER_ADDR and MASTER_PORT), and "
            "that all processes were started",
        ) from error
    beside = TorchProcesses(dist.PrefixStore("aside", store), aside, place, restarts)
    return TorchProcesses(store, group, place, restarts, beside)


@contextmanager
def started_processes(
    device: str | None = None, *, same: Mapping[str, str] | None = None
) -> Iterator[tuple[Processes, str | None]]:
    """The processes that torchrun started together with this one, or this one alone; and this process's device.

    Args:
        device: as named by the user; with several processes on GPUs, each gets its own.
        same: name -> value of settings that must agree in all processes, such as versions.

    Raises:
        ProcessError: the processes don't belong together, or one was lost.
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
        processes.any(
            False
        )  # keeps the first process, which owns the store, until all have read it
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
    """Raise `ProcessError` in all processes unless all use GPUs or all use CPUs; otherwise they would wait in
    groups that some of them don't have."""
    store.set(f"device/{place.rank}", f"{own} on {socket.gethostname()}")
    keys = [f"device/{rank}" for rank in range(place.world_size)]
    store.wait(keys, TIMEOUT)
    kinds = [kind.decode() for kind in store.multi_get(keys)]
    for rank, kind in enumerate(kinds):
        if kind.split()[0] != kinds[0].split()[0]:
            raise ProcessError(
                f"process {rank} of {place.world_size}",
                f"is on a {kind}, but process 0 is on a {kinds[0]}",
                "set --device cpu or --device cuda: without it, a machine whose GPUs can't be used "
                "falls back to its CPU",
            )


def _own_device(device: str | None, place: _Place) -> str | None:
    """This process's device; of several GPUs, the one with its local rank."""
    import torch

    if device not in (None, "cuda"):
        if str(device).startswith("cuda:"):
            raise DeviceError(
                f"device {device!r}",
                f"is one GPU, but this machine runs {place.num_local} processes",
                "set --device cuda: each process takes its own GPU",
            )
        return device
    if device is None and not torch.cuda.is_available():
        return "cpu"
    number = torch.cuda.device_count()
    if place.local_rank >= number:
        raise DeviceError(
            f"process {place.rank} of {place.world_size} on {socket.gethostname()}",
            f"has no GPU: this machine runs {place.num_local} processes and has {number} GPUs",
            f"start with torchrun --nproc-per-node {number}"
            if number
            else "set --device cpu, or use a machine with GPUs",
        )
    torch.cuda.set_device(place.local_rank)
    return f"cuda:{place.local_rank}"
