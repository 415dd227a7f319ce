"""Connections to PostgreSQL that are reopened when they are lost, for a limited time."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psycopg

from cm3core.errors import CM3Error, DatabaseError
from cm3postgres.pool import Connection, Connections
from cm3postgres.watching import WATCHDOG, Watched

if TYPE_CHECKING:
    from cm3postgres.options import ConnectionOptions

T = TypeVar("T")

#: Seconds before the first retry, doubled for each further one up to the second number.
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0
#: Error classes and states worth a retry: the connection is gone, the server is stopping or starting, there are
#: too many clients, or another transaction was in the way.
_PASSING = re.compile(r"08...|57P0.|53300|40001|40P01")
#: Rejections of a connection that waiting does not change, in the server's English wording.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry|"
    r"permission denied|definition of service|\binvalid |is not permitted"
)
#: Rejections because the server or the role has too many connections.
_TAKEN = re.compile(r"too many (clients|connections)|remaining connection slots")
#: The server closed the connection, because of an administrator or a transaction limit.
_ENDED = re.compile(r"57P0[1245]|25P0[34]")
#: Another transaction was in the way on every attempt.
_IN_THE_WAY = re.compile(r"40001|40P01")
#: Next step for rejected statements, by state.
_STEPS = {
    "57014": "raise statement_timeout of that user or database, then repeat",
    "53100": "free space on the server's disk, then repeat",
    "25006": "use the primary server, not a replica, or a user with write access; then repeat",
}


@dataclass
class _Use:
    """One use of a connection: the connection once there is one, and its time limit, if it has one."""

    connection: Connection | None = None
    watched: Watched | None = None

    @property
    def silent(self) -> bool:
        """Whether the server did not answer in time."""
        return self.watched is not None and self.watched.silent


class Database:
    """A process's connections to a memory's database, one for each of the threads that use it at a time.

    Copies in other processes (pickled or forked) open connections of their own.

    Args:
        options: address, number of connections and time limits.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self._connections = Connections(options)
        self._current = threading.local()

    def __reduce__(self) -> tuple[type[Database], tuple[ConnectionOptions]]:
        return type(self), (self.options,)

    @property
    def place(self) -> str:
        """Name for messages: schema, database and host, as far as the options set them."""
        return self._place({})

    def _place(self, environment: Mapping[str, str]) -> str:
        """`environment`: values for options that are not set."""
        named = []
        for word in ("service", "host", "port", "database"):
            value, variable = getattr(self.options, word), f"PG{word.upper()}"
            if value is not None:
                named.append(f"{word} {value}")
            elif variable in environment:
                named.append(f"{variable} {environment[variable]}")
        return f"PostgreSQL schema {self.options.schema}" + (
            f" ({', '.join(named)})" if named else ""
        )

    def run(
        self, work: Callable[[Connection], T], *, limited: bool = True, pipelined: bool = False
    ) -> T:
        """Call `work` with a connection, inside a transaction. If the connection is lost, it is called
        again, so it must depend only on the database.

        Args:
            work: called with the connection.
            limited: the connection counts as lost if the server does not answer for `timeout_seconds`.
            pipelined: `work` runs in psycopg's pipeline mode, which sends the transaction's begin together with its
                first statements, without waiting for an answer to each; it must not use COPY.

        Raises:
            DatabaseError: the server can't be reached within `retry_seconds`, or rejects the statement; or other
                threads use all connections for `timeout_seconds`.
        """
        with self._connections.place() as free:
            if not free:
                raise self._exhausted()
            until, wait = time.monotonic() + self.options.retry_seconds, _FIRST_WAIT
            while True:
                use = _Use()
                try:
                    return self._once(work, use, limited, pipelined)
                except psycopg.Error as error:
                    lost = _is_lost(error, use)
                    if use.silent:
                        self._connections.close()  # the others wait for the same server
                    passing = lost or _PASSING.fullmatch(error.sqlstate or "") is not None
                    if not passing or time.monotonic() + wait > until:
                        raise self._refused(error, passing, use) from error
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def close(self) -> None:
        """Close the connections; the next `run` opens one again."""
        self._connections.close()

    def _once(
        self, work: Callable[[Connection], T], use: _Use, limited: bool, pipelined: bool
    ) -> T:
        with self._connections.taken() as connection:
            use.connection = connection
            self._current.use = use
            try:
                inside = _pipelined(connection) if pipelined else connection.transaction()
                with self._watched(connection, use, limited), inside:
                    return work(connection)
            finally:
                if _is_gone(connection):
                    connection.close()

    def answered(self) -> None:
        """Restart this thread's time limit; long work calls this whenever the server has answered."""
        watched = self._current.use.watched
        if watched is not None:
            watched.until = time.monotonic() + self.options.timeout_seconds

    @contextmanager
    def _watched(self, connection: Connection, use: _Use, limited: bool) -> Iterator[None]:
        """Shut the connection if the server does not answer for `timeout_seconds`."""
        if not limited:
            yield
            return
        # libpq may close its own socket, whose number another one could get
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            use.watched = Watched(line, time.monotonic() + self.options.timeout_seconds)
            with WATCHDOG.watching(use.watched):
                yield

    def _exhausted(self) -> DatabaseError:
        number = self.options.num_connections
        used = "its connection is" if number == 1 else f"all {number:,} connections are"
        return DatabaseError(
            self.place,
            f"{used} in use by other threads, after waiting for {self.options.timeout_seconds:g} s",
            "raise retriever.num_connections, or send fewer requests at a time; or raise "
            "retriever.timeout_seconds to wait longer",
        )

    def _refused(self, error: psycopg.Error, passing: bool, use: _Use) -> CM3Error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause = error.diag.message_primary or lines[-1].strip()
        if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)):
            return DatabaseError(
                self.place,
                "holds no memory",
                "create it: cm3 postgres init BANK, with the same keys",
            )
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            step = "grant the user that right, or use another user"
            if "create extension" in cause:
                step = "ask an administrator to run CREATE EXTENSION vector in that database, then repeat"
            return DatabaseError(self.place, f"refuses: {cause}", step)
        if error.sqlstate in _STEPS:
            return DatabaseError(self.place, f"refuses: {cause}", _STEPS[error.sqlstate])
        # includes libpq's variables, which may be wrong
        place = self._place(os.environ)
        if passing and _TAKEN.search(cause):
            return DatabaseError(
                place,
                f"has no free connection after {self.options.retry_seconds:g} s ({cause})",
                "close other connections, or raise max_connections or the role's limit; or raise "
                "retriever.retry_seconds to wait longer",
            )
        if passing and use.silent:
            return DatabaseError(
                place,
                f"did not answer within {self.options.timeout_seconds:g} s, after retrying for "
                f"{self.options.retry_seconds:g} s ({cause})",
                "find out what the server is waiting for, or raise retriever.timeout_seconds to wait longer",
            )
        if passing and _ENDED.fullmatch(error.sqlstate or ""):
            return DatabaseError(
                place,
                f"closed the connection, after retrying for {self.options.retry_seconds:g} s ({cause})",
                "see the server's log for the reason, or raise retriever.retry_seconds to retry longer",
            )
        if passing and _IN_THE_WAY.fullmatch(error.sqlstate or ""):
            return DatabaseError(
                self.place,
                f"is being changed by others, after retrying for {self.options.retry_seconds:g} s ({cause})",
                "repeat when they are done, or raise retriever.retry_seconds to retry longer",
            )
        if passing:
            return DatabaseError(
                place,
                f"can't be reached, after retrying for {self.options.retry_seconds:g} s ({cause})",
                "start the server, or correct host and port; raise retriever.retry_seconds to retry longer",
            )
        if use.connection is None:
            return DatabaseError(
                place,
                f"rejects the connection ({cause})",
                "correct host, database and user; set a password in ~/.pgpass, PGPASSWORD "
                "or a service file",
            )
        return DatabaseError(
            self.place, f"rejected the statement: {cause}", "correct that, then repeat"
        )


@contextmanager
def _pipelined(connection: Connection) -> Iterator[None]:
    """A transaction in pipeline mode. psycopg's own `transaction()` waits for an answer to each of its statements."""
    try:
        with connection.pipeline():
            connection.execute("BEGIN")
            yield
            connection.execute("COMMIT")
    except BaseException:
        if not _is_gone(connection):
            with suppress(psycopg.Error):
                connection.rollback()
        raise


def _is_gone(connection: Connection) -> bool:
    return connection.closed or connection.broken


def _is_lost(error: psycopg.Error, use: _Use) -> bool:
    """Whether the connection is gone and a new one may help."""
    if use.connection is None:
        # a state means that the server answered
        return error.sqlstate is None and _REFUSED.search(str(error)) is None
    return _is_gone(use.connection)
