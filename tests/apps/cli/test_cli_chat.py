"""`cm3 chat`: one reply, a loop of lines, many conversations; in text, JSON and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import cm3core
from cm3apps.cli.main import main
from cm3core import images
from cm3run.model import Conversation, Turn
from messages import tells
from tiny_chameleon import write_cm3

Chat = Callable[..., int]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cm3(tmp_path_factory.mktemp("chameleon"))


@pytest.fixture
def chat(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """`cm3 chat` in an empty folder, with lines of input; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, lines: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        options = ["--model", own, "--max-tokens", 4, *arguments]
        return main(["chat", *map(str, options)])

    return run


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    PILImage.fromarray(pixels).save(path)
    return path


def test_one_reply(chat: Chat, own: Path, tmp_path: Path, capsys: Any) -> None:
    shown = picture(tmp_path / "a.png")
    asked = ("--message", "what is it?", "--image", shown, "--answer", "text")
    assert chat(*asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    reply = cm3core.load(own).chat(
        [Turn("user", (shown, "what is it?"))], answer="text", max_tokens=4
    )
    assert told == {
        "content": [{"type": "text", "text": reply.text}],
        "finish": reply.finish,
        "seed": 0,
        "turns_read": 0,
        "turns_left_out": 0,
        "model": str(own),
    }
    assert chat(*asked) == 0
    printed = capsys.readouterr().out
    assert (
        printed.split()
        == "".join(c if c.isprintable() or c in "\n" else "\ufffd" for c in reply.text).split()
    )
    assert not (tmp_path / "cm3-out").exists() or not list((tmp_path / "cm3-out").iterdir())


def test_pictures_are_written_and_numbered_on(chat: Chat, tmp_path: Path, capsys: Any) -> None:
    asked = ("--message", "a red apple", "--answer", "image", "-o", "talk", "--seed", 7)
    for number in range(2):
        assert chat(*asked) == 0
        path = Path("talk") / f"chat-{number:03d}.png"
        assert capsys.readouterr().out == f"{path}\n"
        facts = images.read_png_metadata(path)
        assert (facts["prompt"], facts["seed"]) == ("a red apple", "7")
    first, second = (Path("talk") / f"chat-{n:03d}.png" for n in range(2))
    assert np.array_equal(images.open_image(first), images.open_image(second))


def test_the_loop_is_a_conversation(chat: Chat, own: Path, tmp_path: Path, capsys: Any) -> None:
    """What is typed is what `Conversation` says; the saved file goes on with it."""
    shown = picture(tmp_path / "a.png")
    lines = (
        f"/image {shown}\n/write what is it?\n/draw a red\\\napple\n/save talk.json\n/quit\nno\n"
    )
    assert chat("-o", "talk", lines=lines) == 0
    out, err = capsys.readouterr()
    talk = Conversation(cm3core.load(own), max_tokens=4)
    talk.say("what is it?", shown, answer="text")
    drawn = talk.say("a red\napple", answer="image").pictures[0]
    assert out.splitlines()[-1] == str(Path("talk") / "chat-000.png")
    assert "error" not in err
    saved = json.loads(Path("talk.json").read_text())["messages"]
    assert [one["role"] for one in saved] == ["user", "assistant"] * 2
    assert saved[3]["content"] == [
        {
            "type": "image",
            "file": str(Path("talk") / "chat-000.png"),
            "codes": {"grid": [4, 4], "codes": drawn.codes.codes.tolist()},
        }
    ]
    # read again, it goes on as if it had not ended
    further = ("--load", "talk.json", "--message", "a", "--answer", "text", "--json")
    assert chat(*further, "--save", "more.json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["content"] == [{"type": "text", "text": talk.say("a", answer="text").text}]
    assert len(json.loads(Path("more.json").read_text())["messages"]) == 6


def test_commands_of_the_loop(chat: Chat, capsys: Any) -> None:
    lines = "\n".join(
        [
            "/help",
            "/nothing",
            "/image",
            "/image absent.png",
            "/undo",
            "/again",
            "/write a",
            "/again",
            "/history",
            "/undo",
            "/reset",
            "/save here.txt",
            "  ",
        ]
    )
    assert chat(lines=lines) == 0
    out, err = capsys.readouterr()
    assert "/image FILE" in out
    assert out.count("user: a") == 1
    assert err.count("error:") == 6
    assert "error: /nothing: is no command\n" in err
    assert "error: /image: needs FILE\n  next: /image FILE\n" in err
    assert "error: /again: there is no message yet\n  next: send one\n" in err
    assert "does not end with .json" in err
    assert "removed: a\n" in err
    assert "a new conversation\n" in err


def test_many_conversations(chat: Chat, own: Path, tmp_path: Path, capsys: Any) -> None:
    picture(tmp_path / "a.png")
    content = [{"type": "image", "file": "a.png"}, {"type": "text", "text": "what is it?"}]
    lines = [
        {"id": "bell", "messages": [{"role": "user", "content": content}]},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "a"}]},
    ]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    assert chat("--conversations", asked, "-o", "out", "--answer", "text") == 1
    out, err = capsys.readouterr()
    path = Path("out/replies.jsonl")
    assert out == f"{path}\n"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    model = cm3core.load(own)
    one = model.chat(
        [Turn("user", (tmp_path / "a.png", "what is it?"))], answer="text", max_tokens=4
    )
    assert rows[0]["content"] == [{"type": "text", "text": one.text}]
    assert rows[0]["id"] == "bell"
    assert tells(rows[1]["error"], "conversation: doesn't end with a turn of")
    assert "is not JSON" in rows[3]["error"]
    assert err.count("error: line") == 2
    # the replies that are there stay, whatever made them
    rows[0]["content"] = [{"type": "text", "text": "kept"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert chat("--conversations", asked, "-o", "out", "--answer", "text") == 1
    assert json.loads(path.read_text().splitlines()[0])["content"][0]["text"] == "kept"
    # of another seed they are others
    assert chat("--conversations", asked, "-o", "out", "--answer", "text", "--seed", 1) == 1
    assert json.loads(path.read_text().splitlines()[0])["content"][0]["text"] != "kept"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[]", "has no list 'messages'"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "has the role 'tool'"),
        ('{"messages": [{"role": "user"}]}', "has no content"),
        ('{"messages": [{"role": "user", "content": [3]}]}', "has a part that is neither"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image", "file": "a.png", '
            '"codes": {"grid": [2, 2], "codes": [1]}}]}]}',
            "has invalid picture codes",
        ),
    ],
)
def test_a_file_that_is_no_conversation(chat: Chat, capsys: Any, text: str, cause: str) -> None:
    Path("talk.json").write_text(text)
    assert chat("--load", "talk.json", "--message", "a") == 2
    assert cause in capsys.readouterr().err


def test_options_that_do_not_go_together(chat: Chat, capsys: Any) -> None:
    assert chat("--json") == 2
    assert tells(capsys.readouterr().err, "error: cm3 chat --json: needs --message ... --message")
    assert chat("--conversations", "a.jsonl", "--message", "a") == 2
    assert "cm3 chat --message: is for one conversation" in capsys.readouterr().err


def test_a_model_that_was_not_tuned_is_refused(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    model = "bundled:icons64"
    assert main(["chat", "--message", "hi", "--model", model, "-o", str(out)]) == 2
    assert tells(
        capsys.readouterr().err, f"error: cm3 chat: model '{model}' was ... docs/tuning.md"
    )
    assert not out.exists()


@pytest.mark.slow
def test_a_model_that_was_not_tuned_is_forced(tmp_path: Path, capsys: Any) -> None:
    """It draws what is said, and then talks about it."""
    out = tmp_path / "out"
    words = (
        "--message",
        "red apple, noto",
        "--force",
        "-o",
        str(out),
        "--max-tokens",
        "3",
        "--model",
        "bundled:emoji64",
    )
    assert main(["chat", *words, "--save", str(tmp_path / "talk.json")]) == 0
    assert (out / "chat-000.png").is_file()
    saved = ("--load", str(tmp_path / "talk.json"), "--message", "what?", "--json")
    capsys.readouterr()
    assert main(["chat", *saved, "--force", "--max-tokens", "3", "-o", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["type"] for one in told["content"]] == ["text"]
    assert told["turns_read"] in (0, 1)
