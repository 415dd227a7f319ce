"""Access of requests to models: a pool of models by name, which loads them on demand and drops the least recently used;
and a fair, bounded queue, which decides which request is next and refuses requests if it is full.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cm3core.errors import CM3Error, close_match
from cm3serve.errors import APIError

if TYPE_CHECKING:
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model


logger = logging.getLogger("cm3.serve")
#: Warms a model up: (its name, the model).
Warm: TypeAlias = "Callable[[str, AsyncModel], Awaitable[None]]"


@dataclass(eq=False)
class _Loaded:
    model: AsyncModel
    users: int = 0


class ModelPool:
    """The server's models, and those of them that are in memory.

    A model in use is never dropped; a request for another model waits for it.

    Args:
        openers: name -> a function that opens the model; the first is the default.
        most: maximum number of models in memory.

    Attributes:
        warm: called with each opened model before it is used.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Model]], most: int) -> None:
        self.openers, self.most = dict(openers), most
        self.warm: Warm | None = None
        self._lost: set[str] = set()  # models whose engines have stopped, to be reloaded
        self.loads = self.drops = self.broken = 0
        self._loaded: dict[str, _Loaded] = {}  # least recently used first
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()
        self._starving = False  # set while a request waits for a model to become idle

    @property
    def names(self) -> list[str]:
        """All names, the default first."""
        return list(self.openers)

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        return list(self._loaded)

    @property
    def num_requests(self) -> int:
        """The number of engine requests of all models, in flight or waiting for rows."""
        return sum(one.model.engine.num_requests for one in self._loaded.values())

    def name_of(self, asked: str | None) -> str:
        """The name of a request's model; raises `APIError` 404 for a model that isn't served."""
        if asked is None:
            return self.names[0]
        if asked not in self.openers:
            raise APIError(
                404,
                f"the model {asked[:80]!r} does not exist here; {close_match(asked[:80], self.names)} (the server "
                "gives a model any name: cm3 serve --model NAME=MODEL)",
                param="model",
                code="model_not_found",
            )
        return asked

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[AsyncModel]:
        """Context with the model, which stays in memory meanwhile.

        Raises:
            APIError: 503 if the model can't be loaded.
        """
        one = await self._take(name)
        try:
            yield one.model
        finally:
            one.users -= 1
            self._freed.set()

    @contextmanager
    def held(self, name: str) -> Iterator[AsyncModel]:
        """Context with a model that is in memory, which stays there meanwhile; for requests that must not load one.

        Raises:
            APIError: 409 if it is not in memory.
        """
        one = self._loaded.get(name)
        if one is None:
            raise APIError(
                409,
                f"the model {name!r} is not in memory, and a GET does not load it. Next: POST /studio/facts with "
                f"{json.dumps({'model': name})} loads it; then repeat this request",
                param="model",
                code="model_not_loaded",
            )
        one.users += 1
        try:
            yield one.model
        finally:
            one.users -= 1
            self._freed.set()

    async def _take(self, name: str) -> _Loaded:
        if name not in self._loaded or self._starving:  # later requests queue behind it
            async with self._loading:
                if name not in self._loaded:
                    await self._make_room()
                    self._loaded[name] = _Loaded(await self._open(name))
                    self._lost.discard(name)
                return self._taken(name)
        return self._taken(name)

    def _taken(self, name: str) -> _Loaded:
        one = self._loaded[name] = self._loaded.pop(name)  # most recently used
        one.users += 1
        return one

    async def _make_room(self) -> None:
        try:
            while len(self._loaded) >= self.most:
                idle = next((key for key, one in self._loaded.items() if not one.users), None)
                if idle is not None:
                    await self._drop(idle)
                    continue
                self._starving = True
                self._freed.clear()
                await self._freed.wait()
        finally:
            self._starving = False

    async def _open(self, name: str) -> AsyncModel:
        from cm3run.model.aio import AsyncModel
        from cm3run.model.async_engine import in_thread

        try:
            model = await in_thread(self.openers[name])
        except CM3Error as error:
            logger.error("model %s can't be loaded: %s", name, error)
            raise APIError(
                503,
                f"the model {name!r} can't be loaded now; see the server's log",
                param="model",
                type="server_error",
                code="model_not_available",
            ) from error
        shared = AsyncModel(model)
        if self.warm is not None:
            try:
                await self.warm(name, shared)
            except BaseException:
                await asyncio.to_thread(shared.engine.close)
                raise
        self.loads += 1
        logger.info("model %s is loaded", name)
        return shared

    async def _drop(self, name: str) -> None:
        gone = self._loaded.pop(name)
        await asyncio.to_thread(gone.model.engine.close)
        self.drops += 1
        logger.info("model %s is dropped", name)

    def forget(self, name: str, model: AsyncModel) -> None:
        """Drop a broken model, if it is still in memory."""
        if name in self._loaded and self._loaded[name].model is model:
            del self._loaded[name]
            self.broken += 1
            self._lost.add(name)
            self._freed.set()

    def trouble(self, seconds: float) -> str | None:
        """A description of what is wrong with the models' engines, or None.

        Args:
            seconds: an engine that takes longer for a step counts as stuck.
        """
        if self._lost:
            return f"model {min(self._lost)}: its engine has stopped and is being reloaded"
        for name, one in self._loaded.items():
            if (what := one.model.trouble(seconds)) is not None:
                return f"model {name}: {what}"
        return None

    def stacks(self) -> str:
        """The stacks of all engine threads, for the log."""
        return "\n".join(one.model.engine.stacks() for one in self._loaded.values())

    async def revive(self) -> None:
        """Reload the models whose engines have stopped.

        Raises:
            APIError: a model can't be loaded.
        """
        for name, one in list(self._loaded.items()):
            if one.model.engine.has_ended:
                logger.error("model %s: its engine has stopped and is being reloaded", name)
                self.forget(name, one.model)
        for name in sorted(self._lost):
            async with self.use(name):
                pass

    async def close(self) -> None:
        """Drop all models; requests in flight fail."""
        for name in self.loaded:
            await self._drop(name)


#: Weight of a new measurement in the running mean of the time per result.
_NEW = 0.2
_LONGEST_RETRY = 120


@dataclass(eq=False)
class _Waiting:
    client: str
    weight: int
    turn: asyncio.Future[None]


class Lease:
    """A request's share of a queue's capacity.

    Args:
        queue: the queue.
        client: the client that holds it.
        weight: the size of the share.
    """

    def __init__(self, queue: FairQueue, client: str, weight: int) -> None:
        self._queue, self._client, self.weight = queue, client, weight

    def shrink(self, weight: int) -> None:
        """Release the part above `weight`."""
        if weight < self.weight:
            more, self.weight = self.weight - weight, weight
            self._queue._leave(self._client, more)

    def release(self) -> None:
        """Release all of it; calling it again is harmless."""
        self.shrink(0)


class FairQueue:
    """A queue in which many clients take turns.

    The client with the fewest results in flight is next; among equals, the one whose last turn is
    longest ago. The next request is never overtaken, so a large request that waits for room is not
    starved.

    Args:
        capacity: maximum number of results in flight.
        most_waiting: maximum number of waiting requests.
        most_per_client: maximum number of waiting requests of one client.
        wait_for: what requests wait for, in messages.
    """

    def __init__(
        self,
        capacity: int,
        most_waiting: int,
        most_per_client: int,
        wait_for: str = "",
    ) -> None:
        self.capacity, self.wait_for = capacity, wait_for and f" for {wait_for}"
        self.most_waiting, self.most_per_client = most_waiting, most_per_client
        self.running: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()
        self._last_turn: dict[str, int] = {}  # of connected clients
        self._turns = 0
        self._seconds_each = 1.0

    @property
    def in_flight(self) -> int:
        """The used capacity: results being generated."""
        return self.running.total()

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._waiting)

    async def lease(self, client: str, weight: int) -> Lease:
        """Wait for a turn; the returned share must be released.

        Raises:
            APIError: 429 if the queue is full.
        """
        await self._turn(client, weight)
        return Lease(self, client, weight)

    @asynccontextmanager
    async def place(
        self, client: str, weight: int, *, clock: Callable[[], float] = time.monotonic
    ) -> AsyncIterator[None]:
        """Context that waits for a turn and holds it.

        Args:
            client: the client.
            weight: the number of results of the request, at most the capacity.
            clock: the time in seconds.

        Raises:
            APIError: 429 if the queue is full.
        """
        await self._turn(client, weight)
        start = clock()
        try:
            yield
            took = (clock() - start) / weight
            self._seconds_each += _NEW * (took - self._seconds_each)
        finally:
            self._leave(client, weight)

    async def _turn(self, client: str, weight: int) -> None:
        if not self._waiting and self._fits(weight):
            self._start(client, weight)
            return
        own = sum(one.client == client for one in self._waiting)
        if len(self._waiting) >= self.most_waiting or own >= self.most_per_client:
            raise self._full(own >= self.most_per_client)
        mine = _Waiting(client, weight, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
                self._admit()  # it may have blocked smaller ones
            else:  # its turn came at the same moment
                self._leave(client, weight)
            raise

    def _leave(self, client: str, weight: int) -> None:
        self.running[client] -= weight
        if not self.running[client]:
            del self.running[client]
        self._admit()
        if client not in self.running and all(one.client != client for one in self._waiting):
            self._last_turn.pop(client, None)

    def _start(self, client: str, weight: int) -> None:
        self.running[client] += weight
        self._turns += 1
        self._last_turn[client] = self._turns

    def _fits(self, weight: int) -> bool:
        return self.in_flight + weight <= self.capacity or not self.in_flight

    def _admit(self) -> None:
        # requests whose task is being cancelled remove themselves
        while here := [one for one in self._waiting if not one.turn.done()]:
            following = min(
                here, key=lambda one: (self.running[one.client], self._last_turn.get(one.client, 0))
            )
            if not self._fits(following.weight):
                return
            self._waiting.remove(following)
            self._start(following.client, following.weight)
            following.turn.set_result(None)

    def _full(self, own: bool) -> APIError:
        ahead = sum(one.weight for one in self._waiting) + self.in_flight
        seconds = min(_LONGEST_RETRY, max(1, math.ceil(ahead * self._seconds_each / self.capacity)))
        whose = "from your address" if own else "in all"
        most = self.most_per_client if own else self.most_waiting
        return APIError(
            429,
            f"too many requests are waiting{self.wait_for} ({most} {whose}); try again in {seconds} s",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )
