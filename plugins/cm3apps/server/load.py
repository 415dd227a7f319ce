"""Measure a running server under load: throughput and latency by the number of clients.

    cm3 serve --port 8000 &
    python -m cm3apps.server.load http://127.0.0.1:8000 --clients 1 8 --requests 16

Every client draws one picture after the other, with its own seeds. All runs use the same server, after
two warm-up pictures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from cm3apps.cli import whole_number
from cm3core.errors import CM3Error

#: Environment variable with the token, as for the server.
TOKEN_VARIABLE = "CM3_SERVE_TOKEN"
_TIMEOUT = 600


@dataclass(frozen=True)
class Load:
    """One run: the seconds of each request, and of the whole run."""

    clients: int
    latencies: Sequence[float]
    seconds: float

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

    def __init__(self, url: str, prompt: str, partials: int, candidates: int | None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise CM3Error(url, "is not the address of a server", "write http://127.0.0.1:8000")
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT)
        self.body: dict[str, object] = {"prompt": prompt} | (
            {"stream": True, "partial_images": partials} if partials else {}
        )
        if candidates is not None:
            self.body["candidates"] = candidates
        token = os.environ.get(TOKEN_VARIABLE)
        self.headers = {"Content-Type": "application/json"} | (
            {} if token is None else {"Authorization": f"Bearer {token}"}
        )

    def draw(self, seed: int) -> float:
        """Draw a picture; returns the seconds it took."""
        start = time.perf_counter()
        body = json.dumps(self.body | {"seed": seed})
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


def measure(
    url: str,
    clients: int,
    requests: int,
    prompt: str,
    partials: int = 0,
    candidates: int | None = None,
) -> Load:
    """Run a number of requests, divided among clients.

    Args:
        url: the server's address.
        clients: number of clients; each draws one picture after the other.
        requests: total number of pictures.
        prompt: the prompt of all pictures.
        partials: number of partial pictures to stream for each picture.
        candidates: candidates per picture. None: the model's recipe decides.
    """
    each = [range(place, requests, clients) for place in range(clients)]

    def work(seeds: range) -> list[float]:
        client = Client(url, prompt, partials, candidates)
        try:
            return [client.draw(seed) for seed in seeds]
        finally:
            client.connection.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = [one for own in pool.map(work, each) for one in own]
    return Load(clients, latencies, time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cm3apps.server.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=whole_number(1, 1000), nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=whole_number(1, 1_000_000), default=16)
    parser.add_argument("--prompt", default="a red apple")
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
    args = parser.parse_args(arguments)
    try:
        measure(args.url, 1, 2, args.prompt, candidates=args.candidates)
        print(
            "| clients | pictures per second | relative to the first | p50 s | p95 s |\n| --- | --- | --- | --- | --- |"
        )
        first = None
        for clients in args.clients:
            load = measure(
                args.url, clients, args.requests, args.prompt, args.partial_images, args.candidates
            )
            first = load.throughput if first is None else first
            print(
                f"| {clients} | {load.throughput:.2f} | {load.throughput / first:.2f} | "
                f"{load.latency(0.5):.2f} | {load.latency(0.95):.2f} |",
                flush=True,
            )
    except CM3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
