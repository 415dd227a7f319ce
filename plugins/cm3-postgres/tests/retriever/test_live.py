"""A memory that changes while it is searched, and a server that is killed, stopped, or refuses."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from bank_parts import source
from cm3apps.cli.main import main
from cm3core.document import Text
from cm3core.errors import DatabaseError, DataError
from cm3kits.retriever import HashEmbedder

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

from cm3postgres import PgvectorRetrieverConfig
from cm3postgres.config import open_shared_memory
from cm3postgres.memory import AT_ONCE, Filter, SharedMemory
from cm3postgres.schema import build_index
from messages import tells
from shared_memories import about, add, encoded, new_config, new_memory, vector_document

QUERY = [(Text("red apple"),)]


def ids(retriever, number=100):
    return {one.id for one in retriever.retrieve(QUERY, number)[0]}


def test_any_order_of_adding_and_removing(postgres):
    """The memory is a dictionary: what was added and not removed is found, and nothing else."""

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            config, self.memory = new_memory(postgres, 4)
            self.retriever = config.build(self.memory, HashEmbedder(4))
            self.there = {}

        @rule(names=st.sets(st.integers(0, 9), min_size=1), turn=st.integers(0, 3))
        def add(self, names, turn):
            new = [
                vector_document(f"d{i}", (1, i, turn, i * turn), f"{i} {turn}")
                for i in sorted(names)
            ]
            changed = any(self.there.get(one.id, one.document) != one.document for one in new)
            if changed:
                with pytest.raises(
                    DataError, match="but different content, licence, source or style"
                ):
                    add(self.memory, new)
            add(self.memory, new, replace=True)
            self.there |= {one.id: one.document for one in new}

        @rule(names=st.sets(st.integers(0, 9), min_size=1))
        def remove(self, names):
            given = {f"d{i}" for i in names}
            assert set(self.memory.remove(sorted(given))) == given & set(self.there)
            self.there = {name: one for name, one in self.there.items() if name not in given}

        @invariant()
        def what_is_found_is_there(self):
            found = self.retriever.retrieve(QUERY, 20)[0]
            assert {one.id: self.memory.document(one.index) for one in found} == self.there

        def teardown(self):
            self.memory.close()

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=6, stateful_step_count=8, deadline=None)
    )


def test_documents_come_and_go_while_others_draw(postgres):
    """One process pushes and removes through connections of its own; a retriever here never finds what
    was removed before it asked, and whatever it finds can be read."""
    config, memory = new_memory(postgres)
    documents = encoded(source(40))
    add(memory, documents[:10])
    other = SharedMemory.open(config)
    retriever = config.build(memory, HashEmbedder())
    stop, wrong = threading.Event(), []

    def draw():
        while not stop.is_set():
            for one in retriever.retrieve(QUERY, 5)[0]:
                if not memory.document(one.index):
                    wrong.append(one.id)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for start in range(10, 40, 5):
            add(other, documents[start : start + 5])
            gone = [one.id for one in documents[start - 10 : start - 5]]
            assert sorted(other.remove(gone)) == sorted(gone)
            assert ids(retriever).isdisjoint(gone)
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert ids(retriever) == {one.id for one in documents[30:]}
    with pytest.raises(DataError) as error:
        SharedMemory.open(config).document(0)
    assert tells(error.value, f"{memory.place}, document number 0: does not exist: it was removed")


def test_adding_is_all_or_nothing_in_a_transaction(postgres):
    _, memory = new_memory(postgres, index=False)
    good = encoded(source(4))
    bad = vector_document("bad", np.ones(3))
    with pytest.raises(DataError, match="its vector is not a unit vector of 8 numbers"):
        add(memory, [*good, bad])
    assert memory.num_documents == 0
    assert add(memory, good) == [(4, 0, 0)]
    assert add(memory, good) == [(0, 0, 4)]
    assert add(memory, good, lambda _: about("CC0-1.0"), skip_duplicates=True) == [(0, 0, 4)]
    assert add(memory, good, lambda _: about("CC0-1.0"), replace=True) == [(0, 4, 0)]
    assert memory.provenance(4).licence == "CC0-1.0"
    with pytest.raises(DataError) as error:
        add(memory, [*good[:1], *good[:1]])
    assert str(error.value) == "document 'd0': is given twice\n  next: use each id once"
    assert memory.remove_where(Filter(licences=["CC0-1.0"])) == ["d0", "d1", "d2", "d3"]


@pytest.mark.parametrize(
    "hostile",
    ["'; DROP SCHEMA public CASCADE; --", 'a"b', "%s %(query)s {s} $1", "\\'; \\", "größer 🍎\n\t"],
)
def test_values_are_never_sql(postgres, hostile):
    config, memory = new_memory(postgres, 4)
    one = vector_document(hostile, (1, 2, 3, 4), hostile)
    add(memory, [one], lambda _: about(hostile, hostile, hostile, hostile))
    keys = {name: getattr(config, name) for name in ("host", "database", "user", "schema")}
    chosen = PgvectorRetrieverConfig(
        **keys, licences=[hostile], sources=[hostile], styles=[hostile]
    )
    found = chosen.build(memory, HashEmbedder(4)).retrieve([(Text(hostile),)], 3)[0]
    assert [(one.id, one.index) for one in found] == [(hostile, 0)]
    assert memory.document(0) == one.document
    assert memory.remove([hostile]) == [hostile]
    assert memory.num_documents == 0


@pytest.mark.parametrize(("name", "value"), [("id", "a\0"), ("id", "a\ud800")])
def test_what_postgresql_cannot_hold(postgres, name, value):
    _, memory = new_memory(postgres, 4, index=False)
    with pytest.raises(DataError) as error:
        add(memory, [vector_document(value, (1, 0, 0, 0))])
    assert tells(error.value, f"document {value!r}: its id contains ... PostgreSQL")
    with pytest.raises(DataError) as error:
        add(memory, [vector_document("fine", (1, 0, 0, 0), "half a pair \ud800")])
    assert tells(error.value, "document 'fine': its text contains half a character")
    add(memory, [vector_document("fine", (1, 0, 0, 0), "null \0")])
    assert memory.document(0) == (Text("null \0"),)


def test_the_server_is_killed_and_started_again(postgres):
    config, memory = new_memory(postgres)
    retriever = config.build(memory, HashEmbedder())
    add(memory, encoded(source(8)))
    before = retriever.retrieve(QUERY, 4)
    postgres.kill()
    starting = threading.Timer(0.3, postgres.start)
    starting.start()
    assert retriever.retrieve(QUERY, 4) == before
    starting.join()


@pytest.mark.slow
def test_the_server_is_killed_and_stays_away(postgres):
    config, memory = new_memory(postgres, retry_seconds=0.5)
    add(memory, encoded(source(8)))
    retriever = config.build(memory, HashEmbedder())
    postgres.kill()
    begin = time.monotonic()
    try:
        with pytest.raises(DatabaseError) as error:
            retriever.retrieve(QUERY, 4)
        assert time.monotonic() - begin < 5
        assert str(error.value).startswith(
            f"{memory.place}: can't be reached, after retrying for 0.5 s ("
        )
        assert tells(error.value, "...   next: start the server ... retriever.retry_seconds")
    finally:
        postgres.start()
    assert ids(retriever) == {f"d{i}" for i in range(8)}


def test_a_push_that_lost_the_server_is_repeated(postgres, monkeypatch):
    """Killed between transactions: what was committed is there, and the same call adds the rest."""
    from cm3postgres import memory as module

    monkeypatch.setattr(module, "AT_ONCE", 3)
    config, memory = new_memory(postgres, retry_seconds=0.2)
    documents = encoded(source(10))
    reports = memory.add((one, about()) for one in documents)
    next(reports)
    postgres.kill()
    try:
        with pytest.raises(DatabaseError):
            next(reports)
    finally:
        postgres.start()
    assert memory.num_documents == 3
    assert add(memory, documents) == [(0, 0, 3), (3, 0, 0), (3, 0, 0), (1, 0, 0)]
    assert ids(config.build(memory, HashEmbedder())) == {one.id for one in documents}


@pytest.mark.slow
def test_a_server_that_stands_still_counts_as_lost(postgres):
    config, memory = new_memory(postgres, retry_seconds=0.2, timeout_seconds=2.0)
    add(memory, encoded(source(4)))
    retriever = config.build(memory, HashEmbedder())
    retriever.retrieve(QUERY, 2)
    postgres.signal_all(signal.SIGSTOP)
    begin = time.monotonic()
    try:
        with pytest.raises(
            DatabaseError, match=r"did not answer within 2 s, after retrying for 0.2 s \("
        ):
            retriever.retrieve(QUERY, 2)
        assert time.monotonic() - begin < 15
    finally:
        postgres.signal_all(signal.SIGCONT)
    assert len(ids(retriever)) == 4


@pytest.mark.slow
def test_a_server_that_answers_may_take_its_time(postgres):
    """The limit is for one answer, not for all that a batch asks."""
    _, memory = new_memory(postgres, index=False, retry_seconds=0.0, timeout_seconds=2.0)

    def work(connection):
        for _ in range(5):
            connection.execute("SELECT pg_sleep(0.5)")
            memory.database.answered()
        return "done"

    assert memory.database.run(work) == "done"
    with pytest.raises(DatabaseError) as error:
        memory.database.run(lambda connection: connection.execute("SELECT pg_sleep(4)"))
    assert str(error.value).startswith(
        f"{memory.place}: did not answer within 2 s, after retrying for 0 s ("
    )
    assert tells(error.value, "...   next: find out what ... retriever.timeout_seconds")


def test_a_forked_process_opens_a_connection_of_its_own(postgres):
    config, memory = new_memory(postgres)
    add(memory, encoded(source(6)))
    retriever = config.build(memory, HashEmbedder())
    before = ids(retriever)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if ids(retriever) == before else 1)
        finally:
            os._exit(2)
    assert ids(retriever) == before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ids(retriever) == before


def test_what_is_not_there_or_is_there_already(postgres):
    config = new_config(postgres)
    with pytest.raises(DatabaseError) as error:
        config.open_memory()
    place = f"PostgreSQL schema {config.schema} (host {postgres.folder}, database cm3)"
    assert tells(error.value, f"{place}: holds no memory ... BANK")
    config, memory = new_memory(postgres, index=False)
    with pytest.raises(DatabaseError) as error:
        SharedMemory.create(config, memory.manifest, {})
    assert tells(error.value, f"{memory.place}: already holds a memory")
    assert build_index(memory.database, 8, 16, 64) is True
    assert build_index(memory.database, 8, 16, 64) is False


def test_an_unknown_database_is_refused_at_once(postgres):
    config = new_config(postgres, database="nowhere", retry_seconds=60)
    begin = time.monotonic()
    with pytest.raises(DatabaseError) as error:
        config.open_memory()
    assert time.monotonic() - begin < 30
    assert "rejects the connection (" in str(error.value)
    assert 'database "nowhere" does not exist)' in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("segments", b"[0]", "a missing picture"),
        ("segments", b"{", "is damaged"),
        ("codes", b"\xff\xff" * 4, "codes 65535..65535, but the codebook has 16 entries"),
        ("codes", b"\0", "is damaged"),
        ("segments", b"[true]", "segments [0] is True, must be"),
        ("segments", b"[-1]", "segments [0] is -1 (use 0 or more)"),
        ("segments", b"[1.0]", "segments [0] is 1.0, must be"),
        ("segments", b"[null]", "segments [0] is None, must be"),
        ("segments", b'["a\xff"]', "is not UTF-8"),
        ("segments", b'["\\udfff"]', "holds half a character"),
        ("segments", b"[" * 10_000, "is nested deeper than"),
        ("keys", ["a", None], "[2][1] is None, must be a text"),
    ],
)
def test_a_damaged_row(postgres, column, value, cause):
    _, memory = new_memory(postgres, index=False)
    add(memory, encoded(source(2)))
    postgres.sql(f"UPDATE {memory.database.options.schema}.documents SET {column} = %s", [value])
    with pytest.raises(DataError) as error:
        memory.document(1)
    assert cause in str(error.value)
    assert "remove it (cm3 postgres remove) and push it again" in str(error.value)


def test_another_format_and_another_version(postgres, monkeypatch):
    config, memory = new_memory(postgres, index=False)
    postgres.sql(f"UPDATE {config.schema}.about SET format = 2")
    with pytest.raises(DatabaseError, match="has the format 2, but this version reads 1"):
        config.open_memory()
    postgres.sql(f"UPDATE {config.schema}.about SET format = 1, made_with = '[]'")
    with pytest.raises(DatabaseError, match="its table 'about' is damaged"):
        config.open_memory()
    monkeypatch.setattr("cm3postgres.schema.LEAST_VERSION", (99,))
    with pytest.raises(DatabaseError, match=r"has pgvector [\d.]+, but needs 99 or newer"):
        config.open_memory()
    memory.close()


def test_passwords_are_taken_from_the_environment_and_shown_nowhere(
    postgres, tmp_path, monkeypatch, capsys
):
    """A user who must give one: right by PGPASSWORD and by a pgpass file, wrong, and none."""
    config, memory = new_memory(postgres, index=False)
    add(memory, encoded(source(2)))
    postgres.sql("DROP ROLE IF EXISTS reader")
    postgres.sql("CREATE ROLE reader LOGIN PASSWORD 'correct horse'")
    postgres.sql(f"GRANT USAGE ON SCHEMA {config.schema} TO reader")
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {config.schema} TO reader")
    rules = postgres.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all reader scram-sha-256\n" + before)
    postgres.sql("SELECT pg_reload_conf()")
    pgpass = tmp_path / "pgpass"
    pgpass.write_text("*:*:*:reader:correct horse\n")
    pgpass.chmod(0o600)
    monkeypatch.setenv("CM3_TRACEBACK", "1")

    def run(**variables):
        for name in ("PGPASSWORD", "PGPASSFILE"):
            monkeypatch.setenv(name, variables.get(name, str(tmp_path / "none")))
        if "PGPASSWORD" not in variables:
            monkeypatch.delenv("PGPASSWORD")
        code = main(
            [
                "postgres",
                "stat",
                "--schema",
                config.schema,
                "--host",
                str(postgres.folder),
                "--database",
                "cm3",
                "--user",
                "reader",
                "--retry-seconds",
                "0",
            ]
        )
        said = capsys.readouterr()
        for word in ("correct horse", "wrong battery"):
            assert word not in said.out + said.err
        return code, said.err

    try:
        assert run(PGPASSWORD="correct horse") == (0, "")
        assert run(PGPASSFILE=str(pgpass)) == (0, "")
        code, said = run(PGPASSWORD="wrong battery")
        assert code == 2
        assert 'password authentication failed for user "reader"' in said
        assert tells(said, "... set a password in ... PGPASSWORD")
        assert "no password supplied" in run()[1]
    finally:
        rules.write_text(before)
        postgres.sql("SELECT pg_reload_conf()")


def test_a_user_who_may_only_read(postgres):
    config, memory = new_memory(postgres, index=False)
    add(memory, encoded(source(3)))
    postgres.sql("DROP ROLE IF EXISTS guest")
    postgres.sql("CREATE ROLE guest LOGIN")
    guest = new_config(postgres, user="guest")
    guest.schema = config.schema
    with pytest.raises(DatabaseError, match="permission denied for schema"):
        guest.open_memory()
    postgres.sql(f"GRANT USAGE ON SCHEMA {config.schema} TO guest")
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {config.schema} TO guest")
    reading = guest.open_memory()
    assert ids(guest.build(reading, HashEmbedder())) == {"d0", "d1", "d2"}
    with pytest.raises(DatabaseError) as error:
        reading.remove(["d0"])
    assert tells(error.value, f"{reading.place}: refuses: permission denied for table documents")


def test_the_fingerprint_is_that_of_the_documents(postgres):
    _, memory = new_memory(postgres, index=False)
    _, other = new_memory(postgres, index=False)
    documents = encoded(source(5))
    empty = memory.fingerprint
    for one in (memory, other):
        add(one, documents)
    whole = memory.fingerprint
    assert other.fingerprint == whole != empty
    memory.remove(["d2"])
    assert memory.fingerprint not in (whole, empty)
    assert AT_ONCE >= 1
    assert open_shared_memory(memory.database.options).fingerprint == memory.fingerprint
