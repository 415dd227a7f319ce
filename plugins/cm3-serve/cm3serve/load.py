"""Measure a running server under load: throughput and latency by the number of clients.

    cm3 serve --port 8000 &
    python -m cm3serve.load http://127.0.0.1:8000 --clients 1 8 --requests 16

Every client draws one picture after the other, with its own seeds and prompts. All runs use the same server, after
two warm-up pictures. The last column is the server's processor time for a picture, which other work on the machine hardly
changes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from cm3apps.cli import whole_number
from cm3core.errors import CM3Error

#: Environment variable with the token, as for the server.
TOKEN_VARIABLE = "CM3_SERVE_TOKEN"
_TIMEOUT = 600
#: Prompts of a measurement: each thing in each style.
_THINGS = (
    "bell off",
    "anchor",
    "red apple",
    "battery low",
    "bicycle",
    "camera",
    "cat",
    "cloud rain",
    "compass",
    "cup",
    "dog",
    "door",
    "drum",
    "envelope",
    "feather",
    "fish",
    "flag",
    "guitar",
    "headphones",
    "house",
    "key",
    "lamp",
    "lock open",
    "moon",
    "mountain",
    "piano",
    "plane",
    "rocket",
    "scissors",
    "ship",
    "star half",
    "tent",
    "train",
    "tree",
    "umbrella",
    "violin",
)
_STYLES = ("outline", "filled", "outline rounded", "duotone")
PROMPTS = tuple(f"{thing}, {style}" for style in _STYLES for thing in _THINGS)


@dataclass(frozen=True)
class Load:
    """One run: the seconds of each request, and of the whole run; and of the server's processors."""

    clients: int
    latencies: Sequence[float]
    seconds: float
    cpu_seconds: float = math.nan

    @property
    def cpu_each(self) -> float:
        """Seconds of processor time of the server for a picture; NaN: not measured."""
        return self.cpu_seconds / len(self.latencies)

    @property
    def throughput(self) -> float:
        """Pictures per second."""
        return len(self.latencies) / self.seconds

    def latency(self, share: float) -> float:
        """The latency that this share of requests does not exceed (nearest rank).

        >>> Load(1, [1.0, 2.0, 3.0, 4.0], 10.0).latency(0.5), Load(1, [1.0, 2.0], 3.0).latency(0.95)
        (2.0, 2.0)
        """
        ordered = sorted(self.latencies)
        rank = max(1, -int(-share * len(ordered) // 1))
        return ordered[rank - 1]


class Client:
    """Draws pictures over one connection."""

    def __init__(self, url: str, asked: Mapping[str, object]) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise CM3Error(url, "is not the address of a server", "write http://127.0.0.1:8000")
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT)
        self.body = dict(asked)
        self.headers = {"Content-Type": "application/json"} | _token()

    def draw(self, seed: int, prompt: str) -> float:
        """Draw a picture; returns the seconds it took."""
        start = time.perf_counter()
        body = json.dumps(self.body | {"seed": seed, "prompt": prompt})
        try:
            self.connection.request("POST", "/v1/images/generations", body, self.headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CM3Error(
                self.connection.host,
                f"did not answer ({error})",
                "start cm3 serve, and correct the URL",
            ) from error
        if answer.status != 200:
            raise CM3Error("the server", f"answered {answer.status}", text.decode()[:500])
        return time.perf_counter() - start


def cpu_seconds(url: str) -> float:
    """Processor time that the server has used, as it tells in /metrics; NaN if it does not."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics", headers=_token())
        lines = connection.getresponse().read().decode().splitlines()
    except (OSError, http.client.HTTPException):  # told by the requests for pictures
        return math.nan
    finally:
        connection.close()
    found = [line.split()[-1] for line in lines if line.startswith("process_cpu_seconds_total")]
    return float(found[0]) if found else math.nan


def _token() -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE)
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def measure(
    url: str,
    clients: int,
    requests: range,
    asked: Mapping[str, object],
    prompts: Sequence[str],
) -> Load:
    """Run a number of requests, divided among clients.

    Args:
        url: the server's address.
        clients: number of clients; each draws one picture after the other.
        requests: the seeds of all pictures.
        asked: the body of each request, which gets its own seed and prompt.
        prompts: they take turns, by the seeds.
    """
    each = [requests[place::clients] for place in range(clients)]

    def work(seeds: range) -> list[float]:
        client = Client(url, asked)
        try:
            return [client.draw(seed, prompts[seed % len(prompts)]) for seed in seeds]
        finally:
            client.connection.close()

    start, used = time.perf_counter(), cpu_seconds(url)
    with ThreadPoolExecutor(clients) as pool:
        latencies = [one for own in pool.map(work, each) for one in own]
    return Load(clients, latencies, time.perf_counter() - start, cpu_seconds(url) - used)


def body_of(args: argparse.Namespace) -> dict[str, object]:
    """The body of each request, without its seed."""
    body: dict[str, object] = {}
    if args.partial_images:
        body |= {"stream": True, "partial_images": args.partial_images}
    if args.candidates is not None:
        body["candidates"] = args.candidates
    return body | ({"draw": True} if args.draw else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cm3serve.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=whole_number(1, 1000), nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=whole_number(1, 1_000_000), default=16)
    parser.add_argument(
        "--prompt",
        action="append",
        help="prompts that take turns; may be given several times (default: 144 things in a style, none twice)",
    )
    parser.add_argument(
        "--partial-images",
        type=whole_number(0, 256),
        default=0,
        help="also stream partial pictures",
    )
    parser.add_argument(
        "--candidates",
        type=whole_number(1, 64),
        help="candidates per picture (default: the model's)",
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw even what the model's memory has as it is"
    )
    args = parser.parse_args(arguments)
    body, prompts, first_seed = body_of(args), args.prompt or PROMPTS, 2
    try:
        measure(args.url, 1, range(first_seed), body, prompts)
        print(
            "| clients | pictures per second | relative to the first | p50 s | p95 s | CPU s per picture |\n"
            "| --- | --- | --- | --- | --- | --- |"
        )
        first = None
        for clients in args.clients:
            seeds = range(first_seed, first_seed + args.requests)
            load, first_seed = measure(args.url, clients, seeds, body, prompts), seeds.stop
            first = load.throughput if first is None else first
            cpu = "–" if math.isnan(load.cpu_each) else f"{load.cpu_each:.3f}"
            print(
                f"| {clients} | {load.throughput:.2f} | {load.throughput / first:.2f} | "
                f"{load.latency(0.5):.2f} | {load.latency(0.95):.2f} | {cpu} |",
                flush=True,
            )
    except CM3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
