"""The fair queue: who is next, who is sent away, who leaves."""

from __future__ import annotations

import asyncio

import pytest

from cm3serve.errors import APIError
from cm3serve.scheduling import FairQueue
from messages import tells


class Scene:
    """A queue, and the order in which requests start."""

    def __init__(self, *limits: int) -> None:
        self.queue, self.started, self.ends = FairQueue(*limits), [], {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, client: str, weight: int = 1) -> None:
        self.ends[name] = asyncio.Event()

        async def run() -> None:
            async with self.queue.place(client, weight):
                self.started.append(name)
                await self.ends[name].wait()

        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)


def test_the_client_with_the_fewest_in_flight_is_next():
    async def main() -> list[str]:
        scene = Scene(2, 10, 10)
        for number in range(4):
            await scene.ask(f"greedy {number}", "greedy")
        await scene.ask("modest", "modest")
        assert scene.started == ["greedy 0", "greedy 1"]
        await scene.end("greedy 0")
        assert scene.started[2:] == ["modest"]
        await scene.end("modest")
        return scene.started[3:]

    assert asyncio.run(main()) == ["greedy 2"]


def test_among_equals_the_last_turn_counts():
    async def main() -> list[str]:
        scene = Scene(1, 10, 10)
        for number in range(3):
            await scene.ask(f"greedy {number}", "greedy")
        await scene.ask("modest", "modest")
        await scene.end("greedy 0")
        await scene.end("modest")
        return scene.started

    assert asyncio.run(main()) == ["greedy 0", "modest", "greedy 1"]


def test_a_large_request_is_not_starved_by_small_ones():
    async def main() -> list[str]:
        scene = Scene(4, 10, 10)
        await scene.ask("running", "a", 3)
        await scene.ask("large", "b", 4)
        await scene.ask("small", "c", 1)  # it would fit now
        await scene.end("running")
        assert scene.started[1:] == ["large"]
        await scene.end("large")
        return scene.started[2:]

    assert asyncio.run(main()) == ["small"]


def test_a_full_queue_says_when_to_come_back():
    async def main() -> tuple[APIError, APIError]:
        scene = Scene(1, 3, 2)
        for name in ("running", "1", "2"):
            await scene.ask(name, "a")
        await scene.ask("own share", "a")
        await scene.ask("3", "b")
        await scene.ask("too many", "c")
        assert scene.queue.waiting == 3
        return scene.tasks["own share"].exception(), scene.tasks["too many"].exception()

    own, whole = asyncio.run(main())
    assert own.status == whole.status == 429
    assert tells(own.message, "too many requests ... 2 ... in 3")
    assert whole.message == "too many requests are waiting (3 in all); try again in 4 s"
    assert (own.headers, whole.headers) == ({"Retry-After": "3"}, {"Retry-After": "4"})


def test_leaving_frees_a_place():
    async def main() -> list[str]:
        scene = Scene(2, 10, 10)
        await scene.ask("running", "a", 2)
        await scene.ask("waiting", "b", 2)
        await scene.ask("last", "c")
        scene.tasks["waiting"].cancel()
        await asyncio.sleep(0)
        assert scene.queue.waiting == 1
        scene.tasks["running"].cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert scene.queue.running == {"c": 1}
        return scene.started

    assert asyncio.run(main()) == ["running", "last"]


def test_one_whose_turn_comes_as_it_leaves_holds_nothing():
    async def main() -> FairQueue:
        scene = Scene(1, 10, 10)
        await scene.ask("running", "a")
        await scene.ask("waiting", "b")
        scene.ends["running"].set()
        scene.tasks["waiting"].cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        return scene.queue

    queue = asyncio.run(main())
    assert (queue.in_flight, queue.waiting) == (0, 0)


def test_one_that_is_leaving_is_not_given_the_turn():
    async def main() -> list[str]:
        scene = Scene(1, 10, 10)
        for name, client in (("running", "a"), ("leaving", "b"), ("next", "c")):
            await scene.ask(name, client)
        scene.tasks["leaving"].cancel()
        scene.tasks["running"].cancel()  # both in the same turn of the event loop
        for _ in range(5):
            await asyncio.sleep(0)
        return scene.started

    assert asyncio.run(main()) == ["running", "next"]


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_never_exceed_the_capacity_and_all_end(seed):
    import random

    rng = random.Random(seed)

    async def main() -> None:
        queue, done = FairQueue(5, 1000, 1000), []

        async def one(number: int) -> None:
            async with queue.place(str(rng.randrange(4)), rng.randint(1, 5)):
                assert 0 < queue.in_flight <= 5
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                if rng.random() < 0.2:
                    raise KeyError(number)
            done.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        for task in tasks:
            if rng.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (queue.in_flight, queue.waiting, not queue.running) == (0, 0, True)
        assert len(done) > 50

    asyncio.run(main())


def test_a_lease_is_given_back_in_parts_and_once():
    async def main() -> list[int]:
        queue, held = FairQueue(10, 5, 5, "room"), []
        first = await queue.lease("a", 8)
        second = asyncio.create_task(queue.lease("b", 6))
        await asyncio.sleep(0)
        held.append(queue.in_flight)
        first.shrink(9)  # it has less
        first.shrink(4)
        other = await second
        held.append(queue.in_flight)
        for lease in (first, first, other):
            lease.release()
        return [*held, queue.in_flight, queue.waiting]

    assert asyncio.run(main()) == [8, 10, 0, 0]


def test_a_full_queue_says_what_for():
    async def main() -> None:
        queue = FairQueue(1, 0, 0, "room for their bodies")
        await queue.lease("a", 1)
        await queue.lease("a", 1)

    with pytest.raises(APIError, match=r"requests are waiting for room for their bodies \("):
        asyncio.run(main())
