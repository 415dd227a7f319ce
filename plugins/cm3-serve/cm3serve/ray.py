"""The server on several machines, with Ray Serve: `serve run cm3serve.ray:app model=runs/icons`.

Ray manages the machines, starts the replicas, restarts failed ones, and adds and removes replicas with the load; its
own command and files configure this. Each replica is a whole server of `cm3 serve`, whose engine generates for all its
clients in one batch. In front of them, a few doors (`door`) keep each request until it is answered, so that no request
is lost with a replica.

This module is light: Ray is imported when `app` is called.
"""

from __future__ import annotations

import asyncio
import logging
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import real_number, whole_number
from cm3apps.cli.commands import CommandParser
from cm3core.errors import CM3Error, MissingPackageError, close_match
from cm3serve import command
from cm3serve.errors import APIError
from cm3serve.settings import Limits

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from cm3run.model.model import Model

PLACE = "cm3serve.ray"
#: Arguments of `cm3 serve` that Ray's own configuration replaces.
RAYS_OWN = {
    "host": "http_options.host of Ray's configuration, or serve start --http-host",
    "port": "http_options.port of Ray's configuration, or serve start --http-port",
    "max_models": "one application for each model",
}
#: Seconds between two health checks of a replica, and timeout of a check.
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5.0, 30.0


def app(arguments: Mapping[str, Any]) -> Any:
    """The application, for `serve run cm3serve.ray:app NAME=VALUE ...` and `import_path`.

    Args:
        arguments: options of `cm3 serve` by their names, with _ for -; `model` and other repeatable options
            accept a list or a single value. Further arguments: `min_replicas`, `max_replicas`,
            `target_requests` (requests per replica above which Ray adds one), `cpus` and `gpus` of a replica,
            `doors`, `plugin`.

    Returns:
        A Ray Serve application.

    Raises:
        MissingPackageError: Ray is not installed.
        CM3Error: an argument is unknown or wrong, or a model does not exist.
    """
    check_packages()
    args = read_arguments(arguments)
    command.openers_of(args)  # report errors of the models now
    return application(args, command.token_of(args.token_file))


def check_packages() -> None:
    """Raise `MissingPackageError` if a package is missing."""
    for module, package in (("ray", "ray"), ("fastapi", "ray[serve]")):
        if find_spec(module) is None:
            raise MissingPackageError.extra(PLACE, package, "ray")


def read_arguments(arguments: Mapping[str, Any]) -> Namespace:
    """Arguments by name, as texts or YAML values, checked like those of `cm3 serve`.

    >>> read = read_arguments({"model": ["a=runs/a", "runs/b"], "max_replicas": 4})
    >>> read.model, read.max_replicas, read.at_once
    (['a=runs/a', 'runs/b'], 4, 32)
    """
    parser = CommandParser(prog=PLACE, add_help=False, allow_abbrev=False)
    command.configure(parser)
    parser.add_argument("--plugin", action="append", type=Path, default=[])
    for option, default in (("--min-replicas", 1), ("--max-replicas", 1), ("--doors", 2)):
        parser.add_argument(option, type=whole_number(1, 4096), default=default)
    parser.add_argument("--target-requests", type=whole_number(1, 4096))
    parser.add_argument("--cpus", type=real_number(0, 4096, above=True), default=1.0)
    parser.add_argument("--gpus", type=real_number(0, 1024), default=0.0)
    known = {action.dest: action for action in parser._actions}
    known["trust_plugin"] = known["trust_plugins"]
    options: list[str] = []
    for name, value in arguments.items():
        if name in RAYS_OWN:
            raise CM3Error(f"{PLACE} {name}", "is set by Ray", f"use {RAYS_OWN[name]}")
        if name not in known:
            raise CM3Error(
                f"{PLACE} {name}",
                "is not an argument",
                close_match(name, known.keys() - RAYS_OWN.keys()),
            )
        option = known[name].option_strings[-1]
        if known[name].nargs == 0:  # a flag
            options += [option] if str(value).lower() in ("true", "1", "yes") else []
            continue
        options += [f"{option}={one}" for one in (value if isinstance(value, list) else [value])]
    args = parser.parse_args(options)
    args.max_replicas = max(args.min_replicas, args.max_replicas)
    args.target_requests = args.target_requests or max(1, args.at_once // 2)
    if args.target_requests > args.at_once:
        raise CM3Error(
            f"{PLACE} target_requests",
            f"is {args.target_requests}, and a replica has at_once={args.at_once} at most",
            "lower it, or raise at_once",
        )
    if args.threads is None and not args.gpus:
        # replicas share the machine's cores
        args.threads = max(1, int(args.cpus))
    return args


def application(args: Namespace, token: str | None, replica: type[Replica] | None = None) -> Any:
    """The deployments, bound to each other.

    Args:
        args: the result of `read_arguments`.
        token: the token that requests must send; None: only clients on this machine are answered.
        replica: the class of the replicas; None: `Replica`.
    """
    from ray import serve

    limits = command.limits_of(args)
    options = {name: value for name, value in vars(args).items() if name != "run"}
    engine = serve.deployment(replica or Replica).options(
        name="engine",
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "initial_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_requests,
            # a replica loads its model first, so shorter peaks of load are waited out
            "upscale_delay_s": 10.0,
            "downscale_delay_s": 300.0,
        },
        # as many as fit in its batch; further requests wait at the doors
        max_ongoing_requests=args.at_once,
        max_queued_requests=args.queue,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.drain,
    )
    doors = serve.deployment(serve.ingress(None)(Doors)).options(
        name="door",
        num_replicas=args.doors,
        max_ongoing_requests=limits.connections,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.drain,
    )
    return doors.bind(engine.bind(options), limits, token, args.allow_host)


class Replica:
    """A server without a socket, as a Ray actor.

    Args:
        options: the options of `read_arguments`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from cm3serve.app import make_app
        from cm3serve.http import Metrics
        from cm3serve.running import Settings, workshop_of

        args = Namespace(**options)
        logging.getLogger("cm3.serve").setLevel("WARNING" if args.quiet else "INFO")
        limits = command.limits_of(args)
        openers = self.openers(args)
        settings = Settings(
            most_models=len(openers),
            # Ray sends as many as fit in its batch; the doors limit each client's share
            limits=replace(limits, waiting=args.at_once, waiting_per_client=args.at_once),
            forced=frozenset(args.force),
        )
        metrics = Metrics()
        self.workshop = workshop_of(settings, openers, metrics)
        self.server = make_app(self.workshop, metrics)

    def openers(self, args: Namespace) -> Mapping[str, Callable[[], Model]]:
        """Functions that open the models, by name."""
        return command.openers_of(args)

    async def answer(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The ASGI messages of a request's response. Closing it stops the work."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        read = False

        async def receive() -> dict[str, Any]:
            nonlocal read
            if read:  # the door stops the work if the client disconnects
                await asyncio.Event().wait()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.put_nowait(message)

        async def serve() -> None:
            await self.server({**scope, "type": "http"}, receive, send)

        work = asyncio.create_task(serve())
        work.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def check_health(self) -> None:
        """Raise if the replica should be replaced: an engine has stopped (on a GPU the cause stays in the process) or
        is stuck, or the model can't be loaded. Ray calls this first before it sends requests to a replica, which loads
        the model."""
        pool = self.workshop.pool
        if pool.broken:
            raise RuntimeError("an engine of this replica has stopped; see its log")
        if (trouble := pool.trouble(self.workshop.limits.stuck_seconds)) is not None:
            logging.getLogger("cm3.serve").critical("%s; its threads:\n%s", trouble, pool.stacks())
            raise RuntimeError(trouble)
        try:
            async with pool.use(pool.names[0]):
                pass
        except APIError as error:
            raise error.__cause__ or error from None


class Doors:
    """A door, as a Ray actor.

    Args:
        engine: the handle of the replicas.
        limits: the limits of requests.
        token, hosts: see `Guard`.
    """

    def __init__(
        self, engine: Any, limits: Limits, token: str | None, hosts: Collection[str]
    ) -> None:
        from cm3serve.app import OPEN_PATHS, PAGES
        from cm3serve.door import Door
        from cm3serve.guard import LOOPBACK, Guard

        self._engine = engine.options(stream=True)
        self._app = Guard(
            Door(self._call, limits),
            token=token,
            hosts=None if token is not None else {*LOOPBACK, *map(str.lower, hosts)},
            open_paths=OPEN_PATHS,
            pages=PAGES,
            only_local=token is None,
        )

    def __serve_build_asgi_app__(self) -> Any:
        """Answer Ray's health check."""
        inner = self._app

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await inner(scope, receive, send)

        return served

    async def _call(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[dict[str, Any], None]:
        from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import BackPressureError

        from cm3serve.door import ServerLost, ServersBusy

        response, ended = self._engine.answer.remote(scope, body), False
        try:
            async for message in response:
                yield message
            ended = True
        except BackPressureError as error:
            raise ServersBusy from error
        except (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError) as error:
            ended = True
            raise ServerLost(type(error).__name__) from error
        finally:
            if not ended:
                response.cancel()
