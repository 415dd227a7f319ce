"""`cm3 serve`: what is refused before anything is served, and a model served by the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import httpx
import pytest

from cm3apps.cli.main import main
from cm3core.errors import CM3Error, PluginError
from cm3serve import command, load
from cm3serve.command import openers_of, token_of
from messages import tells
from toy_server import served


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    return capsys.readouterr().err


def test_other_addresses_need_a_token(capsys, monkeypatch):
    monkeypatch.delenv("CM3_SERVE_TOKEN", raising=False)
    assert tells(
        refused(capsys, "--host", "0.0.0.0"),
        "error: cm3 serve --host 0.0.0.0: other machines can reach this address, but",
    )


@pytest.mark.parametrize("token", ["", "short", "with a\ttab in it, long", "ä" * 20])
def test_tokens_that_can_be_guessed_or_not_sent(monkeypatch, tmp_path: Path, token):
    (tmp_path / "token").write_text(token, encoding="utf-8")
    message = "holds no token of at least 16 printable ASCII characters"
    with pytest.raises(CM3Error, match=message):
        token_of(tmp_path / "token")
    monkeypatch.setenv("CM3_SERVE_TOKEN", token)
    with pytest.raises(CM3Error, match=f"CM3_SERVE_TOKEN: {message}"):
        token_of(None)


def test_a_token_of_a_file_or_the_environment(monkeypatch, tmp_path: Path):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert token_of(tmp_path / "token") == "0123456789abcdef"
    monkeypatch.setenv("CM3_SERVE_TOKEN", "fedcba9876543210")
    assert token_of(None) == "fedcba9876543210"
    with pytest.raises(CM3Error, match="can't be read"):
        token_of(tmp_path / "none")


def test_models_that_are_not_there_or_named_twice(capsys):
    assert "error: runs/none: does not exist\n" in refused(capsys, "--model", "runs/none")
    text = refused(capsys, "--model", "a=bundled:emoji64", "--model", "a=bundled:emoji64")
    assert tells(text, "error: cm3 serve --model a=bundled:emoji64: 'a' is already served")
    assert "has no name" in refused(capsys, "--model", "=bundled:emoji64")


def limits_of(*options: str):
    parser = ArgumentParser()
    command.configure(parser)
    return command.limits_of(parser.parse_args(options))


def test_all_requests_may_have_no_less_than_one():
    assert limits_of().all_body_bytes == 128 << 20
    assert limits_of("--max-body", "200").all_body_bytes == 200 << 20
    assert limits_of("--all-pixels", "16").all_pixels == 16_000_000
    for options, message in (
        (
            ("--all-bodies", "31"),
            "cm3 serve --all-bodies 31: is less than ... --max-body 32",
        ),
        (
            ("--all-pixels", "15"),
            "cm3 serve --all-pixels 15: is less than ... --max-pixels 16",
        ),
    ):
        with pytest.raises(CM3Error) as caught:
            limits_of(*options)
        assert tells(caught.value, message)


def test_options_of_time_and_memory():
    options = ("--unsent", "1", "--spool", "2", "--connections", "3", "--header-timeout", "4")
    more = ("--body-timeout", "5", "--idle-timeout", "6", "--send-timeout", "7", "--timeout", "8")
    limits = limits_of(*options, *more)
    assert (limits.unsent_bytes, limits.spooled_bytes, limits.connections) == (1 << 20, 2 << 20, 3)
    times = limits.header_seconds, limits.body_seconds, limits.idle_seconds, limits.send_seconds
    assert (*times, limits.seconds) == (4, 5, 6, 7, 8)


def test_banks_that_are_not_there_or_of_no_model(capsys, tmp_path: Path):
    (tmp_path / "bank").mkdir()
    assert tells(
        refused(capsys, "--bank", str(tmp_path / "bank")),
        f"error: cm3 serve --bank {tmp_path}/bank: is not a memory bank",
    )
    (tmp_path / "bank" / "manifest.json").write_text("{}")
    bank, model = f"{tmp_path}/bank", ["--model", "emoji=bundled:emoji64"]
    assert tells(
        refused(capsys, *model, "--bank", f"emojis={bank}"),
        f"error: cm3 serve --bank emojis={bank}: no model is ... 'emojis'",
    )
    assert tells(
        refused(capsys, *model, "--bank", bank, "--bank", f"emoji={bank}"),
        f"error: cm3 serve --bank emoji={bank}: 'emoji' already has",
    )


def test_each_model_is_opened_with_its_bank(monkeypatch, tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    opened = []
    monkeypatch.setattr(
        "cm3run.model.model.load",
        lambda model, bank, retriever, **_: opened.append((model, bank, retriever)),
    )
    args = Namespace(
        model=["x=bundled:emoji64", "bundled:icons64"],
        bank=[str(tmp_path)],
        retriever=["bundled:icons64=bm25", "none"],
        plugin=[],
        device=None,
        threads=None,
        parallel=None,
        precision="auto",
        trust_plugins=[],
        trust_endpoints=[],
        at_once=8,
    )
    for opener in openers_of(args).values():
        opener()
    assert opened == [
        ("bundled:emoji64", str(tmp_path), "none"),
        ("bundled:icons64", None, "bm25"),
    ]
    args.retriever = ["bm52"]
    with pytest.raises(PluginError) as error:
        openers_of(args)
    assert tells(error.value, "cm3 serve --retriever bm52: ... 'bm52' ... 'bm25'")


def test_models_are_named():
    args = Namespace(
        model=["x=bundled:emoji64", "bundled:emoji64"],
        bank=[],
        retriever=[],
        plugin=[],
        threads=None,
        parallel=None,
        precision="auto",
        trust_plugins=[],
        at_once=8,
    )
    assert list(openers_of(args)) == ["x", "bundled:emoji64"]


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = refused(capsys, "--port", port)
    assert tells(text, f"error: 127.0.0.1:{port}: can't be used to listen on (Address already")


@pytest.mark.parametrize("host", ["127.0.0.1.", "127." + "x" * 300, "127.0.0.999"])
def test_hosts_that_are_none(capsys, host):
    assert "can't be used to listen on (" in refused(capsys, "--host", host)


def test_a_token_file_that_never_ends(capsys, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(capsys, "--token-file", str(tmp_path / "pipe"))


@pytest.mark.slow
def test_the_command_serves_the_default_model():
    with subprocess.Popen(
        [sys.executable, "-m", "cm3apps.cli.main", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("cm3 serve: ").strip()
        facts = httpx.get(url + "studio/facts", timeout=60).json()
        assert facts["model"] == httpx.get(url + "v1/models").json()["data"][0]["id"]
        assert facts["rows"] * facts["columns"] > 0
        assert len(facts["examples"]) == len(set(facts["examples"])) > 3
        assert "<title>cm3 Studio</title>" in httpx.get(url).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_load_measures_throughput_and_latency(capsys):
    import doctest

    assert doctest.testmod(load).failed == 0
    with served() as server:
        assert (
            load.main([server.url, "--clients", "1", "3", "--requests", "6", "--prompt", "red"])
            == 0
        )
        table = capsys.readouterr().out.splitlines()
        assert [row.split(" | ")[0] for row in table[2:]] == ["| 1", "| 3"]
        refused = ["--prompt", "a prompt that is too long"]
        assert load.main([server.url, *refused]) == 2
        assert "answered 400" in capsys.readouterr().err
    assert load.main([server.url]) == 2
    assert "did not answer" in capsys.readouterr().err
    assert load.main(["x"]) == 2
