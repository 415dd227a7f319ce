"""`python -m cm3lab.benchmarks.retrieval.forwarding HOST PORT MS`: forwards connections to a PostgreSQL server, as a network
of this latency does: each message arrives MS / 2 later, in both directions. HOST may be the folder of a Unix socket. It
prints the port on 127.0.0.1 that it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

_MOST_BYTES = 1 << 16


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
) -> None:
    """Write what is read, `delay` seconds later."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def write() -> None:
        while True:
            at, data = await waiting.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    writing = asyncio.create_task(write())
    with contextlib.suppress(OSError):
        while data := await reader.read(_MOST_BYTES):
            waiting.put_nowait((loop.time() + delay, data))
    waiting.put_nowait((loop.time() + delay, b""))
    with contextlib.suppress(OSError):
        await writing


async def serve(host: str, port: int, delay: float) -> None:
    """Forward for ever."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(str(Path(host) / f".s.PGSQL.{port}"))
            else:
                there = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_forward(reader, there[1], delay), _forward(there[0], writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 2000))
