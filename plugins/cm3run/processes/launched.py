"""What a launcher says of this process, and joining the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cm3core.errors import CM3Error, DeviceError, ProcessError
from cm3core.faults import AlreadyReported
from cm3run.processes.interface import Processes
from cm3run.processes.several import RESUME, TorchProcesses, first_sentence, is_lost

#: What torchrun and other launchers set.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Longest time that a process waits for the others in a sum. Preparing data has no such limit.
TIMEOUT = timedelta(minutes=30)


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
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    dist: Any = torch.distributed  # whose annotations leave out half of what it exports
    own = _own_device(device, place)
    on_gpu = own is not None and own.startswith("cuda")
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
    numbers = (place.rank, place.world_size, place.num_local, restarts)
    processes = TorchProcesses(
        store,
        group,
        *numbers,
        aside=TorchProcesses(dist.PrefixStore("aside", store), aside, *numbers),
    )
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
    dist.destroy_process_group()


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
