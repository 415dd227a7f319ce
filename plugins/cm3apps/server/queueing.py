"""A fair queue with a bound: who may generate next, and who is sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cm3apps.server.errors import APIError

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
