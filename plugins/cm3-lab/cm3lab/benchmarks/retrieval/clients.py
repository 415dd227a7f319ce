"""`cm3 bench retrieval --postgres --clients N`: how many queries threads of one process get answered by PostgreSQL.

One thread is measured beside N, with a pool of N connections and with a single one. On a machine of few cores, threads
compete with the server for them; `--latency` then shows what a pool is for: each message waits, as on a network, in a
process that forwards them (`forwarding`), and a waiting thread needs no core.

Legend: Q queries, W results per query.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.errors import CM3Error

if TYPE_CHECKING:
    from cm3core.document import Document
    from cm3core.interfaces.embedder import Embedder
    from cm3plugins.retrievers.index.base import RowArray
    from cm3postgres import PgvectorRetrieverConfig

#: Results per query.
WIDTH = 10
#: Seconds of each measurement, after each thread's first queries.
SECONDS, FIRST = 5.0, 3


@dataclass(frozen=True)
class Clients:
    """What to measure.

    Args:
        number: threads that ask at a time.
        latency_ms: milliseconds that each answer comes later, as over a network, in addition to the same without; 0:
            only without.
    """

    number: int
    latency_ms: float = 0.0


def run_clients(
    config: PgvectorRetrieverConfig,
    embedder: Embedder,
    documents: Sequence[Document],
    exact_QW: RowArray,
    asked: Clients,
) -> Iterator[dict[str, Any]]:
    """Yield rows without and with the latency: one thread, all with a connection each, and all with a single one.

    Args:
        config: the retriever, whose memory is filled.
        embedder: embeds the queries.
        documents: the queries.
        exact_QW: the rows that exact search finds, of `WIDTH`.
        asked: threads and latency.
    """
    for latency_ms in [0.0, asked.latency_ms] if asked.latency_ms else [0.0]:
        with _address(config, latency_ms) as address:
            for threads, connections in ((1, 1), (asked.number, asked.number), (asked.number, 1)):
                own = replace(config, **address, num_connections=connections)
                found, times, seconds = _ask_all(own, embedder, documents, threads)
                hits = [len(set(rows) & set(exact_QW[at].tolist())) for at, rows in found.items()]
                yield {
                    "part": "clients",
                    "threads": threads,
                    "connections": connections,
                    "latency_ms": latency_ms,
                    "queries_per_s": len(times) / seconds,
                    "ms": float(np.median(times)),
                    "ms_p99": float(np.percentile(times, 99)),
                    "recall": sum(hits) / (WIDTH * len(found)),
                }


def _ask_all(
    config: PgvectorRetrieverConfig, embedder: Embedder, documents: Sequence[Document], threads: int
) -> tuple[dict[int, list[int]], list[float], float]:
    """Return the rows found by query, the milliseconds of all queries, and the seconds that they took together."""
    memory = config.open_memory()
    retriever = config.build(memory, embedder)
    ready, begin = threading.Barrier(threads + 1), threading.Event()
    found: dict[int, list[int]] = {}
    times: list[float] = []
    errors: list[BaseException] = []

    def ask(first: int) -> None:
        try:
            for at in range(FIRST):
                retriever.retrieve([documents[at]], WIDTH)
            ready.wait()
            begin.wait()
            at = first
            while (start := time.perf_counter()) < until:
                place = at % len(documents)
                rows = [one.index for one in retriever.retrieve([documents[place]], WIDTH)[0]]
                times.append(1e3 * (time.perf_counter() - start))
                found[place] = rows
                at += threads
        except BaseException as error:
            errors.append(error)
            ready.abort()

    asking = [threading.Thread(target=ask, args=(first,)) for first in range(threads)]
    for one in asking:
        one.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    start = time.perf_counter()
    until = start + SECONDS
    begin.set()
    for one in asking:
        one.join()
    seconds = time.perf_counter() - start
    memory.close()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return found, times, seconds


@contextlib.contextmanager
def _address(config: PgvectorRetrieverConfig, latency_ms: float) -> Iterator[dict[str, Any]]:
    """Context with the keys of the address to connect to: the server's own, or that of a process that forwards."""
    if not latency_ms:
        yield {}
        return
    memory = config.open_memory()
    host, port = memory.database.run(
        lambda connection: (connection.info.host, connection.info.port)
    )
    memory.close()
    command = [sys.executable, "-m", f"{__package__}.forwarding", host, str(port), str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            if not told:
                raise CM3Error(
                    "cm3 bench retrieval --latency",
                    "the process that delays messages ended",
                    "see its message above; or leave --latency out",
                )
            yield {"host": "127.0.0.1", "port": int(told)}
        finally:
            process.terminate()


__all__ = ["WIDTH", "Clients", "run_clients"]
