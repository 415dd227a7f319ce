"""`cm3 mcp`, with the SDK's own client: its tools over stdio and HTTP, and what they refuse; and their work alone."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3core.errors import DataError, FileError
from cm3core.interfaces.dataset import Provenance
from cm3run.attribution import Credit, facts_of_file
from cm3serve.mcp import command
from cm3serve.mcp.given import MOST_CHARACTERS, MOST_KEPT, AllowedFolders, Pictures
from cm3serve.mcp.results import Document
from drawing_models import OWN_ICONS, train_small
from messages import tells

TOOLS = {"search_pictures", "draw", "edit", "complete_set", "provenance"}
BELL = "bell, outline, lucide"


def options(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    command.configure(parser)
    return parser.parse_args(arguments, Namespace(plugin=[]))


# ---- what agents give


@given(st.binary(min_size=1, max_size=200))
def test_a_picture_comes_back_by_its_id_and_as_base64(content: bytes) -> None:
    kept = Pictures()
    id = kept.keep(content)
    text = base64.b64encode(content).decode()
    assert kept.read(id) == kept.read(text) == kept.read(f"data:image/png;base64,{text}") == content
    assert Pictures().keep(content) == id  # by its bytes alone


def test_the_last_pictures_are_remembered() -> None:
    kept = Pictures()
    ids = [kept.keep(bytes([number])) for number in range(MOST_KEPT + 1)]
    assert kept.read(ids[1]) == b"\x01"
    with pytest.raises(DataError) as caught:
        kept.read(ids[0])
    assert tells(str(caught.value), "picture: ... is not among the last 64 pictures ... next: ...")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("@@@", "picture: is neither SVG nor base64 ... next: pass the id ..."),
        ("", "picture: is empty ... next: pass the base64 of a PNG ..."),
        ("a" * (MOST_CHARACTERS + 1), "picture: has ... characters, at most ... next: reduce ..."),
    ],
)
def test_a_wrong_picture_is_refused(text: str, cause: str) -> None:
    with pytest.raises(DataError) as caught:
        Pictures().read(text)
    assert tells(str(caught.value), cause)


def test_only_allowed_folders_are_reached(tmp_path: Path) -> None:
    """Neither an absolute path nor `..` nor a link leads out; a relative path is inside."""
    inside = tmp_path / "in"
    (inside / "icons").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (inside / "link").symlink_to(tmp_path / "out")
    allowed = AllowedFolders([inside])
    for given_path in ("icons", str(inside / "icons"), "icons/../icons"):
        assert allowed.path(given_path, "folder") == inside.resolve() / "icons"
    assert allowed.path("icons-new", "out") == inside.resolve() / "icons-new"
    for given_path in ("/", str(tmp_path / "out"), "..", "../out", "link", "link/x", "in\0"):
        with pytest.raises(FileError) as caught:
            allowed.path(given_path, "folder")
        assert caught.value.place == "folder"
    with pytest.raises(FileError) as caught:
        AllowedFolders([]).path(str(inside), "folder")
    assert tells(str(caught.value), "folder: no folder is allowed ... cm3 mcp --allow FOLDER...")
    with pytest.raises(FileError) as caught:
        AllowedFolders([tmp_path / "nowhere"])
    assert tells(str(caught.value), "--allow ...nowhere: is not a folder ... next: ...")


def test_a_document_has_the_fields_of_a_credit() -> None:
    credit = Credit("lucide/bell", Provenance("ISC", attribution="Lucide"), 0.5)
    assert Document(**credit.as_json()).nearness == 0.5
    assert Document(**Credit("x").as_json()).id == "x"


# ---- the command


def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: SimpleNamespace())
    assert main(["mcp", "--http", "--host", "0.0.0.0"]) == 2
    assert tells(capsys.readouterr().err, "...cm3 mcp --host 0.0.0.0: other machines can reach ...")
    assert main(["mcp", "--model", str(tmp_path / "none")]) == 2
    assert tells(
        capsys.readouterr().err, "...none: does not exist ... next: name a run's folder ..."
    )
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["mcp"]) == 2
    assert tells(
        capsys.readouterr().err,
        "...cm3 mcp: the package 'mcp' is not installed ... next: pip install 'cm3leon[mcp]'...",
    )


# ---- by the client of the SDK


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def over_stdio(use: Callable[[Any], Awaitable[None]], *arguments: str) -> None:
    """Start `cm3 mcp` as agents do, and use a client of it."""
    pytest.importorskip("mcp", reason="needs the package mcp")
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    start = ["-m", "cm3apps.cli.main", "mcp", *arguments]
    server = StdioServerParameters(command=sys.executable, args=start, env=_environment())

    async def session() -> None:
        async with Client(stdio_client(server)) as client:
            await use(client)

    asyncio.run(asyncio.wait_for(session(), 600))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server over HTTP."""
    pytest.importorskip("mcp", reason="needs the package mcp")
    start = [sys.executable, "-m", "cm3apps.cli.main", "mcp", "--http", "--port", "0"]
    with subprocess.Popen(
        start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    ) as server:
        assert server.stderr is not None
        assert server.stdout is not None
        yield server.stderr.readline().split()[2]
        server.send_signal(signal.SIGINT)
        assert server.stdout.read() == ""


@pytest.mark.slow
def test_stdout_is_the_protocols_and_ctrl_c_ends_it() -> None:
    pytest.importorskip("mcp", reason="needs the package mcp")
    asked = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    pipe = subprocess.PIPE
    start = [sys.executable, "-m", "cm3apps.cli.main", "mcp"]
    with subprocess.Popen(
        start, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=_environment()
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"no message\n{json.dumps(asked)}\n")
        server.stdin.flush()
        unread = json.loads(server.stdout.readline())
        assert (unread["id"], unread["error"]["code"]) == (None, -32700)
        assert json.loads(server.stdout.readline())["result"]["serverInfo"]["name"] == "cm3leon"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == -signal.SIGINT
        assert server.stdout.read() == ""


async def refused(client: Any, tool: str, **arguments: Any) -> str:
    """The text of a tool error."""
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    return str(answer.content[0].text)


@pytest.mark.slow
def test_an_agent_searches_first_and_draws_what_is_missing(tmp_path: Path) -> None:
    async def use(client: Any) -> None:
        listed = (await client.list_tools()).tools
        assert {one.name for one in listed} == TOOLS
        for one in listed:
            assert one.description
            assert one.output_schema is not None
            assert all("description" in key for key in one.input_schema["properties"].values())

        answer = await client.call_tool("search_pictures", {"prompt": BELL, "num": 2})
        found = answer.structured_content
        assert json.loads(answer.content[0].text) == found
        best = found["pictures"][0]
        assert (found["answer"], best["document"]["id"]) == ("found", "lucide/bell")
        assert (best["document"]["licence"], best["document"]["collection"]) == ("ISC", "lucide")
        assert best["svg"].startswith("<svg")
        other = await client.call_tool("search_pictures", {"prompt": "padlock on a folder"})
        assert other.structured_content["answer"] == "composed"
        assert len(other.structured_content["pictures"]) == 5

        answer = await client.call_tool("draw", {"prompt": BELL})
        [original] = answer.structured_content["pictures"]
        assert (original["answer"], original["svg"]) == ("found", best["svg"])
        assert len(answer.content) == 1  # no image: the SVG is the picture

        answer = await client.call_tool(
            "edit", {"picture": original["id"], "instruction": "make it filled"}
        )
        [edited] = answer.structured_content["pictures"]
        assert edited["media_type"] == "image/png"
        assert [one["id"] for one in edited["documents"]] == ["lucide/bell"]
        assert base64.b64decode(answer.content[1].data).startswith(b"\x89PNG")

        picture = {"picture": answer.content[1].data}
        made = (await client.call_tool("provenance", picture)).structured_content
        assert made["made"]["prompt"] == "make it filled"
        assert [one["licence"] for one in made["documents"]] == ["ISC"]

        text = await refused(client, "edit", picture="@@@", instruction="x")
        assert tells(text, "...picture: is neither SVG nor base64 ... Next: pass the id ...")
        text = await refused(client, "edit", picture="<svg><image/></svg>", instruction="x")
        assert tells(text, "...picture: the SVG ... Next: pass it as a PNG")
        text = await refused(client, "draw", prompt="bell", num=11)
        assert tells(text, "...num: is 11, at most 10 ... Next: ask for fewer...")
        text = await refused(client, "draw", prompt=" ")
        assert tells(text, "...prompt: is empty...")
        text = await refused(client, "complete_set", names=["plug"], folder="/etc")
        assert tells(text, "...folder: '/etc' is outside the allowed folders. Next: ...")
        text = await refused(client, "complete_set", names=["plug"], folder="icons")
        assert tells(text, "...icons: holds no SVG file. Next: name a folder ...")

    (tmp_path / "icons").mkdir()
    over_stdio(use, "--allow", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_drawing_over_http_and_a_cancelled_one(address: str, mode: str) -> None:
    """A call that the client gives up ends, and the next one is answered."""
    from mcp import Client

    async def use() -> None:
        async with Client(address, mode=mode) as client:
            asked = {"prompt": BELL, "draw": True, "seed": 1}
            answer = await client.call_tool("draw", asked)
            [drawn] = answer.structured_content["pictures"]
            assert (drawn["answer"], drawn["svg"]) == ("restyled", None)
            assert base64.b64decode(answer.content[1].data).startswith(b"\x89PNG")
            begun = asyncio.Event()

            async def told(*_: object) -> None:
                begun.set()

            many = asyncio.create_task(
                client.call_tool("draw", asked | {"num": 10}, progress_callback=told)
            )
            await begun.wait()
            many.cancel()
            with pytest.raises(asyncio.CancelledError):
                await many
            again = await client.call_tool("search_pictures", {"prompt": "plug", "num": 1})
            assert len(again.structured_content["pictures"]) == 1

    asyncio.run(asyncio.wait_for(use(), 600))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "unknown_host"),
        ({"Origin": "http://evil.example"}, "foreign_origin"),
        ({"Origin": "http://localhost:3000"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "same-site"}, "foreign_origin"),
    ],
)
def test_web_pages_of_others_are_refused(address: str, headers: dict[str, str], code: str) -> None:
    """By the guard of `cm3 serve`; a link of another site opens nothing here, either."""
    import httpx

    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepts = {"Accept": "application/json, text/event-stream"}
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for answer in (
        httpx.post(address, json=asked, headers=accepts | headers),
        httpx.get(address, headers=accepts | link | headers),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


# ---- files of the user

MINE = {"LICENSES": b"MIT", "report.json": b"{}", "sheet.png": b"mine", "bell-off.svg": b"<svg/>"}


@pytest.mark.parametrize(
    "taken", [["LICENSES"], ["report.json"], ["sheet.png"], ["bell-off.svg"], list(MINE)]
)
@pytest.mark.parametrize("name", ["bell off", "bell"])
def test_files_of_the_user_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[str], name: str
) -> None:
    """Also where nothing is drawn. No model is opened."""
    from cm3serve.mcp import desk

    monkeypatch.setattr(desk, "open_model", lambda *_, **__: pytest.fail("a model is opened"))
    shutil.copytree(OWN_ICONS, tmp_path / "icons")
    if taken == ["bell-off.svg"] and name == "bell":
        taken = ["candidates/bell-2.svg"]
        (tmp_path / "candidates").mkdir()
    for file in taken:
        (tmp_path / file).write_bytes(MINE.get(file, b"mine"))
    before = files_in(tmp_path)
    one = desk.Desk(options("--model", "nowhere"), AllowedFolders([tmp_path]))
    with pytest.raises(FileError) as caught:
        one.complete([name], "icons", ".", 2)
    assert os.path.relpath(caught.value.place, tmp_path.resolve()) in taken
    assert files_in(tmp_path) == before


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- a model of drawings


@pytest.mark.slow
def test_a_set_is_completed_inside_the_allowed_folder(tmp_path: Path) -> None:
    """By an untrained model of drawings: files, the result and the sheet; and what it draws is SVG text."""
    from cm3serve.mcp.desk import Desk

    run = train_small(tmp_path / "run", tmp_path / "cache")
    allowed = tmp_path / "allowed"
    shutil.copytree(OWN_ICONS, allowed / "icons")
    args = options("--model", str(run), "--threads", "1")
    desk = Desk(args, AllowedFolders([allowed]))
    reply = desk.complete(["zzyzx bell", "Bell"], "icons", None, 2)
    assert reply.result.folder == str(allowed.resolve() / "icons-new")
    guess, bell = reply.result.things
    assert (guess.name, guess.kind, bell.kind) == ("zzyzx bell", "composed", "found")
    assert Path(guess.file).read_text() == guess.svg
    assert bell.svg is None  # the folder has it
    assert guess.adapted is None is guess.adapted_from  # the memory has no such thing
    [sheet] = reply.pictures
    assert sheet == (allowed / "icons-new" / "sheet.png").read_bytes()
    with pytest.raises(FileError) as caught:
        desk.complete(["plug"], "icons", "icons/new", 2)
    assert tells(str(caught.value), "...: is inside the set ... next: ...")
    with pytest.raises(FileError) as caught:
        desk.complete(["plug"], "icons", str(tmp_path / "elsewhere"), 2)
    assert tells(str(caught.value), "out: ... is outside the allowed folders ... next: ...")

    [drawn] = desk.draw("zzyzx bell, outline", 1, 3, False).result.pictures
    assert (drawn.media_type, drawn.seed) == ("image/svg+xml", 3)
    made = desk.provenance(drawn.id).result
    assert made.made["seed"] == "3"
    assert desk.provenance(drawn.svg).result == made


@pytest.mark.slow
def test_the_default_model_leaves_completing_to_the_one_for_it(tmp_path: Path) -> None:
    """Its pictures are traced; an existing drawing in the set's form is written beside."""
    from cm3serve.mcp.desk import Desk

    shutil.copytree(OWN_ICONS, tmp_path / "icons")
    desk = Desk(options("--threads", "1"), AllowedFolders([tmp_path]))
    [thing] = desk.complete(["umbrella"], str(tmp_path / "icons"), None, 2).result.things
    assert thing.kind == "restyled"
    assert facts_of_file(thing.file).texts["model"] == "icons:icons64-hands"
    assert thing.adapted_from is not None
    assert facts_of_file(thing.adapted).texts["adapted"] == thing.adapted_from.id
