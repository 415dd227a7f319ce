"""The server by Ray Serve: what is refused before Ray is asked, a replica alone, and two of them that are
killed, or taken away, under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from cm3core.errors import CM3Error
from cm3serve import ray as by_ray
from cm3serve.http import SEED
from cm3serve.ray import Replica, app, read_arguments
from messages import tells
from toy_server import GENERATE, served, toy, with_fixtures


def refused(**arguments: Any) -> str:
    with pytest.raises(CM3Error) as caught:
        read_arguments(arguments)
    return str(caught.value)


def test_arguments_are_those_of_the_command():
    args = read_arguments({"model": ["a=x", "y"], "at_once": "8", "drain": 5, "force": "ask"})
    assert (args.model, args.at_once, args.drain, args.force) == (["a=x", "y"], 8, 5.0, ["ask"])
    assert (args.min_replicas, args.max_replicas, args.target_requests, args.doors) == (1, 1, 4, 2)
    assert args.threads == 1  # a replica's share of the machine
    assert read_arguments({"cpus": 4}).threads == 4
    assert read_arguments({"gpus": 1}).threads is None
    assert read_arguments({"min_replicas": 3}).max_replicas == 3
    assert read_arguments({"quiet": True}).quiet
    assert not read_arguments({"quiet": "false"}).quiet
    assert read_arguments({"trust_plugin": ["a", "b"]}).trust_plugins == ["a", "b"]


def test_arguments_that_are_wrong():
    assert tells(refused(port=80), "cm3serve.ray port: is set by Ray")
    assert tells(refused(max_replica=2), "cm3serve.ray max_replica: is not an argument")
    assert tells(
        refused(at_once=8, target_requests=9),
        "cm3serve.ray target_requests: is 9, and ... at_once=8",
    )
    assert refused(at_once="many").startswith("cm3serve.ray: argument --at-once: ")
    assert "argument --gpus: " in refused(gpus=-1)
    assert "argument --precision: " in refused(precision="fp8")


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(by_ray, "find_spec", lambda name: None)
    with pytest.raises(CM3Error) as caught:
        app({})
    assert tells(caught.value, "cm3serve.ray: the package 'ray' ... 'cm3leon[ray]'")


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'cm3leon[ray]'")
def test_a_model_that_is_not_there():
    with pytest.raises(CM3Error, match="runs/none"):
        app({"model": "runs/none"})


# ---- a replica, without Ray


class Toy(Replica):
    """A replica of a toy model, as slow as the options say."""

    def openers(self, args: Namespace) -> Mapping[str, Any]:
        return {"toy": toy(args.seconds)}


def scope_of(path: str = GENERATE, seed: int = 7) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        SEED: seed,
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
    }


async def replica_of(seconds: float = 0.0) -> Toy:
    args = read_arguments({"at_once": 4, "quiet": True})
    replica = Toy({**vars(args), "seconds": seconds})
    await replica.check_health()  # as Ray does first
    assert replica.workshop.pool.loaded == ["toy"]
    return replica


def test_a_replica_answers_with_the_doors_seed():
    async def main() -> None:
        replica = await replica_of()
        for body, seed in (({}, 7), ({"seed": 5}, 5)):
            data = json.dumps({"prompt": "red", **body}).encode()
            start, piece = [message async for message in replica.answer(scope_of(), data)]
            assert start["status"] == 200
            assert json.loads(piece["body"])["data"][0]["seed"] == seed
        await replica.check_health()
        await replica.workshop.pool.close()

    asyncio.run(main())


def test_leaving_a_replicas_answer_frees_its_rows():
    async def main() -> None:
        replica = await replica_of(seconds=0.02)
        body = json.dumps({"prompt": "red", "n": 4, "stream": True, "partial_images": 3}).encode()
        answer = replica.answer(scope_of(), body)
        assert (await anext(answer))["status"] == 200
        assert replica.workshop.queue.in_flight == 4
        await answer.aclose()
        assert replica.workshop.queue.in_flight == 0
        await replica.workshop.pool.close()

    asyncio.run(main())


def test_a_replica_whose_engine_has_stopped_is_unwell():
    async def main() -> None:
        replica = await replica_of()
        pool = replica.workshop.pool
        async with pool.use("toy") as loaded:
            loaded.engine.close()
        statuses = []
        async for message in replica.answer(scope_of(), b'{"prompt": "red"}'):
            statuses.append(message.get("status"))
        assert statuses[0] == 500
        with pytest.raises(RuntimeError, match="an engine of this replica has stopped"):
            await replica.check_health()
        await pool.close()

    asyncio.run(main())


def test_a_replica_whose_engine_is_stuck_is_unwell(monkeypatch, caplog):
    async def main() -> None:
        replica = await replica_of()
        pool = replica.workshop.pool
        async with pool.use("toy") as loaded:
            monkeypatch.setattr(loaded.engine._workers[0], "since", time.monotonic() - 125.4)
            with pytest.raises(RuntimeError, match="model toy: a step has taken 125 s so far"):
                await replica.check_health()
            assert "its threads:" in caplog.text
            monkeypatch.undo()
        await replica.check_health()
        await pool.close()

    asyncio.run(main())


# ---- two replicas, by Ray


@contextmanager
def replicas(
    folder: Path, home: Path, **arguments: Any
) -> Iterator[tuple[str, list[int], Callable[[], None]]]:
    """The address, the process ids of the replicas, and what takes the application away."""
    folder.mkdir()
    home.mkdir()
    given = {"seconds": 0.05, "arguments": arguments}
    # Ray writes into the user's home folder
    environment = {**with_fixtures(), "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "toy_replicas", str(folder), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            lines = (line for line in process.stdout if line.startswith("http://"))

            def take_away() -> None:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                while process.stdout.readline() != "deleted\n":
                    assert process.poll() is None

            yield next(lines).strip(), [int(path.name) for path in folder.iterdir()], take_away
            process.stdin.close()
            assert process.wait(120) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def draw(url: str, seed: int) -> list[str]:
    answer = httpx.post(url + GENERATE, json={"prompt": "red", "seed": seed, "n": 2}, timeout=240)
    assert answer.status_code == 200, answer.text
    return [one["b64_json"] for one in answer.json()["data"]]


def drawn_in_a_stream(url: str, seed: int) -> list[str]:
    body = {"prompt": "red", "seed": seed, "n": 2, "stream": True, "partial_images": 2}
    found: dict[int, str] = {}
    partial: list[tuple[int, int]] = []
    with httpx.stream("POST", url + GENERATE, json=body, timeout=240) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"].endswith(".completed"):
                assert event["index"] not in found, "it came twice"
                found[event["index"]] = event["b64_json"]
            else:
                partial.append((event["index"], event["partial_image_index"]))
    assert sorted(partial) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    return [found[place] for place in range(2)]


def drawn_by_one() -> list[list[str]]:
    """What a server that nothing happens to draws with the seeds 0 to 11."""
    with served() as one:
        return [
            [item["b64_json"] for item in one.post(prompt="red", seed=seed, n=2).json()["data"]]
            for seed in range(12)
        ]


def drawn_by_all(pool: ThreadPoolExecutor, url: str) -> list[Future[list[str]]]:
    """48 requests that are under way, a third of them streams; four are answered."""
    work = [
        pool.submit(drawn_in_a_stream if number % 3 == 0 else draw, url, number % 12)
        for number in range(48)
    ]
    while sum(one.done() for one in work) < 4:
        time.sleep(0.01)
    return work


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'cm3leon[ray]'")
@pytest.mark.parametrize("killed", [1, 2])
def test_replicas_that_are_killed_under_load_lose_no_request(killed: int, tmp_path: Path) -> None:
    """SIGKILL to one of two, or both: every request is answered, with the pictures of one server that
    nothing happened to; and Ray starts others."""
    folder, expected = tmp_path / "replicas", drawn_by_one()
    with (
        replicas(folder, tmp_path / "home", min_replicas=2, at_once=8, cpus=0.5) as (url, pids, _),
        ThreadPoolExecutor(16) as pool,
    ):
        assert len(pids) == 2
        assert httpx.get(url + "/v1/models", timeout=60).json()["data"][0]["id"] == "toy"
        work = drawn_by_all(pool, url)
        for pid in pids[:killed]:
            os.kill(pid, signal.SIGKILL)
        assert not all(one.done() for one in work)
        for number, one in enumerate(work):
            assert one.result(300) == expected[number % 12], number
        end = time.monotonic() + 180
        while len(list(folder.iterdir())) < 2 + killed:
            assert time.monotonic() < end, "no other replica was started"
            time.sleep(0.1)
        assert httpx.get(url + "/healthz", timeout=60).json() == {"status": "ok"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'cm3leon[ray]'")
def test_an_application_that_is_taken_away_answers_what_is_under_way(tmp_path: Path) -> None:
    """Those that came before are answered right, those that come after with 404: none loses its connection."""
    expected = drawn_by_one()
    with (
        replicas(
            tmp_path / "replicas",
            tmp_path / "home",
            **{"min_replicas": 2, "at_once": 8, "cpus": 0.5, "drain": 60},
        ) as (url, _, take_away),
        ThreadPoolExecutor(16) as pool,
    ):
        work = drawn_by_all(pool, url)
        num_before = sum(one.done() for one in work)
        take_away()
        num_right = 0
        for number, one in enumerate(work):
            if (error := one.exception(300)) is None:
                assert one.result() == expected[number % 12], number
                num_right += 1
            else:  # a status that is not 200
                assert isinstance(error, AssertionError), f"{number}: {error!r}"
        assert num_right >= num_before + 8, "16 were under way, some of them not yet at the server"
        assert httpx.post(url + GENERATE, json={}, timeout=60).status_code == 404
