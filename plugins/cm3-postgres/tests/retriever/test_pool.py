"""A process's connections: one for each thread that asks, at most `num_connections`; none for a child process."""

from __future__ import annotations

import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_parts import source
from cm3core.config.schema import to_plain
from cm3core.document import Text
from cm3core.errors import DatabaseError
from cm3kits.retriever import HashEmbedder

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

from cm3postgres import PgvectorRetrieverConfig
from cm3postgres.watching import Watchdog, Watched
from messages import tells
from profiles import examples
from shared_memories import add, encoded, new_config, new_memory

QUERY = [(Text("red apple"),)]


@pytest.fixture
def filled(postgres):
    """Make (retriever, memory) of six documents, with these keys."""
    memories = []

    def make(**keys):
        config, memory = new_memory(postgres, **keys)
        add(memory, encoded(source(6)))
        memories.append(memory)
        return config.build(memory, HashEmbedder()), memory

    yield make
    for memory in memories:
        memory.close()


def backend(connection):
    return connection.info.backend_pid


def together(memory, number, work=backend):
    """Run `work` in so many threads, none of which goes on before all have a connection."""
    meeting, found = threading.Barrier(number), []

    def meet(connection):
        meeting.wait(20)
        return work(connection)

    threads = [
        threading.Thread(target=lambda: found.append(memory.database.run(meet)))
        for _ in range(number)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def num_backends(postgres, pids):
    return postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pids])[0][0]


def test_threads_have_connections_of_their_own(postgres, filled):
    _, memory = filled(num_connections=4)
    pids = together(memory, 4)
    assert len(set(pids)) == 4
    assert num_backends(postgres, pids) == 4, "they stay open for the next"
    assert set(together(memory, 4)) == set(pids)


@settings(max_examples=examples(4), deadline=None)
@given(st.integers(1, 3), st.integers(1, 6))
def test_never_more_than_allowed_and_everyone_is_answered(postgres, size, threads):
    _, memory = new_memory(postgres, 4, index=False, num_connections=size)
    inside, most, done, lock = [], [], [], threading.Lock()

    def work(connection):
        with lock:
            inside.append(connection.info.backend_pid)
            most.append(len(inside))
            assert len(set(inside)) == len(inside), "two threads have one connection"
        time.sleep(0.01)
        with lock:
            inside.remove(connection.info.backend_pid)
        return True

    asking = [
        threading.Thread(target=lambda: done.append(memory.database.run(work)))
        for _ in range(threads)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    memory.close()
    assert done == [True] * threads
    assert max(most) <= size


@pytest.mark.parametrize(
    ("size", "told"), [(1, "its connection is in use"), (2, "all 2 connections are in use")]
)
def test_none_is_free(filled, size, told):
    _, memory = filled(num_connections=size, timeout_seconds=0.3)
    leave, there = threading.Event(), threading.Semaphore(0)

    def hold(connection):
        there.release()
        leave.wait(20)

    holding = [
        threading.Thread(target=memory.database.run, args=(hold,), kwargs={"limited": False})
        for _ in range(size)
    ]
    for one in holding:
        one.start()
        there.acquire()
    try:
        with pytest.raises(DatabaseError) as error:
            memory.database.run(backend)
    finally:
        leave.set()
        for one in holding:
            one.join()
    assert tells(
        error.value, f"{memory.place}: {told} by other threads, after waiting for 0.3 s ... "
    )
    assert tells(error.value, "...   next: raise retriever.num_connections ...")
    assert memory.database.run(backend), "and it is free again"


def test_settings_last_for_one_search(postgres, filled):
    """Another retriever, or other code, on the same connection has the server's own."""
    retriever, memory = filled(ef_search=321, num_connections=1)
    before = memory.database.run(lambda one: one.execute("SHOW hnsw.ef_search").fetchone())
    retriever.retrieve(QUERY, 3)
    assert memory.database.run(lambda one: one.execute("SHOW hnsw.ef_search").fetchone()) == before
    assert before != ("321",)


def test_connections_that_were_ended_unused_are_replaced_unnoticed(postgres, filled):
    """Without a single retry, though all of them were ended."""
    retriever, memory = filled(num_connections=3, retry_seconds=0.0)
    before = retriever.retrieve(QUERY, 3)
    pids = together(memory, 3)
    postgres.sql("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [pids])
    while num_backends(postgres, pids):
        time.sleep(0.01)
    for _ in range(4):
        assert retriever.retrieve(QUERY, 3) == before
    assert set(together(memory, 3)).isdisjoint(pids)


def test_the_server_is_away_for_all_threads_and_comes_back(postgres, filled):
    _, memory = filled(num_connections=3, retry_seconds=0.2)
    together(memory, 3)
    postgres.kill()
    said = []

    def ask():
        try:
            memory.database.run(backend)
        except DatabaseError as error:
            said.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    begin = time.monotonic()
    try:
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert time.monotonic() - begin < 10
        assert len(said) == 5
        for error in said:
            assert tells(error, f"{memory.place}: can't be reached, after retrying for 0.2 s ...")
    finally:
        postgres.start()
    assert len(set(together(memory, 3))) == 3


def test_closing_ends_them_and_the_pools_threads(postgres, filled):
    _, memory = filled(num_connections=2)
    pids = together(memory, 2)
    memory.close()
    for _ in range(200):
        if not num_backends(postgres, pids):
            break
        time.sleep(0.02)
    assert num_backends(postgres, pids) == 0
    memory.close()
    assert memory.num_documents == 6, "the next question opens one again"


def test_a_child_leaves_its_parents_connections_alone(postgres, filled):
    retriever, memory = filled(num_connections=2)
    pids = together(memory, 2)
    before = retriever.retrieve(QUERY, 3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = memory.database.run(backend)
            if own not in pids and retriever.retrieve(QUERY, 3) == before:
                memory.close()
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert set(together(memory, 2)) == set(pids)


def test_a_pickled_memory_opens_its_own(filled):
    _, memory = filled()
    copy = pickle.loads(pickle.dumps(memory))
    assert copy.document(0) == memory.document(0)
    assert copy.database.run(backend) != memory.database.run(backend)
    copy.close()


def test_pythons_generator_stays_as_it_is(filled):
    """psycopg_pool draws from it for each connection."""
    random.seed(3)
    before = random.getstate()
    _, memory = filled(num_connections=2)
    together(memory, 2)
    assert random.getstate() == before


def test_recipes_keep_their_hash(postgres):
    config = new_config(postgres)
    assert "num_connections" not in to_plain(config)
    assert to_plain(PgvectorRetrieverConfig(num_connections=3))["num_connections"] == 3


@pytest.mark.slow
def test_a_process_that_closes_nothing_ends_at_once(postgres, filled):
    _, memory = filled()
    code = (
        "import atexit, pickle, sys, time\n"
        "atexit.register(lambda: print(time.monotonic()))\n"  # the first of them runs last
        "memory = pickle.loads(sys.stdin.buffer.read())\n"
        "assert memory.num_documents == 6\n"
        "atexit.register(lambda: print(time.monotonic()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(memory), capture_output=True, check=True
    )
    first, last = map(float, done.stdout.split())
    assert last - first < 4, "a pool that isn't closed waits for its threads for 5 s each"
    assert done.stderr == b""


@pytest.mark.slow
def test_only_the_silent_connection_is_shut(filled):
    """One statement takes longer than its limit while others answer; all are watched by one thread."""
    _, memory = filled(num_connections=3, timeout_seconds=1.0, retry_seconds=0.0)
    together(memory, 3)
    said, done = [], []

    def slow():
        with pytest.raises(DatabaseError) as error:
            memory.database.run(lambda one: one.execute("SELECT pg_sleep(5)"))
        said.append(error.value)

    def patient(connection):
        for _ in range(6):
            connection.execute("SELECT pg_sleep(0.4)")
            memory.database.answered()
        return True

    threads = [
        threading.Thread(target=slow),
        *(
            threading.Thread(target=lambda: done.append(memory.database.run(patient)))
            for _ in range(2)
        ),
    ]
    begin = time.monotonic()
    for one in threads:
        one.start()
    names = [one.name for one in threading.enumerate()]
    threads[0].join()
    assert time.monotonic() - begin < 4
    for one in threads[1:]:
        one.join()
    assert names.count("cm3-watchdog") == 1
    assert tells(said[0], f"{memory.place}: did not answer within 1 s, after retrying for 0 s ...")
    assert done == [True, True]


def test_a_shorter_limit_wakes_the_watchdog():
    """It sleeps for a long limit when one of 0.1 s comes."""
    dog = Watchdog()
    pairs = [socket.socketpair() for _ in range(2)]
    long, short = (
        Watched(pair[0], time.monotonic() + limit)
        for pair, limit in zip(pairs, (60, 0.1), strict=True)
    )
    with dog.watching(long), dog.watching(short):
        assert pairs[1][1].recv(1) == b"", "it was shut"
    assert (long.silent, short.silent) == (False, True)
    pairs[0][0].sendall(b"a")
    assert pairs[0][1].recv(1) == b"a"
    for one, other in pairs:
        one.close()
        other.close()
