"""Engines that stop or don't get on, and components that raise: what /healthz and /readyz say, and what happens next."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from cm3core.errors import CheckpointError, GenerationError, PluginError
from cm3run.generation.events import wrong_request
from cm3serve.http import answer_to
from cm3serve.running import Watch, warm_up
from cm3serve.scheduling import FairQueue, ModelPool
from cm3serve.settings import Limits
from cm3serve.tasks import Workshop
from toy_model import toy_model
from toy_server import CHAT, served, toy, with_fixtures


def health(server, path="/healthz"):
    answer = httpx.get(server.url + path, timeout=20)
    return answer.status_code, answer.json()


def exits(*_, **__):
    raise SystemExit(0)


def run(server, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, server.loop).result(60)


@pytest.mark.parametrize("where", ["reranker.score", "image_tokenizer.decode", "embedder"])
def test_a_component_that_exits_costs_its_request(where, caplog, monkeypatch):
    """One client is answered with 500 and the log has the traceback; the other gets its picture."""
    model = toy()()
    part, _, method = where.partition(".")
    with served({"toy": lambda: model}) as server:
        alone = server.post(prompt="red", seed=3, candidates=1).json()["data"]
        if part == "embedder":
            monkeypatch.setattr(model.components.retriever, "retrieve", exits)
            good = {"num_retrieved": 0}
            alone = server.post(prompt="red", seed=3, candidates=1, **good).json()["data"]
        else:
            whole = getattr(getattr(model.components, part), method)
            good = {}

            def some(*arguments, **options):
                return exits() if asked.is_set() else whole(*arguments, **options)

            asked = threading.Event()
            monkeypatch.setattr(getattr(model.components, part), method, some, raising=False)
            asked.set()
        with caplog.at_level(logging.ERROR, "cm3.serve"):
            # a prompt of its own: what was searched for before is remembered
            answer = server.post(prompt="blue", n=2, candidates=2, seed=3)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "SystemExit" in caplog.text
        assert "in exits" in caplog.text
        if part != "embedder":
            asked.clear()
        again = server.post(prompt="red", seed=3, candidates=1, **good).json()["data"]
        assert [one["b64_json"] for one in again] == [one["b64_json"] for one in alone]
        assert health(server)[0] == 200
        assert server.workshop.queue.in_flight == 0


def test_an_engine_that_stops_is_told_and_loaded_again():
    """Its decoder exits at every call: the request fails, /healthz answers 503, and a new model takes its place."""
    models = [toy()(), toy()()]
    models[0].engine.inference.hidden_states = exits
    left = iter(models)
    with served({"toy": lambda: next(left)}) as server:
        assert health(server, "/readyz") == (
            503,
            {"status": "not ready", "reason": "no model is loaded yet"},
        )
        answer = server.post(prompt="red", seed=3)
        assert answer.status_code == 500
        reason = "an engine has stopped or is stuck; the log says which"
        assert health(server) == (503, {"status": "failing", "reason": reason})
        assert health(server, "/readyz") == (503, {"status": "not ready", "reason": reason})
        run(server, server.workshop.pool.revive())
        assert health(server) == (200, {"status": "ok"})
        assert health(server, "/readyz") == (200, {"status": "ready"})
        assert server.post(prompt="red", seed=3).status_code == 200


def test_an_engine_that_can_not_be_loaded_again_ends_the_watch(caplog):
    model = toy_model()
    model.engine.inference.hidden_states = exits

    def opened():
        if pool.loads:
            raise CheckpointError("runs/gone", "does not exist", "name another")
        return model

    pool = ModelPool({"toy": opened}, 1)

    async def main():
        async with pool.use("toy") as shared:
            with pytest.raises(ValueError, match="engine: stopped with SystemExit: 0"):
                await shared.generate("red", 1)
        await asyncio.wait_for(Watch(pool, 60, 0.001).run(), 30)

    with caplog.at_level(logging.ERROR, "cm3"):
        asyncio.run(main())
    assert "the engine has stopped" in caplog.text
    assert "model toy: its engine has stopped and is being reloaded" in caplog.text
    assert caplog.messages[-1].startswith("the server ends: the model 'toy' can't be loaded now")


def test_an_engine_that_is_stuck_is_told_and_given_up(caplog):
    model, goes_on, began = toy()(), threading.Event(), threading.Event()
    whole = model.engine.inference.hidden_states

    def sticks(*arguments, **options):
        began.set()
        goes_on.wait(60)
        return whole(*arguments, **options)

    model.engine.inference.hidden_states = sticks
    with (
        ThreadPoolExecutor(1) as others,
        served({"toy": lambda: model}, limits=Limits(stuck_seconds=0.2)) as server,
    ):
        waiting = others.submit(server.post, prompt="red", seed=3, candidates=1)
        try:
            assert began.wait(30)
            server.until(lambda: health(server)[0] == 503)
            trouble = server.workshop.pool.trouble(0.2)
            assert trouble.startswith("model toy: a step has taken 0 s so far; waiting requests: 1")
            assert health(server, "/readyz")[0] == 503
            caplog.clear()
            with caplog.at_level(logging.CRITICAL, "cm3.serve"):
                run(server, Watch(server.workshop.pool, 0.2, 0.02).run())
            assert "in sticks" in caplog.messages[0]  # where it is stuck
            assert caplog.messages[-1].startswith("the server ends: model toy: a step has taken")
        finally:
            goes_on.set()
        assert waiting.result(60).status_code == 200
        server.until(lambda: health(server)[0] == 200)


def test_a_step_that_ends_in_time_is_no_trouble():
    pool = ModelPool({"toy": toy_model}, 1)

    async def main():
        async with pool.use("toy"):
            watching = asyncio.create_task(Watch(pool, 5, 0.001).run())
            await asyncio.sleep(0.05)
            assert not watching.done()
            watching.cancel()
        await pool.close()

    asyncio.run(main())


def test_a_component_that_breaks_its_law_is_the_servers_fault():
    """The log has its traceback; a request that the model refuses is the client's."""
    broken = wrong_request(3, PluginError("plugin 'x'", "breaks the law", "update it"))
    assert answer_to(broken, "/v1/images/generations").status == 500
    refused = GenerationError("prompt", "is empty", "say what to draw")
    assert answer_to(refused, "/v1/images/generations").status == 400


# ---- the first picture


def workshop_of(pool):
    return Workshop(pool, FairQueue(4, 4, 4), Limits())


def test_a_model_has_drawn_before_it_counts_as_loaded(monkeypatch, caplog):
    """Whatever a first request would wait for has been asked once."""
    model, calls = toy()(), []
    parts = model.components

    def counted(component, method):
        whole = getattr(component, method)

        def call(*arguments, **options):
            calls.append(method)
            return whole(*arguments, **options)

        monkeypatch.setattr(component, method, call, raising=False)

    counted(parts.retriever, "retrieve")
    counted(parts.image_tokenizer, "decode")
    counted(parts.image_tokenizer, "encode")
    counted(model.engine.inference, "hidden_states")
    if parts.reranker is not None:
        model.recipe.generate.num_candidates = 2
        counted(parts.reranker, "score")
    pool = ModelPool({"toy": lambda: model}, 1)
    pool.warm = lambda name, shared: warm_up(name, shared, workshop_of(pool))

    async def main():
        async with pool.use("toy") as shared:
            before = set(calls)
            [drawn] = await shared.generate("red", 1, seed=3)
            assert set(calls) == before
        await pool.close()
        return before, drawn

    with caplog.at_level(logging.INFO, "cm3.serve"):
        before, drawn = asyncio.run(main())
    assert re.fullmatch(r"model toy has drawn its first picture, in \d+\.\d s", caplog.messages[0])
    assert before >= {"retrieve", "decode", "hidden_states", "encode", "score"}
    own = toy()()
    own.recipe.generate.num_candidates = 2
    assert (drawn.pixels == own.generate("red", 1, seed=3)[0].pixels).all()


def test_a_first_picture_that_fails_is_logged_and_stops_nothing(caplog, monkeypatch):
    model = toy()()
    monkeypatch.setattr(model.components.retriever, "retrieve", exits)
    pool = ModelPool({"toy": lambda: model}, 1)
    pool.warm = lambda name, shared: warm_up(name, shared, workshop_of(pool))

    async def main():
        async with pool.use("toy") as shared:
            await shared.generate("red", 1, num_retrieved=0)
        await pool.close()

    with caplog.at_level(logging.WARNING, "cm3.serve"):
        asyncio.run(main())
    assert caplog.messages == ["model toy: its first picture, a test, failed"]
    assert "SystemExit" in caplog.text


@pytest.mark.slow
def test_a_stuck_server_ends_with_exit_code_1():
    """Its steps take a minute, and it may take 0.3 s over one."""
    command = [
        sys.executable,
        "-m",
        "toy_server",
        '{"seconds": 60, "stuck_seconds": 0.3, "drain_seconds": 0.5}',
    ]
    process = subprocess.Popen(
        command, env=with_fixtures(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().split()[-1]
        with pytest.raises(httpx.HTTPError):
            httpx.post(
                url + CHAT.lstrip("/"),
                json={"messages": [{"role": "user", "content": "red"}]},
                timeout=30,
            )
        assert process.wait(60) == 1
    finally:
        process.kill()
    assert "a step has taken" in process.stderr.read()
