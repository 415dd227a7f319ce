"""Fetching the shards that will be read next, while training computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from cm3core.errors import CM3Error

_NUM_THREADS = 4


class Ahead:
    """Fetches shards in the background.

    Args:
        fetch: fetches a shard, by its number; may take long and fail: the reader tries again, and reports.
        distance: shards that are fetched before they are read.
    """

    def __init__(self, fetch: Callable[[int], None], distance: int) -> None:
        self._fetch, self._distance = fetch, distance
        self._next: dict[int, list[int]] = {}
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def stop(self) -> None:
        """Fetch nothing: all is at hand."""
        self._stopped = True

    def follow(self, shards: Sequence[int]) -> None:
        """Shards will be read in about this order."""
        if self._stopped:
            return
        for place, number in enumerate(shards):
            self._next[number] = list(shards[place + 1 : place + 1 + 2 * self._distance])

    def reached(self, number: int) -> None:
        """A shard is read: fetch those that follow."""
        self._asked.discard(number)
        for following in self._next.get(number, ()):
            if following not in self._asked:
                self._asked.add(following)
                self._wanted.put(following)
                if len(self._threads) < _NUM_THREADS:
                    # a daemon: the end of training does not wait for what nobody needs
                    thread = threading.Thread(target=self._work, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _work(self) -> None:
        while True:
            number = self._wanted.get()
            try:
                self._fetch(number)
            except (CM3Error, OSError):
                # the reader meets it again
                self._asked.discard(number)
