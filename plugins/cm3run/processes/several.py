"""Several processes, by torch.distributed: numbers through a group on the host (gloo), the first one's
results through its key-value store."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cm3core.errors import CM3Error, ProcessError
from cm3run.processes.interface import SAME, Processes

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

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


class TorchProcesses(Processes):
    """Several processes, by torch.distributed. Values travel pickled, between processes of one run."""

    #: torchrun waits for 30 s before it kills; a second request comes later than this.
    signal_patience_s = 5.0

    def __init__(
        self,
        store: Any,
        group: Any,
        rank: int,
        world_size: int,
        num_local: int,
        num_restarts: int,
        aside: TorchProcesses | None = None,
    ) -> None:
        self._store, self._group, self._number, self._aside = store, group, 0, aside
        self.rank, self.world_size, self.num_local = rank, world_size, num_local
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
