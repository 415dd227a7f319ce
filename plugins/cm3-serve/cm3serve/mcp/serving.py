"""The tools as the Model Context Protocol has them, over stdio or HTTP, by the official SDK."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field

from cm3core import __version__
from cm3core.errors import CM3Error
from cm3serve.connections import config_of
from cm3serve.errors import in_one_line
from cm3serve.guard import LOOPBACK, Guard
from cm3serve.mcp.answering import LIMITS, ReadableBodies, ReadableLines, readable
from cm3serve.mcp.given import MOST_CHARACTERS, MOST_LETTERS, MOST_NAMES, AllowedFolders
from cm3serve.mcp.results import Completed, Drawn, Found, Made, Reply

if TYPE_CHECKING:
    from cm3serve.mcp.desk import Desk

#: Calls that may wait for the one that runs.
MOST_WAITING = 8
#: Seconds between reports of progress.
_PAUSE = 1.0
INSTRUCTIONS = (
    "Icons and small pictures from a memory of openly licensed drawings, and a model that draws what the memory lacks. "
    "Call search_pictures first: it is fast, and returns original SVG files with their licences. Call draw for what it "
    "does not find. Prompts are short: the thing, then style words and a set, such as 'bell off, outline rounded, lucide'. "
    "Keep the credits that come with a picture; most licences ask for them."
)

_Text = Annotated[str, Field(max_length=MOST_LETTERS)]
_Prompt = Annotated[
    _Text,
    Field(description="the thing, then style words and a set: 'bell off, outline rounded, lucide'"),
]
_Number = Annotated[int, Field(ge=1, le=1000, description="number of pictures")]
_Seed = Annotated[
    int | None,
    Field(ge=0, le=2**63 - 1, description="same seed, same pictures; null: the server's"),
]
_Picture = Annotated[
    str,
    Field(
        max_length=MOST_CHARACTERS,
        description="the id of a picture that draw or edit returned ('picture:...'), the text of an SVG, or base64 of a PNG",
    ),
]


class Tools:
    """The tools of a server. Their docstrings are what agents read.

    Calls run in a thread, one at a time, so that the server answers other messages meanwhile.

    Args:
        args: the command's options.
        folders: in which tools may read and write.
    """

    def __init__(self, args: Namespace, folders: AllowedFolders) -> None:
        self._args, self._folders = args, folders
        self._one = anyio.CapacityLimiter(1)

    @cached_property
    def _desk(self) -> Desk:
        """Imported at the first call, in its thread: clients wait only seconds for a server to start."""
        from cm3serve.mcp.desk import Desk

        return Desk(self._args, self._folders)

    def server(self) -> MCPServer[Any]:
        """The server with all tools."""
        server = MCPServer[Any](
            "cm3leon",
            title="cm3leon",
            instructions=INSTRUCTIONS,
            version=__version__,
            log_level="WARNING",
        )
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        writes = ToolAnnotations(
            read_only_hint=False, destructive_hint=False, open_world_hint=False
        )
        for tool in (self.search_pictures, self.draw, self.edit, self.provenance):
            server.add_tool(tool, annotations=reads)
        if find_spec("cm3icons") is not None:
            server.add_tool(self.complete_set, annotations=writes)
        return server

    async def search_pictures(
        self,
        prompt: _Prompt,
        num: _Number = 5,
        with_svg: Annotated[bool, Field(description="return the original SVG files, too")] = True,
    ) -> Annotated[CallToolResult, Found]:
        """Search the memory of existing pictures, without drawing. Fast; call this first.

        Returns the nearest pictures, best first: id, caption, similarity to the prompt (1: the same thing in the style
        that is asked for), set, licence, author, and the original SVG with its credits in its metadata. `answer` says what
        the memory has: 'found' (use it as it is), 'restyled' (the thing in other styles only) or 'composed' (not the
        thing)."""
        return await self._answer(lambda: self._desk.search(prompt, num, with_svg))

    async def draw(
        self,
        prompt: _Prompt,
        ctx: Context[Any, Any],
        num: _Number = 1,
        seed: _Seed = None,
        draw: Annotated[
            bool, Field(description="draw even what the memory has, instead of its original")
        ] = False,
    ) -> Annotated[CallToolResult, Drawn]:
        """Return pictures for a prompt: originals of the memory where it has the thing in the style that is asked for, and
        drawings of the model for the rest. A drawing takes seconds to a minute.

        Each picture says whether it was 'found' (an original), 'restyled' (drawn after the thing in other styles) or
        'composed' (a guess), and lists the documents it was drawn from with their licences and nearness (from 0.8: nearly
        a copy). Originals, and pictures of models that draw in SVG, are in `svg`; others are PNG images beside the result.
        """
        report = _progress_to(ctx)
        return await self._answer(lambda: self._desk.draw(prompt, num, seed, draw, report))

    async def edit(
        self,
        picture: _Picture,
        instruction: Annotated[_Text, Field(description="what to change: 'make it filled'")],
        ctx: Context[Any, Any],
        num: _Number = 1,
        seed: _Seed = None,
    ) -> Annotated[CallToolResult, Drawn]:
        """Change a picture by an instruction, such as 'make it filled' or 'add a plus'. Takes seconds to a minute.

        Returns pictures as the tool draw does. Needs a model that was tuned for edits, which the bundled icon model is.
        """
        report = _progress_to(ctx)
        return await self._answer(lambda: self._desk.edit(picture, instruction, num, seed, report))

    async def complete_set(
        self,
        names: Annotated[
            list[_Text],
            Field(
                min_length=1,
                max_length=MOST_NAMES,
                description="what to draw: ['bell off', 'plug']",
            ),
        ],
        folder: Annotated[
            _Text,
            Field(
                description="folder of the set's SVG files, inside a folder that the user allowed"
            ),
        ],
        ctx: Context[Any, Any],
        out: Annotated[
            _Text | None, Field(description="folder for the results; null: FOLDER-new beside it")
        ] = None,
        num: Annotated[int, Field(ge=1, le=64, description="candidates for each name")] = 4,
    ) -> Annotated[CallToolResult, Completed]:
        """Draw the icons that a folder of SVG icons lacks, in the folder's own style, and write them as SVG files.

        Results of earlier calls are replaced where they are unchanged. If any other file is in the way, the call is refused,
        names it, and draws nothing. Returns the best candidate of each name as SVG, the licences of what it was
        drawn from, and a sheet of all candidates as an image; look at them, for not every drawing is usable. Where the
        memory has the thing, a drawing of it in the folder's form is written, too (`adapted`). Needs a folder that the user
        allowed when the server was started (--allow)."""
        report = _progress_to(ctx)
        return await self._answer(lambda: self._desk.complete(names, folder, out, num, report))

    async def provenance(self, picture: _Picture) -> Annotated[CallToolResult, Made]:
        """Tell how a picture was made, from the metadata in its file: prompt, seed, model, and the documents it was drawn
        from with authors, licences and nearness. For pictures (PNG, SVG) that cm3leon made or found."""
        return await self._answer(lambda: self._desk.provenance(picture))

    async def _answer(self, work: Callable[[], Reply]) -> CallToolResult:
        if self._one.statistics().tasks_waiting >= MOST_WAITING:
            raise ToolError(
                f"server: {MOST_WAITING} calls are waiting already. Next: call again when they are answered"
            )
        try:
            reply = await anyio.to_thread.run_sync(_apart, work, limiter=self._one)
        except CM3Error as error:
            raise ToolError(readable(in_one_line(error))) from error
        told = readable(asdict(reply.result))
        content: list[ContentBlock] = [
            TextContent(type="text", text=json.dumps(told, ensure_ascii=False))
        ]
        for one in reply.pictures:
            data = base64.b64encode(one).decode("ascii")
            content.append(ImageContent(type="image", data=data, mime_type="image/png"))
        return CallToolResult(content=content, structured_content=told)


def _apart(work: Callable[[], Reply]) -> Reply:
    """Work whose prints go to stderr: stdout is the protocol's."""
    with redirect_stdout(sys.stderr):
        return work()


def _progress_to(ctx: Context[Any, Any]) -> Callable[[int, int], None]:
    """A function that reports progress to the client from the thread of a call, and ends the call if the client
    cancelled it."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        anyio.from_thread.check_cancelled()
        if total and (now := time.monotonic()) - last >= _PAUSE:
            last = now
            anyio.from_thread.run(ctx.report_progress, float(done), float(total))

    return report


def serve_stdio(tools: Tools) -> int:
    """Serve one client over stdin and stdout, until it closes stdin. Ctrl-C ends the process at once: the thread that waits
    for stdin can't be stopped otherwise, and files are written whole or not at all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    anyio.run(_stdio, tools)
    return 0


async def _stdio(tools: Tools) -> None:
    # what else reads stdin finds nothing there, and takes no message away
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with open(own, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 (a descriptor)
        lines = ReadableLines(anyio.wrap_file(file))
        server = tools.server()._lowlevel_server  # `run_stdio_async` takes no lines
        async with stdio_server(stdin=lines) as (read, write):  # type: ignore[arg-type]  # only iterated over
            lines.answers = write
            await server.run(read, write, server.create_initialization_options())


def http_app(tools: Tools, host: str, names: Sequence[str]) -> Guard:
    """The tools over HTTP, behind the guard of `cm3 serve`.

    Args:
        tools: the tools.
        host: the address to listen on.
        names: further names by which clients reach it.
    """
    checked_already = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = tools.server().streamable_http_app(transport_security=checked_already)
    allowed = {*LOOPBACK, host.lower(), *map(str.lower, names)}
    return Guard(ReadableBodies(app), token=None, hosts=allowed)


def serve_http(tools: Tools, host: str, port: int, names: Sequence[str]) -> int:
    """Serve over HTTP until SIGTERM or Ctrl-C.

    Raises:
        CM3Error: the port is in use.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise CM3Error(
            f"cm3 mcp --port {port}",
            f"can't listen on {host} ({error.strerror})",
            "choose another port, or 0 for a free one",
        ) from error
    config = config_of(http_app(tools, host, names), LIMITS)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}/mcp"
    print(f"cm3 mcp: {url} (Ctrl-C ends)", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and raises it again
        uvicorn.Server(config).run(sockets=[listening])
    return 0
