"""Results are drawn in a place of the engine, and encoded outside of it: an encoder that is slow keeps nobody's
result from being drawn."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import cm3core
from cm3run.model import Model
from cm3serve.intake import ENCODERS, Gate
from cm3serve.pictures import Output
from cm3serve.settings import Limits
from tiny_chameleon import write_cm3
from toy_model import picture, toy_model
from toy_server import CHAT, EDIT, GENERATE, Served, choosing, mask, png, served, toy, tuned

SETS, CONDITIONS = "/v1/sets", "/v1/conditions"
#: More requests than there are encoders.
MANY = ENCODERS + 2


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


PICTURE = url(png(picture(8, 8)))
SAID = [{"role": "user", "content": "red"}]
FILL = {"images": [{"image_url": PICTURE}], "mask": {"image_url": url(mask(8, 8, (0, 0, 8, 4)))}}
#: What is encoded: path, body, results.
WORK: dict[str, tuple[str, dict[str, Any], int]] = {
    "pictures": (GENERATE, {"prompt": "red", "n": 4}, 4),
    "a stream": (GENERATE, {"prompt": "red", "n": 4, "stream": True}, 4),
    "partial pictures": (
        GENERATE,
        {"prompt": "red", "n": 2, "stream": True, "partial_images": 3},
        2,
    ),
    "many partial ones": (
        GENERATE,
        {"prompt": "red", "n": 2, "stream": True, "partial_images": 9},
        2,
    ),
    "a fill": (EDIT, FILL | {"prompt": "red", "n": 2, "stream": True}, 2),
    "a set": (SETS, {"things": ["red", "blue", "key"], "stream": True}, 3),
    "chat": (CHAT, {"messages": SAID, "n": 2}, 2),
    "turns": (CHAT, {"messages": SAID, "modalities": ["image"], "model": "turns"}, 1),
    "a stream of turns": (
        CHAT,
        {
            "messages": SAID,
            "modalities": ["image"],
            "model": "turns",
            "stream": True,
            "partial_images": 2,
        },
        1,
    ),
    "a structure": (CONDITIONS, {"condition": "canny", "image_url": PICTURE}, 0),
}


class Blocked:
    """What encodes pictures; it waits until `opened` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), 0
        for name in ("encode", "preview"):
            monkeypatch.setattr(Output, name, self._waiting(getattr(Output, name)))

    def _waiting(self, encode: Any) -> Any:
        def waits(*arguments: Any) -> Any:
            self.reached += 1
            assert self.opened.wait(60)
            return encode(*arguments)

        return waits


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    one = Blocked(monkeypatch)
    yield one
    one.opened.set()


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cm3(tmp_path_factory.mktemp("chameleon"))


def results(server: Served) -> float:
    """Results that were drawn."""
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith("cm3_results_total{"))


def result_pixels(server: Served) -> int:
    return server.workshop.gate.results.in_flight


#: Each way of it; the others go by the same ways.
EACH_WAY = ("partial pictures", "a set", "a stream of turns", "a structure")


@pytest.mark.parametrize(
    "name",
    [name if name in EACH_WAY else pytest.param(name, marks=pytest.mark.slow) for name in WORK],
)
def test_an_encoder_that_is_stuck_keeps_no_result_from_being_drawn(name, blocked, chameleon):
    """Of the same client and of others, also with another model where one at a time is in memory."""
    path, body, each = WORK[name]
    openers = {
        "toy": toy(),
        "turns": lambda: cm3core.load(chameleon),
        "other": lambda: choosing(toy_model()),
    }
    limits = Limits(at_once=4)
    with served(openers, limits=limits, most_models=1) as server, ThreadPoolExecutor(20) as many:
        own = [many.submit(server.post, path, **body) for _ in range(MANY)]
        server.until(lambda: blocked.reached >= ENCODERS)
        server.until(lambda: results(server) == MANY * each and not server.workshop.queue.in_flight)
        others = [many.submit(server.post, prompt="red", model=one) for one in ("toy", "other")]
        server.until(lambda: results(server) == MANY * each + len(others))
        server.until(lambda: not server.workshop.queue.in_flight)
        assert blocked.reached == ENCODERS, "no more are encoded at once"
        assert not any(one.done() for one in [*own, *others])
        blocked.opened.set()
        answers = [one.result() for one in [*own, *others]]
        assert [one.status_code for one in answers] == [200] * len(answers)
        assert not any("event: error" in one.text for one in answers)
        server.until(lambda: result_pixels(server) == 0)


def test_results_wait_for_room_before_they_have_a_place(blocked):
    """What is drawn and not encoded is bounded; what waits for it holds no place."""
    limits = Limits(at_once=8, all_pixels=4 * 64)
    with served(limits=limits) as server, ThreadPoolExecutor(2) as many:
        first = many.submit(server.post, prompt="red", n=4, stream=True)
        server.until(lambda: results(server) == 4)
        second = many.submit(server.post, prompt="red", n=1)
        server.until(lambda: server.workshop.gate.results.waiting == 1)
        assert (server.workshop.queue.in_flight, result_pixels(server)) == (0, 256)
        assert "cm3_result_pixels 256.0" in httpx.get(server.url + "/metrics").text
        blocked.opened.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        server.until(lambda: result_pixels(server) == 0)


def test_a_client_that_leaves_before_its_results_are_encoded_holds_nothing(blocked):
    with served(limits=Limits(at_once=4)) as server:
        body = {"prompt": "red", "n": 4, "stream": True}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + GENERATE, json=body, timeout=httpx.Timeout(10, read=0.5))
        server.until(lambda: result_pixels(server) == 0)
        assert server.workshop.queue.in_flight == 0


def test_the_model_that_draws_its_first_picture_holds_no_room():
    with served(warm_up=True) as server:
        assert server.post(prompt="red").status_code == 200
        server.until(lambda: result_pixels(server) == 0)


def test_the_client_with_the_fewest_results_at_the_encoders_is_next():
    async def main() -> list[str]:
        gate, begun = Gate(Limits()), list[str]()
        ends = {number: threading.Event() for number in range(ENCODERS + 3)}

        def encode(name: str, end: threading.Event) -> None:
            begun.append(name)
            assert end.wait(60)

        greedy = [
            asyncio.create_task(gate.encoded("greedy", encode, "greedy", end))
            for end in ends.values()
        ]
        await asyncio.sleep(0)
        modest = asyncio.create_task(gate.encoded("modest", encode, "modest", ends[0]))
        await asyncio.sleep(0)
        ends[0].set()  # one encoder is free
        await asyncio.gather(modest, greedy[0])
        found = begun[: ENCODERS + 1]
        for end in ends.values():
            end.set()
        await asyncio.gather(*greedy)
        gate.close()
        return found

    assert asyncio.run(main()) == ["greedy"] * ENCODERS + ["modest"]


# ---- tokenizers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, {"prompt": "red zebra", "partial_images": 1, "stream": True}),
        (GENERATE, {"prompt": "red zebra"}),
        (EDIT, {"images": [{"image_url": PICTURE}], "prompt": "red"}),
        (SETS, {"things": ["red", "blue"]}),
        (CHAT, {"messages": SAID}),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": PICTURE}]}
                ]
            },
        ),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what?"},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                        ],
                    }
                ],
                "max_tokens": 3,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
    ],
)
def test_tokenizers_are_used_by_one_thread_at_a_time(path, body):
    """By the engine's, or with the model's lock; never in the event loop."""
    wrong: list[str] = []
    with served({"tuned": lambda: model}) as server:
        model: Model = tuned()()
        loop = _thread_of(server)

        def watched(kind: str, use: Any) -> Any:
            def uses(*arguments: Any) -> Any:
                here, loaded = (
                    threading.current_thread(),
                    server.workshop.pool._loaded["tuned"].model,
                )
                if here is loop or not (
                    here.name == "cm3-engine" or loaded._one_at_a_time.locked()
                ):
                    wrong.append(f"{kind} in {here.name}")
                return use(*arguments)

            return uses

        for kind in ("text_tokenizer", "image_tokenizer"):
            tokenizer = getattr(model.components, kind)
            for name in ("_encode", "_decode"):
                setattr(tokenizer, name, watched(f"{kind}.{name}", getattr(tokenizer, name)))
        answer = server.post(path, **body)
        assert answer.status_code == 200, answer.text
    assert wrong == []


def _thread_of(server: Served) -> threading.Thread:
    """The event loop's."""
    return asyncio.run_coroutine_threadsafe(_here(), server.loop).result()


async def _here() -> threading.Thread:
    return threading.current_thread()
