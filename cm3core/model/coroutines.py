"""Coroutines that run together and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any


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
