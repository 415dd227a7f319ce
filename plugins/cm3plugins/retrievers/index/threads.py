"""How many threads engines take: as many as torch, whose pool is another one; together they would exceed the machine."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def num_threads() -> int:
    """What torch has; before torch is imported what OMP_NUM_THREADS says, else all cores."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1


def faiss_module() -> ModuleType:
    """faiss, with that many threads for calls from this thread."""
    import faiss

    faiss.omp_set_num_threads(num_threads())
    module: ModuleType = faiss
    return module
