"""The connections of a process to a memory's database: a pool of psycopg_pool, which threads borrow from.

A pool opens connections in threads of its own, and reports a failure to open one only to its log. `_Pooled` keeps the
error, so that `Connections.taken` can raise it at once and with its cause. A forked process starts an empty pool.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from cm3core.errors import DatabaseError

if TYPE_CHECKING:
    from cm3postgres.options import ConnectionOptions

Connection = psycopg.Connection[tuple[object, ...]]

#: Seconds between two looks at whether opening a connection failed.
_LOOK = 0.05
#: Seconds after which an unused connection is closed.
_UNUSED = 300.0

# its warnings repeat what the errors say, and would be printed without a handler
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())


@dataclass
class _Failures:
    """The number of failed attempts to open a connection, and the last one's error."""

    count: int = 0
    last: Exception | None = None


class _Pooled(psycopg.Connection[tuple[object, ...]]):
    """A connection whose failure to open is kept, with the type `vector`."""

    @classmethod
    def connect(cls, conninfo: str = "", *, failures: _Failures, **kwargs: Any) -> _Pooled:  # type: ignore[override]  # for a pool with these arguments
        try:
            connection = super().connect(conninfo, **kwargs)
            try:
                with suppress(psycopg.ProgrammingError):  # the extension does not exist yet
                    register_vector(connection)
            except psycopg.Error:  # its own statements may be rejected, too
                connection.close()
                raise
        except (psycopg.Error, UnicodeError) as error:
            failures.last = error
            failures.count += 1
            raise
        return connection


class _Pool(ConnectionPool[_Pooled]):
    """A pool that leaves Python's global random generator alone: drawings that use it must repeat."""

    @classmethod
    def _jitter(cls, value: float, min_pc: float, max_pc: float) -> float:
        return value * (1.0 + (min_pc + max_pc) / 2)


class Connections:
    """Borrows connections to threads, at most `num_connections` at a time.

    Args:
        options: address, number and time limits.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._start()
        _LIVING.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self._options.num_connections)
        self._failures = _Failures()
        self._pool: _Pool | None = None
        self._end: weakref.finalize[..., Any] | None = None

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Context in which this thread may borrow a connection; False if none was free for `timeout_seconds`."""
        free = self._free  # a forked process has another one
        taken = free.acquire(timeout=self._options.timeout_seconds)
        try:
            yield taken
        finally:
            if taken:
                free.release()

    @contextmanager
    def taken(self) -> Iterator[Connection]:
        """Context with a connection, which is opened if none is unused.

        Raises:
            psycopg.Error: it can't be opened.
            DatabaseError: the host's name is invalid.
        """
        pool, connection = self._unused()
        try:
            yield connection
        finally:
            with suppress(psycopg.Error):
                pool.putconn(connection)  # replaces a broken one

    def _unused(self) -> tuple[_Pool, _Pooled]:
        count = self._failures.count
        while True:
            pool = self._current()
            try:
                connection = pool.getconn(_LOOK)
            except PoolTimeout:
                if self._failures.count > count and self._failures.last is not None:
                    raise self._told(self._failures.last) from None
                continue
            except PoolClosed:
                continue
            if not _was_ended(connection):
                return pool, connection
            connection.close()
            pool.putconn(connection)

    def _told(self, error: Exception) -> Exception:
        if not isinstance(error, UnicodeError):
            return error
        host = self._options.host  # from the name lookup, before anything is sent
        return DatabaseError(
            f"host {host!r}" if host is not None else "PGHOST",
            "is not a valid server name",
            "correct the host (--host, retriever.host or PGHOST)",
        )

    def _current(self) -> _Pool:
        with self._lock:
            if self._pool is None:
                self._pool = _new_pool(self._options, self._failures)
                self._end = weakref.finalize(self, _close, self._pool, os.getpid())
            return self._pool

    def close(self) -> None:
        """Close the unused connections, and each other one when it is put back; the next use opens new ones."""
        with self._lock:
            end, self._pool, self._end = self._end, None, None
        if end is not None:
            end()

    def forget(self) -> None:
        """Leave the connections to the parent of this process."""
        if self._end is not None:
            self._end.detach()
        if self._pool is not None:
            _PARENTS.append(self._pool)
        self._start()


def _new_pool(options: ConnectionOptions, failures: _Failures) -> _Pool:
    given = {
        "service": options.service,
        "host": options.host,
        "port": options.port,
        "dbname": options.database,
        "user": options.user,
    }
    return _Pool(
        connection_class=_Pooled,
        kwargs={name: value for name, value in given.items() if value is not None}
        | {
            "failures": failures,
            "autocommit": True,  # `Database.run` opens the transactions
            "connect_timeout": max(2, round(options.timeout_seconds)),
            "application_name": "cm3leon",
            "client_encoding": "UTF8",
        },
        min_size=0,
        max_size=options.num_connections,
        max_idle=_UNUSED,
        reconnect_timeout=0,  # `Database.run` tries again
        open=True,
    )


def _close(pool: _Pool, process: int) -> None:
    if process == os.getpid():
        pool.close()


def _was_ended(connection: _Pooled) -> bool:
    """Whether the server has ended an unused connection, as far as this machine knows; sends nothing."""
    here = select.poll()
    here.register(connection.fileno(), select.POLLIN)
    try:
        while here.poll(0):
            connection.pgconn.consume_input()
            if connection.pgconn.status != psycopg.pq.ConnStatus.OK:
                return True
    except psycopg.OperationalError:
        return True
    return False


_LIVING: weakref.WeakSet[Connections] = weakref.WeakSet()
#: Pools of a parent process: a child that closed them would end the parent's connections.
_PARENTS: list[_Pool] = []


def _forked() -> None:
    for one in list(_LIVING):
        one.forget()


os.register_at_fork(after_in_child=_forked)
