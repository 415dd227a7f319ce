"""Coroutines that run together and end together, and functions that run beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, TypeVar

from cm3core.faults import contained

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of a function that blocks, run in a thread. What it raises ends its caller alone.

    In a coroutine, `SystemExit` ends the event loop, `StopIteration` is never delivered, a `CancelledError` looks
    like a caller that has left and a `TimeoutError` like the caller's own: they become a `GenerationError`.
    """

    def run() -> T:
        with contained("component", futures.CancelledError, TimeoutError):
            return function(*arguments, **options)

    return await asyncio.to_thread(run)


async def together(coroutines: Sequence[Any]) -> list[Any]:
    """The results of coroutines run concurrently.

    When one fails or the caller is cancelled, all are cancelled.
    """
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancelled(tasks)


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks still running, and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
