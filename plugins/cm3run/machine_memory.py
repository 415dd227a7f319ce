"""How much memory this process may use, and errors when it runs out. No torch."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cm3core.errors import DeviceError

#: Environment variable: memory in GB (10^9 bytes). Overrides what the machine reports, for example because of swap, a
#: limit that is not enforced, or another machine.
VARIABLE = "CM3_MEMORY_GB"
#: Phrases in torch's error messages when memory runs out.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "could not create a memory object",
)


@dataclass(frozen=True)
class MachineMemory:
    """The memory that this process may use, in bytes.

    Args:
        limit: maximum; None: unknown.
        source: what sets the limit, in words.
        swap: bytes of swap beyond the limit.
        free: bytes available now without swapping; None: unknown.
    """

    limit: int | None
    source: str
    swap: int = 0
    free: int | None = None

    def shared(self, number: int) -> MachineMemory:
        """An equal share of it, for `number` processes that each use as much."""
        if number == 1:
            return self

        def part(size: int | None) -> int | None:
            return None if size is None else size // number

        source = f"a process's part of {self.source}" if self.source else ""
        return MachineMemory(part(self.limit), source, self.swap // number, part(self.free))

    @classmethod
    def find(cls) -> MachineMemory:
        """The CPU's memory. Raises `DeviceError` if `CM3_MEMORY_GB` is not a valid number of GB."""
        if (given := given_limit()) is not None:
            return cls(given, VARIABLE)
        limits = [(machine, "this machine")] if (machine := _physical()) is not None else []
        limits += [(limit, "this process's control group") for limit in group_limits()]
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append((soft, "the limit on address space (ulimit -v)"))
        if not limits:
            return cls(None, "")
        limit, source = min(limits)
        known = _meminfo()
        free = known.get("MemAvailable")
        return cls(
            limit,
            source,
            known.get("SwapTotal", 0) if source == "this machine" else 0,
            None if free is None else min(free, limit),
        )


def given_limit() -> int | None:
    """The value of `CM3_MEMORY_GB` in bytes; None if unset."""
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    try:
        limit = int(float(given) * 1e9)
    except (ValueError, OverflowError):  # text, not a number, infinite
        limit = -1
        cause = "is not a number of GB"
    else:
        cause = "is not greater than 0"
    if limit <= 0:
        raise DeviceError(
            f"{VARIABLE}={given}", cause, "use a number of GB such as 64, or unset it"
        )
    return limit


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not reported on this system
        return None


def _meminfo(path: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """Name -> bytes; empty if the system has no such file."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    values = {}
    for line in lines:
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if number.isdecimal() and unit == "kB":
            values[name] = int(number) * 1024
    return values


def group_limits(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Memory limits in bytes of this process's control groups and all their ancestors.

    Linux only, versions 1 and 2.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                value = (place / name).read_text(encoding="ascii").strip()
                limits += [int(value)] if value.isdecimal() else []  # "max" means no limit
    return limits


def address_space() -> int:
    """Bytes of this process's address space; 0 if the system does not report it."""
    if not sys.platform.startswith("linux"):
        return 0
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    Linux reports it for the current program alone. `getrusage`, used on other systems, also counts the process before
    it became this program: a copy of its parent."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        # bytes on macOS, kilobytes elsewhere
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class's name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def fitting_memory(
    place: str, next_step: str = "choose smaller sizes, or a larger machine"
) -> Iterator[None]:
    """Raise `DeviceError` if memory runs out, instead of the errors of Python or torch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            place, f"does not fit into memory ({first_line(error)})", next_step
        ) from error
