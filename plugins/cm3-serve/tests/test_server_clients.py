"""Many clients, one engine: they share a batch, take turns, go away, and harm nobody."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cm3core.errors import DataError, GenerationError
from cm3core.images import open_image
from cm3serve.settings import Limits
from toy_model import picture, toy_model
from toy_server import CHAT, GENERATE, mask, png, served, toy, with_fixtures


def test_clients_get_what_they_get_alone():
    with served() as server, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda seed: server.post(prompt="red", seed=seed), range(16)))
    model = toy_model()
    for seed, answer in enumerate(answers):
        shown = open_image(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        assert (shown == model.generate("red", 1, seed=seed)[0].pixels).all()


def counted(opener, steps: list[float]):
    """Opens the model; each step of its engine is noted in `steps`."""

    def opened():
        model = opener()
        plain = model.engine.open

        def counting(**options):
            session = plain(**options)
            step = session.step

            def noted():
                steps.append(time.monotonic())
                return step()

            session.step = noted
            return session

        model.engine.open = counting
        return model

    return opened


def test_they_share_the_batch():
    """Eight at once take few more steps of the engine than one alone; counted, not timed."""
    steps: list[float] = []
    with (
        served({"toy": counted(toy(0.05), steps)}) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        server.post(prompt="red", seed=1)
        alone = len(steps)
        list(clients.map(lambda seed: server.post(prompt="red", seed=seed), range(8)))
        together = len(steps) - alone
    assert 0 < alone <= together < 8 * alone / 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows_at_once(stream, caplog):
    caplog.set_level(logging.INFO, "cm3.serve")
    with served({"toy": toy(0.05, 100)}) as server:
        server.load()
        pool, queue = server.workshop.pool, server.workshop.queue
        body = {"prompt": "red", "n": 10, "stream": stream, "partial_images": 3 if stream else 0}
        with (
            httpx.Client(timeout=30) as client,
            client.stream("POST", server.url + GENERATE, json=body)
            if stream
            else _sent(server.url, body) as answer,
        ):
            if stream:
                lines = answer.iter_lines()
                next(lines)
            server.until(lambda: pool.num_requests == 10)
            assert queue.in_flight == 10
        server.until(lambda: pool.num_requests == 0, 2)
        assert queue.in_flight == 0
        assert server.post(prompt="red").status_code == 200
    assert "499" in caplog.text


class _sent:  # noqa: N801 (a context, read as a word)
    """A request whose answer nobody reads: the connection is closed at the end."""

    def __init__(self, url: str, body: dict[str, object]) -> None:
        import socket

        host, port = url.removeprefix("http://").split(":")
        data = json.dumps(body).encode()
        self.wire = socket.create_connection((host, int(port)))
        self.wire.sendall(
            f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.wire.close()


def test_one_that_waits_and_goes_away_leaves_the_queue():
    with served({"toy": toy(0.05)}, limits=Limits(at_once=1)) as server:
        with _sent(server.url, {"prompt": "red"}):
            server.until(lambda: server.workshop.queue.in_flight == 1)
            with _sent(server.url, {"prompt": "red"}):
                server.until(lambda: server.workshop.queue.waiting == 1)
            server.until(lambda: server.workshop.queue.waiting == 0, 2)
        server.until(lambda: server.workshop.queue.in_flight == 0)


def test_a_full_queue_answers_429():
    limits = Limits(at_once=1, waiting=1, waiting_per_client=1)
    with served({"toy": toy(0.05)}, limits=limits) as server, ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda seed: server.post(prompt="red", seed=seed), range(6)))
        refused = [one for one in answers if one.status_code == 429]
        assert 1 <= len(refused) <= 4
        assert sorted({one.status_code for one in answers}) == [200, 429]
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_modest_client_is_not_kept_by_a_greedy_one():
    """Clients are told apart by their addresses."""
    with served({"toy": toy(0.1)}, limits=Limits(at_once=1)) as server:
        server.post(prompt="red")
        finished: list[str] = []

        def ask(address: str, seed: int) -> None:
            transport = httpx.HTTPTransport(local_address=address)
            with httpx.Client(transport=transport, timeout=60) as client:
                answer = client.post(server.url + GENERATE, json={"prompt": "red", "seed": seed})
                assert answer.status_code == 200
                finished.append(address)

        greedy = [threading.Thread(target=ask, args=("127.0.0.1", seed)) for seed in range(6)]
        for thread in greedy:
            thread.start()
        server.until(lambda: server.workshop.queue.waiting >= 4)
        modest = threading.Thread(target=ask, args=("127.0.0.2", 9))
        modest.start()
        for thread in [modest, *greedy]:
            thread.join()
    assert "127.0.0.2" in finished[:3]


def test_several_models_are_served_by_name():
    with served({"a": toy(), "b": toy(), "c": toy()}, most_models=2) as server:
        for name in "abcab":
            assert server.post(prompt="red", model=name).status_code == 200
        assert len(server.workshop.pool.loaded) == 2
        assert server.post(prompt="red", model="d").status_code == 404


def test_a_model_that_is_forced_edits_and_answers():
    whole = picture(8, 8)
    url = "data:image/png;base64," + base64.b64encode(png(whole)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}, part]}]}
    model = toy(text_tokens=60)()
    with served({"toy": toy(text_tokens=60)}, forced=frozenset({"edit", "ask"})) as server:
        body = {"images": [{"image_url": url}], "prompt": "blue", "seed": 3, "n": 2}
        edited = server.post("/v1/images/edits", sampler=None, **body).json()["data"]
        answer = server.post(CHAT, seed=3, **asked).json()["choices"][0]["message"]
        drawn = server.post(CHAT, seed=3, modalities=["image"], **asked).json()
        facts = server.post("/studio/facts").json()
    for one, own in zip(edited, model.edit(whole, "blue", 2, seed=3), strict=True):
        assert (open_image(base64.b64decode(one["b64_json"])) == own.pixels).all()
    assert answer["content"] == model.ask(whole, "why?", seed=3).text
    shown = drawn["choices"][0]["message"]["content"][0]["image_url"]["url"].partition(",")[2]
    own = model.edit(whole, "why?", 1, seed=3)[0]
    assert (open_image(base64.b64decode(shown)) == own.pixels).all()
    assert facts["tasks"] == ["draw", "fill", "caption", "ask", "edit"]


def test_a_failure_inside_is_logged_once_and_hides_its_reason(caplog):
    model = toy_model()

    def fail(codes: object) -> None:
        raise ZeroDivisionError("a secret")

    model.decode = fail  # type: ignore[method-assign, assignment]  # a stand-in
    with served({"toy": lambda: model}) as server:
        answer = server.post(prompt="red")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["error"]["code"] == "internal_error"
        assert server.workshop.queue.in_flight == 0
    assert caplog.text.count("ZeroDivisionError: a secret") == 1


def test_a_model_whose_engine_died_is_loaded_again():
    broken = toy_model()
    opened = broken.engine.open

    def dying(**options: Any) -> object:
        session = opened(**options)

        def step() -> None:
            raise RuntimeError("the decoder broke")

        session.step = step  # type: ignore[method-assign, assignment]  # a stand-in
        return session

    broken.engine.open = dying  # type: ignore[method-assign, assignment]  # a stand-in
    models = iter([broken, toy_model()])
    with served({"toy": lambda: next(models)}) as server:
        assert server.post(prompt="red").status_code == 500
        assert server.post(prompt="red").status_code == 200
        assert server.workshop.pool.loads == 2


def test_sigterm_lets_requests_finish():
    given = json.dumps({"seconds": 0.1})
    with subprocess.Popen(
        [sys.executable, "-m", "toy_server", given],
        stdout=subprocess.PIPE,
        text=True,
        env=with_fixtures(),
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("cm3 serve: ").strip().rstrip("/")
        with ThreadPoolExecutor(1) as clients:
            body = {"prompt": "red", "stream": True, "partial_images": 3}
            with httpx.stream("POST", url + GENERATE, json=body, timeout=30) as answer:
                lines = answer.iter_lines()
                assert next(lines) == "event: image_generation.partial_image"
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
                late = clients.submit(lambda: httpx.get(url + "/healthz"))
                with pytest.raises(httpx.ConnectError):
                    late.result()
                assert "event: image_generation.completed" in list(lines)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_requests_that_outlast_the_drain_are_ended():
    given = json.dumps({"seconds": 1.0, "drain_seconds": 1})
    with subprocess.Popen(
        [sys.executable, "-m", "toy_server", given],
        stdout=subprocess.PIPE,
        text=True,
        env=with_fixtures(),
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("cm3 serve: ").strip().rstrip("/")
        with _sent(url, {"prompt": "red", "n": 4}):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def resident() -> int:
    """Bytes of memory that the process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(number: int, seed: int) -> None:
    """Mixed requests, a third of whose clients go away; the others must get what they get alone."""
    rng, model = random.Random(seed), toy_model()
    expected = {
        ("draw", own): model.generate("red", 1, seed=own)[0].pixels.tobytes() for own in range(8)
    }
    whole = picture(8, 8)
    expected |= {
        ("fill", own): model.infill(whole, (0, 4, 8, 8), "red", seed=own).pixels.tobytes()
        for own in range(8)
    }
    uri = "data:image/png;base64,"
    source = uri + base64.b64encode(png(whole)).decode()
    marked = uri + base64.b64encode(mask(8, 8, (0, 4, 8, 8))).decode()
    caption = model.caption(whole, seed=3).text

    async def one(client: httpx.AsyncClient, place: int) -> str:
        sort, own = (
            rng.choice(["draw", "draw", "fill", "caption", "bad", "stream"]),
            rng.randrange(8),
        )
        body: dict[str, object] = {"prompt": "red", "seed": own}
        path = GENERATE
        if sort == "fill":
            path = "/v1/images/edits"
            body |= {"images": [{"image_url": source}], "mask": {"image_url": marked}}
        elif sort == "caption":
            path = CHAT
            part = {"type": "image_url", "image_url": {"url": source}}
            body = {"messages": [{"role": "user", "content": [part]}], "seed": 3}
        elif sort == "bad":
            body["n"] = -1
        elif sort == "stream":
            body |= {"stream": True, "partial_images": 3}
        try:
            async with asyncio.timeout(rng.uniform(0, 0.1) if rng.random() < 1 / 3 else 60):
                answer = await client.post(path, json=body)
        except TimeoutError:
            return "left"
        if sort == "bad":
            assert answer.status_code == 400
        elif sort == "caption":
            assert answer.json()["choices"][0]["message"]["content"] == caption
        elif sort == "stream":
            assert "event: image_generation.completed" in answer.text
        else:
            shown = open_image(base64.b64decode(answer.json()["data"][0]["b64_json"]))
            assert shown.tobytes() == expected[sort, own]
        return sort

    async def everything(url: str, number: int) -> list[str]:
        gate = asyncio.Semaphore(12)

        async def gated(client: httpx.AsyncClient, place: int) -> str:
            async with gate:
                return await one(client, place)

        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(gated(client, place) for place in range(number)))

    with served({"toy": toy(0.001)}, limits=Limits(at_once=8)) as server:
        server.post(prompt="red")
        ended = asyncio.run(everything(server.url, number // 2))
        before = resident()
        ended += asyncio.run(everything(server.url, number - number // 2))
        assert resident() - before < 40 << 20, "memory grows with the requests"
        assert ended.count("left") > number // 10
        assert set(ended) == {"left", "draw", "fill", "caption", "bad", "stream"}
        queue, pool = server.workshop.queue, server.workshop.pool
        server.until(lambda: pool.num_requests == 0 and queue.in_flight == 0)
        assert (queue.waiting, dict(queue.running)) == (0, {})

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        gc.collect()
        left = asyncio.run_coroutine_threadsafe(tasks(), server.loop).result()
        assert left < 20, "tasks are left over"


@pytest.mark.slow
def test_soak():
    soak(150, seed=1)


@pytest.mark.extended
def test_soak_long():
    soak(2000, seed=2)


def test_errors_of_the_engine_and_of_its_documents_are_the_servers():
    from cm3serve.http import answer_to

    assert answer_to(GenerationError("engine", "is closed", "x"), "/x").status == 500
    assert answer_to(GenerationError("prompt", "is empty", "x"), "/x").status == 400
    gone = answer_to(DataError("dataset.path my/pictures", "there is no such folder", "x"), "/x")
    assert (gone.status, gone.code) == (503, "documents_not_available")
    assert "my/pictures" not in gone.message  # the server's folders are not the client's business
