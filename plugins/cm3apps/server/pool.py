"""Models by name: loaded when they are asked for, the least recently used dropped."""

from __future__ import annotations

import asyncio
import logging
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
