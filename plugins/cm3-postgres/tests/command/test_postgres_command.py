"""`cm3 postgres` through `main`, and a model that draws from the database."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image as Pictures

import cm3core
from bank_parts import source, tools
from built_banks import built, contents
from cm3apps.cli.main import main
from cm3core.document import Text
from cm3run.bank import MemoryBank, build_bank
from small_disk import leave_room, small_disk

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

from messages import tells
from shared_memories import new_config


@pytest.fixture
def place(postgres, tmp_path, monkeypatch):
    """A working folder, and the arguments of a connection to a schema that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    config = new_config(postgres)
    monkeypatch.setenv("PGHOST", str(postgres.folder))
    monkeypatch.setenv("PGUSER", "owner")
    return ["--database", "cm3", "--schema", config.schema]


def test_a_bank_goes_there_and_comes_back(place, postgres, tmp_path, capsys):
    """The bank that is pulled is the bank that was pushed, byte by byte, and pushes its metadata."""
    bank = built(tmp_path / "bank", 10)
    shutil.copytree(bank.folder, tmp_path / "copy")
    (tmp_path / "copy" / "metadata.jsonl").write_text(
        '{"id": "d3", "licence": "MIT", "source": "a shop", "attribution": "Ann", "style": "ink"}\n'
    )
    where = f"PostgreSQL schema {place[3]} (database cm3)"
    assert main(["postgres", "init", "bank", *place]) == 0
    assert main(["postgres", "push", "copy", "--licence", "CC0-1.0", "--quiet", *place]) == 0
    assert main(["postgres", "push", "copy", "--licence", "CC0-1.0", "--quiet", *place]) == 0
    assert capsys.readouterr().out == (
        f"{where}: created, for vectors of 8 numbers\n"
        f"{where}: 10 added; 10 documents\n"
        f"{where}: 0 added; already present: 10; 10 documents\n"
    )
    counted = postgres.sql("SELECT count(*) FROM pg_stats WHERE schemaname = %s", [place[3]])
    assert counted != [(0,)], "the server knows how many documents pass a filter"
    assert main(["postgres", "pull", "-o", "out", "--shard-size", "4", "--quiet", *place]) == 0
    again = MemoryBank.open("out")
    assert contents(again) == contents(bank)
    assert again.fingerprint == bank.fingerprint
    assert (tmp_path / "out/image_tokenizer/levels.txt").read_bytes() == b"16\n"
    lines = [
        json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    ]
    assert lines[3] == {
        "id": "d3",
        "licence": "MIT",
        "source": "a shop",
        "attribution": "Ann",
        "style": "ink",
    }
    assert lines[4]["licence"] == "CC0-1.0"
    assert main(["postgres", "push", "out", "--quiet", *place]) == 0
    assert "0 added; already present: 10" in capsys.readouterr().out
    assert main(["postgres", "pull", "-o", "mit", "--licence", "MIT", "--quiet", *place]) == 0
    assert [MemoryBank.open("mit").id(0), len(MemoryBank.open("mit"))] == ["d3", 1]


def test_a_pull_on_a_full_disk(place, tmp_path, capsys):
    built(tmp_path / "bank", 40)
    assert main(["postgres", "init", "bank", *place]) == 0
    assert main(["postgres", "push", "bank", "--quiet", *place]) == 0
    with small_disk(tmp_path / "disk", 1024) as disk:
        filler = leave_room(disk, 24)
        capsys.readouterr()
        pull = ["postgres", "pull", "-o", "disk/out", "--shard-size", "4", "--quiet", *place]
        assert main(pull) == 2
        assert tells(capsys.readouterr().err, "error: disk/out: can't be written (No space left")
        assert [path.name for path in disk.iterdir()] == ["filler"]
        filler.unlink()
        assert main(pull) == 0
        assert MemoryBank.open("disk/out").fingerprint == MemoryBank.open("bank").fingerprint


def test_stat_and_remove(place, tmp_path, capsys):
    built(tmp_path / "bank", 10)
    assert main(["postgres", "init", "bank", "--no-index", *place]) == 0
    assert main(["postgres", "push", "bank", "--style", "ink", "--quiet", *place]) == 0
    capsys.readouterr()
    assert main(["postgres", "stat", *place]) == 0
    out = capsys.readouterr().out
    assert "documents        10, 5 with text and picture; " in out
    assert "index            none; every search is exact: cm3 postgres index\n" in out
    assert "licences         unknown (10)\n" in out
    assert "styles           ink (10)\n" in out
    assert main(["postgres", "index", *place]) == 0
    assert main(["postgres", "stat", *place]) == 0
    assert "index            HNSW, " in capsys.readouterr().out
    assert main(["postgres", "remove", "d1", "nobody", "d1", *place]) == 0
    assert capsys.readouterr().out == (
        "not found: 'nobody'\n"
        f"PostgreSQL schema {place[3]} (database cm3): 1 removed; 9 documents\n"
    )
    assert main(["postgres", "remove", "--style", "ink", *place]) == 0
    assert main(["postgres", "pull", "-o", "out", "--quiet", *place]) == 2
    said = capsys.readouterr()
    assert "9 removed; 0 documents" in said.out
    assert "has no matching document\n  next: push a bank first" in said.err
    assert not (tmp_path / "out").exists()


def test_half_a_character_in_a_shared_memory(place, postgres, tmp_path, capsys):
    """One caption that anybody pushed may not end the pull of everybody in a traceback."""
    built(tmp_path / "bank", 10)
    assert main(["postgres", "init", "bank", "--no-index", *place]) == 0
    assert main(["postgres", "push", "bank", "--quiet", *place]) == 0
    table, half = f"{place[3]}.documents", b'["\\ud800"]'
    postgres.sql(f"UPDATE {table} SET segments = %s WHERE id = 'd3'", [half])
    capsys.readouterr()
    assert main(["postgres", "pull", "-o", "out", "--quiet", *place]) == 2
    said = capsys.readouterr().err
    assert "document 'd3': is damaged (segments holds half a character ('\\ud800'" in said
    assert "\n  next: remove it (cm3 postgres remove) and push it again" in said
    assert not (tmp_path / "out").exists()
    assert main(["postgres", "remove", "d3", *place]) == 0
    assert main(["postgres", "pull", "-o", "out", "--quiet", *place]) == 0


def test_what_others_wrote_is_shown_on_one_line(place, postgres, tmp_path, capsys):
    built(tmp_path / "bank", 4)
    assert main(["postgres", "init", "bank", "--no-index", *place]) == 0
    assert main(["postgres", "push", "bank", "--quiet", *place]) == 0
    for column in ("style", "licence", "source"):
        value = "ink\nindex            HNSW\x1b[2J\u202e"
        postgres.sql(f"UPDATE {place[3]}.documents SET {column} = %s", [value])
    capsys.readouterr()
    assert main(["postgres", "stat", *place]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("index")] == [
        "index            none; every search is exact: cm3 postgres index"
    ]
    assert "styles           ink index            HNSW\\u001b[2J\\u202e (4)" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove"], "cm3 postgres remove: got neither ids nor a filter\n"),
        (["remove", "a", "--style", "x"], "cm3 postgres remove: got both ids and a filter\n"),
        (["stat", "--port", "0"], "cm3 postgres stat: argument --port: is '0', must be"),
        (["stat", "--schema", "A b"], "--schema: is 'A b', which is not a valid schema name\n"),
        (
            ["init", "bank", "--construction", "20"],
            "--construction: is 20, less ... the 16 ... use 32",
        ),
        (["init", "nowhere"], "nowhere: does not exist"),
        (["pull", "-o", "bank"], "bank: already exists\n  next: choose a new folder"),
    ],
)
def test_wrong_arguments(place, tmp_path, capsys, arguments, message):
    built(tmp_path / "bank", 2)
    assert main(["postgres", *arguments]) == 2
    assert tells(capsys.readouterr().err, f"... {message}")


def test_another_banks_documents_and_changed_ones_are_refused(place, tmp_path, capsys):
    built(tmp_path / "bank", 4)
    build_bank(source(4), tmp_path / "other", tools(9), progress=False)
    assert main(["postgres", "init", "bank", *place]) == 0
    assert main(["postgres", "push", "other", "--quiet", *place]) == 2
    assert "was built with another embedder ('hash', fingerprint hash-9)" in capsys.readouterr().err
    assert main(["postgres", "push", "bank", "--quiet", *place]) == 0
    assert main(["postgres", "push", "bank", "--style", "oil", "--quiet", *place]) == 2
    error = capsys.readouterr().err
    assert tells(error, "... has documents with 4 ... 'd0' ... 'd1' ... 'd2'")
    assert main(["postgres", "push", "bank", "--style", "oil", "--replace", "--quiet", *place]) == 0
    assert "0 added, 4 replaced; 4 documents" in capsys.readouterr().out


def test_a_damaged_metadata_file(place, tmp_path, capsys):
    built(tmp_path / "bank", 2)
    assert main(["postgres", "init", "bank", "--no-index", *place]) == 0
    (tmp_path / "bank/metadata.jsonl").write_text('{"id": "d0"}\n')
    assert main(["postgres", "push", "bank", "--quiet", *place]) == 2
    assert "metadata.jsonl:1: is damaged (has no 'licence')" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_draws_from_it(place, postgres, tmp_path, capsys):
    """Licences are those of `--data`, and what is removed is not drawn from."""
    (tmp_path / "pictures").mkdir()
    for name, colour in {"red": (200, 30, 30), "green": (30, 160, 60)}.items():
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[16:48, 16:48] = colour
        Pictures.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
        (tmp_path / f"pictures/{name}.txt").write_text(f"{name} square")
    model = ["--model", "bundled:emoji64"]
    assert main(["memory", "build", "pictures", "-o", "bank", "--quiet", *model]) == 0
    assert main(["postgres", "init", "bank", *place]) == 0
    push = ["postgres", "push", "bank", "--data", "pictures", "--licence", "CC0-1.0", "--quiet"]
    assert main([*push, *place]) == 0
    keys = ["retriever.database=cm3", f"retriever.schema={place[3]}"]
    draw = [
        "generate",
        "red square",
        "--n",
        "1",
        "--num-retrieved",
        "1",
        "--retriever",
        "pgvector",
        "-o",
        "out",
        *model,
        *(word for key in keys for word in ("--set", key)),
    ]
    assert main(draw) == 0
    with Pictures.open(next((tmp_path / "out").glob("*.png"))) as picture:
        assert json.loads(picture.info["retrieved"]) == ["red.png"]

    settings = {"database": "cm3", "schema": place[3]}
    whole = cm3core.load("bundled:emoji64")

    def found(**chosen):
        other = whole.with_memory(retriever="pgvector", **settings, **chosen)
        results = other.components.retriever.retrieve([(Text("red square"),)], 1)[0]
        return [one.id for one in results]

    assert found(licences=["CC0-1.0"]) == ["red.png"]
    assert found(licences=["MIT"]) == []
    assert main(["postgres", "remove", "red.png", *place]) == 0
    assert found() == ["green.png"]


def test_training_refuses_it(tmp_path, monkeypatch, capsys):
    """Before a server is asked."""
    monkeypatch.chdir(tmp_path)
    settings = ["retriever=pgvector", "embedder=light_encoder", "decoder.context_length=1024"]
    assert main(["train", "tiny", *settings, "-o", "run", "--quiet"]) == 2
    assert tells(
        capsys.readouterr().err,
        "error: train: needs ... retriever 'pgvector' retrieves from documents that may change",
    )
