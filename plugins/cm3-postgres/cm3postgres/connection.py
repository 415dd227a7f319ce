"""A connection to PostgreSQL that is reopened when it is lost, for a limited time."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg
from pgvector.psycopg import register_vector

from cm3core.errors import CM3Error, DatabaseError

if TYPE_CHECKING:
    from cm3postgres.options import ConnectionOptions

Connection = psycopg.Connection[tuple[object, ...]]
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


class Database:
    """A process's connection to a memory's database. Threads take turns.

    Args:
        options: its address and time limits.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._process = os.getpid()
        self._until = 0.0
        self._silent = False  # the watchdog closed the connection

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

    def run(self, work: Callable[[Connection], T], *, limited: bool = True) -> T:
        """Call `work` with the connection, inside a transaction. If the connection is lost, it is called
        again, so it must depend only on the database.

        Args:
            work: called with the connection.
            limited: the connection counts as lost if the server does not answer for `timeout_seconds`.

        Raises:
            DatabaseError: the server can't be reached within `retry_seconds`, or rejects the statement.
        """
        with self._lock:
            until, wait = time.monotonic() + self.options.retry_seconds, _FIRST_WAIT
            while True:
                try:
                    return self._once(work, limited)
                except psycopg.Error as error:
                    lost = self._is_lost(error)
                    if lost:
                        self._drop()
                    passing = lost or _PASSING.fullmatch(error.sqlstate or "") is not None
                    if not passing or time.monotonic() + wait > until:
                        raise self._refused(error, passing) from error
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def close(self) -> None:
        """Close the connection; the next `run` opens it again."""
        with self._lock:
            self._drop()

    def _once(self, work: Callable[[Connection], T], limited: bool) -> T:
        self._silent = False
        connection = self._opened()
        with self._watched(connection, limited), connection.transaction():
            return work(connection)

    def _opened(self) -> Connection:
        if self._process != os.getpid():  # after a fork the connection belongs to the parent
            self._connection, self._process = None, os.getpid()
        if self._connection is None or self._connection.closed:
            options = self.options
            given = {
                "service": options.service,
                "host": options.host,
                "port": options.port,
                "dbname": options.database,
                "user": options.user,
            }
            try:
                connection: Connection = psycopg.connect(
                    **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # keys of this config
                    autocommit=True,  # `run` opens the transactions
                    connect_timeout=max(2, round(options.timeout_seconds)),
                    application_name="cm3leon",
                    client_encoding="UTF8",
                )
            except UnicodeError as error:  # from the name lookup, before anything is sent
                raise DatabaseError(
                    f"host {options.host!r}" if options.host is not None else "PGHOST",
                    "is not a valid server name",
                    "correct the host (--host, retriever.host or PGHOST)",
                ) from error
            try:
                with suppress(psycopg.ProgrammingError):  # the extension does not exist yet
                    register_vector(connection)
            except psycopg.Error:  # its own statements may be rejected, too
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def answered(self) -> None:
        """Restart the time limit; long work calls this whenever the server has answered."""
        self._until = time.monotonic() + self.options.timeout_seconds

    @contextmanager
    def _watched(self, connection: Connection, limited: bool) -> Iterator[None]:
        """Close the connection if the server does not answer for `timeout_seconds`: a stopped server, or one
        behind a dead network, never does."""
        if not limited:
            yield
            return
        self.answered()
        done = threading.Event()
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            watch = threading.Thread(target=self._watch, args=(line, done), daemon=True)
            watch.start()
            try:
                yield
            finally:
                done.set()
                watch.join()

    def _watch(self, line: socket.socket, done: threading.Event) -> None:
        while not done.wait(max(0.0, self._until - time.monotonic())):
            if time.monotonic() >= self._until:
                self._silent = True
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
                return

    def _is_lost(self, error: psycopg.Error) -> bool:
        """Whether the connection is gone and a new one may help."""
        if self._connection is None:
            # a state means that the server answered
            return error.sqlstate is None and _REFUSED.search(str(error)) is None
        return self._connection.closed or self._connection.broken

    def _drop(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    def _refused(self, error: psycopg.Error, passing: bool) -> CM3Error:
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
        if passing and self._silent:
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
        if self._connection is None:
            return DatabaseError(
                place,
                f"rejects the connection ({cause})",
                "correct host, database and user; set a password in ~/.pgpass, PGPASSWORD "
                "or a service file",
            )
        return DatabaseError(
            self.place, f"rejected the statement: {cause}", "correct that, then repeat"
        )
