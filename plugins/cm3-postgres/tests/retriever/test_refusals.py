"""What a server refuses, and what is said of it: rights, limits, and a disk that is full."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from bank_parts import source, tools
from cm3apps.cli.main import main
from cm3core.errors import DatabaseError
from small_disk import small_disk

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

from cm3postgres.memory import SharedMemory
from messages import tells
from shared_memories import add, encoded, new_config, new_memory, vector_document


def refusal(options, monkeypatch, **settings):
    """What is said where a user's statements have these settings."""
    given = " ".join(f"-c {name}={value}" for name, value in settings.items())
    monkeypatch.setenv("PGOPTIONS", given)
    with pytest.raises(DatabaseError) as error:
        add(options.open_memory(), encoded(source(3)))
    monkeypatch.delenv("PGOPTIONS")
    return str(error.value)


def test_statements_that_are_refused_say_what_to_do(postgres, monkeypatch):
    """At once: to wait for the server, or to correct its name, helps nobody."""
    config, memory = new_memory(postgres, retry_seconds=60.0)
    begin = time.monotonic()
    # another client's lock, so that a statement takes longer than it may on a server of any speed
    with postgres.locked(f"{config.schema}.documents"):
        assert tells(
            refusal(config, monkeypatch, statement_timeout=200),
            f"{memory.place}: refuses: canceling statement due to statement",
        )
    assert tells(
        refusal(config, monkeypatch, default_transaction_read_only="on"),
        f"{memory.place}: refuses: cannot execute SELECT FOR UPDATE",
    )
    assert time.monotonic() - begin < 60
    add(memory, encoded(source(3)))


def test_a_user_who_may_not_make_the_extension(postgres):
    postgres.sql("CREATE DATABASE bare", database="postgres")
    postgres.sql("CREATE ROLE plain LOGIN")
    postgres.sql("GRANT CREATE ON DATABASE bare TO plain")
    try:
        with pytest.raises(DatabaseError) as error:
            create(new_config(postgres, database="bare", user="plain"))
        assert tells(error.value, '... : refuses: permission denied to ... "vector" ... CREATE')
        postgres.sql("CREATE EXTENSION vector", database="bare")
        create(new_config(postgres, database="bare", user="plain"))
    finally:
        postgres.sql("DROP DATABASE bare WITH (FORCE)", database="postgres")
        postgres.sql("DROP ROLE plain", database="postgres")


def test_no_free_connection(postgres):
    config, memory = new_memory(postgres, retry_seconds=0.3)
    postgres.sql("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    try:
        limited = new_config(postgres, user="crowd", retry_seconds=0.3)
        limited.schema = config.schema
        with pytest.raises(DatabaseError) as error:
            limited.open_memory()
        said = str(error.value)
        assert ": has no free connection after 0.3 s (" in said
        assert 'too many connections for role "crowd")' in said
        assert tells(said, "...   next: close other connections, or ... max_connections")
    finally:
        postgres.sql("DROP ROLE crowd")
        memory.close()


def ended(connection):
    """As an administrator does in the middle of a statement."""
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_connection_that_an_administrator_ends(postgres):
    """The work is done again with a new one; only if that is ended each time is it an error."""
    _, memory = new_memory(postgres, index=False)
    processes = []

    def once(connection):
        processes.append(connection.info.backend_pid)
        if len(processes) == 1:
            ended(connection)
        return "done"

    assert memory.database.run(once) == "done"
    assert len(set(processes)) == len(processes) == 2
    memory.database.options = replace(memory.database.options, retry_seconds=0.2)
    with pytest.raises(DatabaseError) as error:
        memory.database.run(ended)
    assert tells(error.value, f"{memory.place}: closed the connection ... for 0.2")


def test_transactions_that_are_always_in_the_way(postgres):
    _, memory = new_memory(postgres, index=False, retry_seconds=0.0)
    with pytest.raises(DatabaseError) as error:
        memory.database.run(
            lambda connection: connection.execute(
                "DO $$ BEGIN RAISE SQLSTATE '40001' USING MESSAGE = 'could not serialize'; END $$"
            )
        )
    assert tells(
        error.value, f"{memory.place}: is being changed by ... for 0 ... retriever.retry_seconds"
    )


def create(config):
    SharedMemory.create(config, tools().manifest, {}).close()


def test_the_servers_disk_is_full(postgres, tmp_path):
    """A tablespace on a disk of its own: nothing half is added, and the same call adds all once there is room."""
    config, memory = new_memory(postgres, index=False)
    place = postgres.folder / "small"
    with small_disk(place, 256):
        shutil.chown(place, (postgres.data).owner())
        postgres.sql(f"CREATE TABLESPACE small LOCATION '{place}'")
        try:
            table = f"{config.schema}.documents"
            postgres.sql(f"ALTER TABLE {table} SET TABLESPACE small")
            documents = [
                vector_document(
                    f"d{i}", (1, i, 0, 0, 0, 0, 0, 0), "".join(map(chr, range(33, 900)))
                )
                for i in range(300)
            ]
            with pytest.raises(DatabaseError) as error:
                add(memory, documents)
            assert str(error.value).startswith(f"{memory.place}: refuses: could not extend file ")
            assert tells(error.value, "... No space left on device")
            assert memory.num_documents == 0
            postgres.sql(f"ALTER TABLE {table} SET TABLESPACE pg_default")
            add(memory, documents)
            assert memory.num_documents == 300
        finally:
            postgres.sql(f"DROP SCHEMA {config.schema} CASCADE")
            postgres.sql("DROP TABLESPACE small")


def test_a_host_that_is_no_name(capsys):
    """The lookup of the name fails in Python, before libpq sees it."""
    assert main(["postgres", "stat", "--host", ".", "--database", "x"]) == 2
    assert tells(capsys.readouterr().err, "error: host '.': is not a valid server name ... --host")
