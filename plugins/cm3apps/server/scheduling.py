"""When a request may use a model: models by name, loaded when they are asked for, the least recently used dropped; and a
fair queue with a bound, of who may generate next and who is sent away.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cm3apps.server.errors import APIError
from cm3core.errors import CM3Error, close_match

if TYPE_CHECKING:
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model


logger = logging.getLogger("cm3.serve")
#: Makes a model ready: (its name, the model).
Warm: TypeAlias = "Callable[[str, AsyncModel], Awaitable[None]]"


@dataclass(eq=False)
class _Loaded:
    model: AsyncModel
    users: int = 0


class ModelPool:
    """The models that the server may use, and those that are in memory.

    A model in use is never dropped: a request for another one waits for it.

    Args:
        openers: name -> a function that opens the model; the first is the default.
        most: models in memory at once.

    Attributes:
        warm: called with each model that has been opened, before it is used.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Model]], most: int) -> None:
        self.openers, self.most = dict(openers), most
        self.warm: Warm | None = None
        self._lost: set[str] = set()  # whose engines have stopped, and that are to be loaded again
        self.loads = self.drops = self.broken = 0
        self._loaded: dict[str, _Loaded] = {}  # least recently used first
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()
        self._starving = False  # a request waits for a model to become idle

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
        """Engine requests of all models: in flight, or waiting for rows."""
        return sum(one.model.engine.num_requests for one in self._loaded.values())

    def name_of(self, asked: str | None) -> str:
        """The model of a request; raises `APIError` 404 for one that isn't served."""
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
        """The model, kept in memory meanwhile.

        Raises:
            APIError: 503, it can't be loaded.
        """
        one = await self._take(name)
        try:
            yield one.model
        finally:
            one.users -= 1
            self._freed.set()

    async def _take(self, name: str) -> _Loaded:
        if name not in self._loaded or self._starving:  # those that come later queue behind it
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
                f"the model {name!r} can't be loaded now; the server's log says why",
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
        """Take a model that is broken out of memory, if it still is there."""
        if name in self._loaded and self._loaded[name].model is model:
            del self._loaded[name]
            self.broken += 1
            self._lost.add(name)
            self._freed.set()

    def trouble(self, seconds: float) -> str | None:
        """What is wrong with the engines of the models, in words; None: nothing.

        Args:
            seconds: one that takes longer over a step counts as stuck.
        """
        if self._lost:
            return f"model {min(self._lost)}: its engine has stopped, and it is loaded again"
        for name, one in self._loaded.items():
            if (what := one.model.trouble(seconds)) is not None:
                return f"model {name}: {what}"
        return None

    def stacks(self) -> str:
        """Where the threads of all engines are, for the log."""
        return "\n".join(one.model.engine.stacks() for one in self._loaded.values())

    async def revive(self) -> None:
        """Load again the models whose engines have stopped.

        Raises:
            APIError: one can't be loaded.
        """
        for name, one in list(self._loaded.items()):
            if one.model.engine.has_ended:
                logger.error("model %s: its engine has stopped; it is loaded again", name)
                self.forget(name, one.model)
        for name in sorted(self._lost):
            async with self.use(name):
                pass

    async def close(self) -> None:
        """Drop all models; requests in flight fail."""
        for name in self.loaded:
            await self._drop(name)


#: Share of a new measurement in the running mean of how long one result takes.
_NEW = 0.2
_LONGEST_RETRY = 120


@dataclass(eq=False)
class _Waiting:
    client: str
    weight: int
    turn: asyncio.Future[None]


class Lease:
    """What a request holds of a queue's capacity.

    Args:
        queue: of which.
        client: who holds it.
        weight: how much.
    """

    def __init__(self, queue: FairQueue, client: str, weight: int) -> None:
        self._queue, self._client, self.weight = queue, client, weight

    def shrink(self, weight: int) -> None:
        """Give back what is more than `weight`."""
        if weight < self.weight:
            more, self.weight = self.weight - weight, weight
            self._queue._leave(self._client, more)

    def release(self) -> None:
        """Give back all of it; again is harmless."""
        self.shrink(0)


class FairQueue:
    """Requests of many clients take turns.

    The client with the fewest results in flight is next, among equals the one whose last turn is
    longest ago; the next one is never overtaken, so a large request waits for room and is not
    starved.

    Args:
        capacity: results in flight at once.
        most_waiting: requests that may wait.
        most_per_client: of them from one client.
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
        self._last_turn: dict[str, int] = {}  # of clients that are here
        self._turns = 0
        self._seconds_each = 1.0

    @property
    def in_flight(self) -> int:
        """What is held of the capacity: results that are being generated."""
        return self.running.total()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def lease(self, client: str, weight: int) -> Lease:
        """Wait for a turn; what is returned must be released.

        Raises:
            APIError: 429, the queue is full.
        """
        await self._turn(client, weight)
        return Lease(self, client, weight)

    @asynccontextmanager
    async def place(
        self, client: str, weight: int, *, clock: Callable[[], float] = time.monotonic
    ) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Args:
            client: who asks.
            weight: results that the request makes, at most the capacity.
            clock: the time in seconds.

        Raises:
            APIError: 429, the queue is full.
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
                self._admit()  # it may have held up smaller ones
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
        # those whose task is being cancelled remove themselves
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
