"""The process of `cm3 serve`: the socket, the models and their warm-up, and the shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from cm3core.errors import CM3Error
from cm3run.ending import end_at_once
from cm3run.model.async_engine import cancelled, in_thread
from cm3serve import images_api
from cm3serve.app import make_app
from cm3serve.connections import config_of
from cm3serve.errors import APIError
from cm3serve.facts import facts_of
from cm3serve.guard import LOOPBACK
from cm3serve.http import Metrics
from cm3serve.intake import Intake
from cm3serve.scheduling import FairQueue, ModelPool
from cm3serve.settings import Limits
from cm3serve.tasks import Workshop, able

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model
    from cm3serve.sending import Event
    from cm3serve.tasks import Workshop


logger = logging.getLogger("cm3.serve")

#: Threads for blocking work: reading pictures, encoding results, loading models.
THREADS = 32
_BACKLOG = 512
#: Seconds after which a thread that runs Python yields to another. Engine threads return to Python after
#: every operation of some microseconds, so Python's default of 5 ms would delay them whenever a request is
#: read or a result is written.
_SWITCH_SECONDS = 0.0003


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings.

    Args:
        host, port: the address to listen on; port 0 chooses a free one.
        token: the token that requests must send, or None.
        allowed_hosts: additional host names of the server.
        most_models: maximum number of models in memory.
        drain_seconds: seconds that requests may take to finish after SIGTERM.
        limits: the limits of requests.
        forced: "edit" and "ask" if untuned models may be used for them.
        warm_up: whether each model draws a picture before it counts as loaded.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    most_models: int = 2
    drain_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)
    forced: frozenset[str] = frozenset()
    warm_up: bool = True

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK or self.host.startswith("127.")


def workshop_of(
    settings: Settings, openers: Mapping[str, Callable[[], Model]], metrics: Metrics
) -> Workshop:
    """The queue and the models for the settings."""
    limits = settings.limits
    workshop = Workshop(
        ModelPool(openers, settings.most_models),
        FairQueue(limits.at_once, limits.waiting, limits.waiting_per_client),
        limits,
        settings.forced,
        metrics.finished,
    )
    if settings.warm_up:
        workshop.pool.warm = lambda name, model: warm_up(name, model, workshop)
    return workshop


class _Server(uvicorn.Server):
    """uvicorn's server, which exits with code 0 after SIGTERM or Ctrl-C."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C drain the server; a second Ctrl-C stops it at once."""
        main = threading.current_thread() is threading.main_thread()
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
            if main
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `CM3Error` for an address that can't be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: an impossible host name
        reason = getattr(error, "strerror", None) or error
        raise CM3Error(
            f"{host}:{port}",
            f"can't be used to listen on ({reason})",
            "stop the program that uses it, or choose another address (--host, --port; port 0 chooses a free one)",
        ) from error
    return listening


def serve(settings: Settings, openers: Mapping[str, Callable[[], Model]]) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    listening = listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    with listening:
        return asyncio.run(_serve(settings, openers, listening, port))


async def _serve(
    settings: Settings,
    openers: Mapping[str, Callable[[], Model]],
    listening: socket.socket,
    port: int,
) -> int:
    metrics = Metrics()
    workshop = workshop_of(settings, openers, metrics)
    try:
        async with workshop.pool.use(workshop.pool.names[0]):
            pass  # report errors of the default model now
    except APIError as error:
        raise error.__cause__ or error from None
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"cm3 serve: http://{shown}:{port}/", flush=True)
    print("Ctrl-C or SIGTERM stops the server after running requests finish", file=sys.stderr)
    server = http_server(settings, workshop, metrics)
    watch = Watch(workshop.pool, settings.limits.stuck_seconds)
    watching = asyncio.create_task(watch.run())

    def end(_: object) -> None:
        server.should_exit = True

    watching.add_done_callback(end)
    await server.serve(sockets=[listening])
    if watching.done():
        end_at_once(1)
    await cancelled([watching])
    await workshop.pool.close()
    workshop.gate.close()
    return 0


class Watch:
    """Watches the engines, and reloads those that have stopped.

    Args:
        pool: the models with their engines.
        stuck_seconds: an engine that takes longer for a step is logged, and given up after as long again. A thread
            can't be stopped, so the process must exit.
        period: seconds between two checks.
    """

    def __init__(self, pool: ModelPool, stuck_seconds: float, period: float | None = None) -> None:
        self.pool, self.stuck_seconds = pool, stuck_seconds
        self.period = min(5.0, stuck_seconds / 4) if period is None else period

    async def run(self) -> None:
        """Watch until an engine is given up or can't be reloaded."""
        looks, trouble = 0, None
        # count checks, not seconds: a process that was suspended for a while is not stuck
        while looks * self.period < self.stuck_seconds:
            await asyncio.sleep(self.period)
            try:
                await self.pool.revive()
            except APIError as error:
                logger.critical("the server ends: %s", error.message)
                return
            trouble = self.pool.trouble(self.stuck_seconds)
            looks = 0 if trouble is None else looks + 1
            if looks == 1:
                logger.critical("%s; its threads:\n%s", trouble, self.pool.stacks())
        logger.critical("the server ends: %s", trouble)


def http_server(settings: Settings, workshop: Workshop, metrics: Metrics) -> uvicorn.Server:
    """The server, ready to run in the current event loop."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "cm3-serve"))
    hosts = None
    if settings.token is None:
        hosts = {*LOOPBACK, settings.host.lower(), *map(str.lower, settings.allowed_hosts)}
    config = config_of(
        make_app(workshop, metrics, token=settings.token, hosts=hosts),
        settings.limits,
        metrics.refused,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    return _Server(config)


#: A prompt for models whose data has none, and a word that is in no training text.
_PROMPT, _UNKNOWN = "a", "qwxyzzyq"
#: Side in pixels that the page requests at least, if there is an upscaler.
_LARGE = 256


class _ThisModel(ModelPool):
    """A pool of one model that is in memory but not yet in use."""

    def __init__(self, name: str, model: AsyncModel) -> None:
        super().__init__({name: lambda: model.model}, 1)
        self.model = model

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[AsyncModel]:
        """The model."""
        yield self.model


async def warm_up(name: str, model: AsyncModel, workshop: Workshop) -> None:
    """Run a request for a picture with the recipe's defaults, and read a picture if the model can.

    Failures are only logged: requests may not need the failing part (such as missing documents), or will report the
    error.
    """
    start, most = time.monotonic(), workshop.limits.at_once
    own = replace(
        workshop,
        pool=_ThisModel(name, model),
        queue=FairQueue(most, 1, 1),
        on_finished=lambda sort: None,
    )
    try:
        facts = await in_thread(facts_of, model, name, own)
        if "draw" in facts["tasks"]:
            await _draw(own, facts)
        if "caption" in able(model.model, ()):
            height, width = model.model.image_size
            await model.caption(_striped(height, width), max_tokens=1)
    except asyncio.CancelledError:
        raise
    except (
        Exception
    ) as error:  # an error of any component, which a user's request would also report
        logger.warning("model %s: its first picture, a test, failed", name, exc_info=error)
        return
    logger.info("model %s has drawn its first picture, in %.1f s", name, time.monotonic() - start)


async def _draw(own: Workshop, facts: Mapping[str, Any]) -> None:
    """Draw a picture like the page, with an unknown word, which is compared with all known words."""
    width, height = facts["size"]
    times = [one for one in (1, 2, 4, 8) if max(width, height) * one <= own.limits.side]
    large = next((one for one in times if max(width, height) * one >= _LARGE), 1)
    factor = large if facts["upscaler"] is not None else 1
    values = {
        "prompt": f"{next(iter(facts['examples']), _PROMPT)} {_UNKNOWN}",
        "truncate": True,
        "size": f"{width * factor}x{height * factor}",
        "stream": True,
        "partial_images": 1,
        "return_documents": True,
        "return_svg": facts["svg"],
    }
    intake = Intake(own.gate, "")
    intake.values = values
    try:
        answer = await images_api.generations(own, intake)
        async with aclosing(cast("AsyncGenerator[Event, None]", answer)) as events:
            async for _ in events:
                pass
    finally:
        intake.close()


def _striped(height: int, width: int) -> Any:
    """A picture with more than one colour, uint8 [height, width, 3]."""
    import numpy as np

    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, : width // 2] = 0
    return pixels
