"""The command line of `cm3 serve`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    DEVICE,
    MODEL,
    OUTPUT,
    add_device,
    add_parallel,
    add_trust,
    grouped,
    real_number,
    registry_of,
    whole_number,
)
from cm3apps.cli.opening import MODEL_TOLD
from cm3core.errors import CheckpointError, CM3Error, close_match
from cm3core.files import check_regular
from cm3run import DEFAULT_MODEL
from cm3serve.settings import Limits

if TYPE_CHECKING:
    from cm3run.model.model import Model

#: Environment variable with the token.
TOKEN_VARIABLE = "CM3_SERVE_TOKEN"
PLACE = "cm3 serve"
#: Title of a group of options in the help.
ADDRESS = "address and access"
#: Minimum length of a token: 16 characters can't be guessed over a network.
SHORTEST_TOKEN = 16
MIB = 1 << 20
#: Default MiB of all bodies and million pixels of all pictures, unless a single one may have more.
ALL_BODIES, ALL_PIXELS = 128, 64
EXAMPLE = """examples:
  cm3 serve
  cm3 serve --model icons=runs/icons --model bundled:emoji64 --port 9000
  CM3_SERVE_TOKEN=$(openssl rand -hex 16) cm3 serve --host 0.0.0.0
Then open http://127.0.0.1:8000/, or point any client of OpenAI's API to http://127.0.0.1:8000/v1."""


def configure(parser: ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Serve models over HTTP: a page to draw in at /, and OpenAI's Images API and\nchat "
        "completions under /v1. All clients share one engine."
    )
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    _add_models(parser)
    _add_address(parser)
    add_limits(parser)
    _add_device(parser)
    add_trust(parser)
    grouped(parser, OUTPUT).add_argument("--quiet", action="store_true", help="log failures only")
    parser.set_defaults(run=run)


def _add_models(parser: ArgumentParser) -> None:
    grouped(parser, MODEL).add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a run's folder, a checkpoint, PLUGIN:NAME or hf://USER/NAME, and the name that clients use for it; may "
        f"be given several times, the first is the default (default: {MODEL_TOLD})",
    )
    grouped(parser, MODEL).add_argument(
        "--bank",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="memory bank that the model NAME (default: the first) retrieves from, instead of "
        "its data set; may be given several times",
    )
    grouped(parser, MODEL).add_argument(
        "--retriever",
        action="append",
        default=[],
        metavar="[NAME=]RETRIEVER",
        help="retriever that the model NAME (default: the first) uses instead of its own, or none; may be given several times",
    )
    grouped(parser, MODEL).add_argument(
        "--force",
        action="append",
        default=[],
        choices=("edit", "ask"),
        help="accept edits or questions even for models that are not known to be tuned for "
        "them; the results are then meaningless",
    )


def _add_address(parser: ArgumentParser) -> None:
    grouped(parser, ADDRESS).add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines can reach needs a token (default: "
        "%(default)s)",
    )
    grouped(parser, ADDRESS).add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8000,
        help="port to listen on; 0 chooses a free port and prints it (default: %(default)s)",
    )
    grouped(parser, ADDRESS).add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the access token that requests must send; or set the environment "
        f"variable {TOKEN_VARIABLE}",
    )
    grouped(parser, ADDRESS).add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name of the server, for example behind a proxy",
    )


def _add_device(parser: ArgumentParser) -> None:
    add_device(parser, "where the decoders and the image tokenizers run")
    grouped(parser, DEVICE).add_argument(
        "--threads",
        type=whole_number(1, 4096),
        metavar="N",
        help="CPU threads of a decoder (default: 1 for a small one, else the number of cores)",
    )
    grouped(parser, DEVICE).add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "int8", "int4"],
        help="precision of the decoders' weights (default: the fastest that this machine "
        "supports and that hardly changes predictions: bf16 on a GPU, int8 or bf16 on a "
        "CPU, else the stored precision)",
    )
    add_parallel(parser)


def add_limits(parser: ArgumentParser) -> None:
    """Add the limits that a deployment may want to change."""
    limits, timeouts = grouped(parser, "limits"), grouped(parser, "timeouts")
    for option, most, default, text in (
        ("--max-models", 1000, 2, "models in memory at once; the least recently used is dropped"),
        ("--at-once", 4096, 32, "results and candidates generated at once, for all clients"),
        ("--queue", 100_000, 64, "requests that may wait; more are refused with 429"),
        ("--max-n", 1000, 10, "results of one request"),
        ("--max-candidates", 4096, 16, "candidates for each result"),
        ("--max-body", 4096, 32, "MiB of a request's body"),
        ("--max-pixels", 64, 16, "million pixels of an uploaded picture"),
        ("--unsent", 1 << 20, 64, "MiB of unread responses in memory"),
        ("--spool", 1 << 20, 1024, "MiB of further unread responses in temporary files"),
        ("--connections", 100_000, 512, "open connections; beyond it, the longest idle are closed"),
    ):
        limits.add_argument(
            option,
            type=whole_number(1, most),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    for option, least, text in (
        ("--all-bodies", ALL_BODIES, "MiB of all bodies in flight"),
        ("--all-pixels", ALL_PIXELS, "million pixels of all pictures in flight"),
    ):
        limits.add_argument(
            option,
            type=whole_number(1, 1 << 20),
            metavar="N",
            help=f"{text}; a request waits for its share (default: {least}, or the limit of a single one if that is higher)",
        )
    for option, default, text in (
        ("--timeout", 300, "seconds that a request may take, including waiting"),
        ("--header-timeout", 10, "seconds in which a request's headers must arrive"),
        ("--body-timeout", 30, "seconds in which a request's body must arrive, at an even pace"),
        ("--idle-timeout", 15, "seconds that an open connection waits for a request"),
        ("--send-timeout", 30, "seconds after which a client that reads nothing is dropped"),
        ("--drain", 30, "seconds that requests may take to finish after SIGTERM"),
        (
            "--stuck-after",
            120,
            "seconds that an engine may take for one step; then /healthz returns 503, and after as long again the "
            "server exits with code 1",
        ),
    ):
        timeouts.add_argument(
            option,
            type=real_number(0, 86_400, above=True),
            default=default,
            metavar="S",
            help=f"{text} (default: %(default)s)",
        )


def run(args: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code."""
    token = token_of(args.token_file)
    local = args.host in ("localhost", "::1") or args.host.startswith("127.")
    if token is None and not local:
        raise CM3Error(
            f"{PLACE} --host {args.host}",
            "other machines can reach this address, but no token is set",
            f"put one into the environment variable {TOKEN_VARIABLE} or a file (--token-file), or "
            "listen on 127.0.0.1",
        )
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cm3.serve").setLevel("WARNING" if args.quiet else "INFO")
    openers = openers_of(args)
    from cm3serve.running import Settings, serve

    settings = Settings(
        host=args.host,
        port=args.port,
        token=token,
        allowed_hosts=tuple(args.allow_host),
        most_models=args.max_models,
        drain_seconds=args.drain,
        limits=limits_of(args),
        forced=frozenset(args.force),
    )
    return serve(settings, openers)


def limits_of(args: Namespace) -> Limits:
    """The limits that the options describe.

    Raises:
        CM3Error: the limit of one request exceeds that of all together.
    """
    bodies = _together("--all-bodies", args.all_bodies, "--max-body", args.max_body, ALL_BODIES)
    pixels = _together("--all-pixels", args.all_pixels, "--max-pixels", args.max_pixels, ALL_PIXELS)
    return Limits(
        body_bytes=args.max_body * MIB,
        all_body_bytes=bodies * MIB,
        body_seconds=args.body_timeout,
        picture_pixels=args.max_pixels * 1_000_000,
        all_pixels=pixels * 1_000_000,
        unsent_bytes=args.unsent * MIB,
        spooled_bytes=args.spool * MIB,
        connections=args.connections,
        header_seconds=args.header_timeout,
        idle_seconds=args.idle_timeout,
        send_seconds=args.send_timeout,
        number=args.max_n,
        candidates=args.max_candidates,
        at_once=args.at_once,
        waiting=args.queue,
        waiting_per_client=max(1, args.queue // 2),
        seconds=args.timeout,
        stuck_seconds=args.stuck_after,
    )


def _together(option: str, given: int | None, single: str, most: int, default: int) -> int:
    """The limit of all requests together; raises `CM3Error` if it is less than that of one request."""
    if given is None:
        return max(default, most)
    if given < most:
        raise CM3Error(
            f"{PLACE} {option} {given}",
            f"is less than the limit of one request ({single} {most})",
            f"raise it, or lower {single}",
        )
    return given


def token_of(file: Path | None) -> str | None:
    """The token from the file or the environment, or None."""
    if file is not None:
        check_regular(file, str(file))
        try:
            token, place = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise CM3Error(str(file), f"can't be read ({error})", "correct --token-file") from error
    elif TOKEN_VARIABLE in os.environ:
        token, place = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise CM3Error(
            place,
            f"holds no token of at least {SHORTEST_TOKEN} printable ASCII characters",
            "make one: openssl rand -hex 16",
        )
    return token


def openers_of(args: Namespace) -> dict[str, Callable[[], Model]]:
    """Name -> a function that opens the model, in the order of the options. Models that don't exist are reported now."""
    from cm3run.bank.memory_bank import is_bank
    from cm3run.checkpoint import find_model, model_name

    registry = registry_of(args)
    found: dict[str, str] = {}
    for given in args.model or [model_name(DEFAULT_MODEL, registry)]:
        name, equals, source = given.partition("=")
        if not equals:
            name = source = given
        if not name or name in found:
            raise CM3Error(
                f"{PLACE} --model {given}",
                "has no name" if not name else f"{name!r} is already served",
                "give each model another name: --model NAME=MODEL",
            )
        if not find_model(source, registry).exists():
            raise CheckpointError(
                source,
                "does not exist",
                "name a run's folder (cm3 train -o), one of its checkpoints, or an exported model",
            )
        found[name] = source
    banks = _of_models("--bank", args.bank, list(found))
    for folder in banks.values():
        if not is_bank(Path(folder)):
            raise CM3Error(
                f"{PLACE} --bank {folder}",
                "is not a memory bank",
                "name a folder that cm3 memory build wrote",
            )
    retrievers = _of_models("--retriever", args.retriever, list(found))
    for one in retrievers.values():
        registry.config_class("retriever", one, place=f"{PLACE} --retriever {one}")
    return {
        name: partial(_open, source, banks.get(name), retrievers.get(name), registry, args)
        for name, source in found.items()
    }


def _of_models(option: str, given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Name of a model -> its value of an option, given as [NAME=]VALUE."""
    values: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            name, value = models[0], one
        place = f"{PLACE} {option} {one}"
        if name not in models:
            raise CM3Error(place, f"no model is called {name!r}", close_match(name, models))
        if name in values:
            raise CM3Error(
                place,
                f"{name!r} already has {values[name]!r}",
                f"give {option} once for each model",
            )
        values[name] = value
    return values


def _open(
    source: str, bank: str | None, retriever: str | None, registry: object, args: Namespace
) -> Model:
    from cm3run.model.model import load

    return load(
        source,
        bank=bank,
        retriever=retriever,
        registry=registry,  # type: ignore[arg-type]  # typed `object`, so that the command line is light
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        parallel=args.parallel,
        max_rows=max(64, 2 * args.at_once),
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
