"""`cm3 data encode`: what is left out and counted, many processes, kills, and messages."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3core.files import read_text
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from cm3run.token_shards import Manifest, kept_documents
from cm3run.token_shards.manifest import MANIFEST
from messages import tells
from picture_files import picture, write
from squares import PARTS

PLUGIN = str(PARTS / "train_parts.py")
SQUARES = str(PARTS / "squares.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    return tmp_path


def encode(*arguments: str) -> int:
    return main(["--plugin", PLUGIN, "data", "encode", SQUARES, "--quiet", *arguments])


def command(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "cm3apps.cli.main",
        "--plugin",
        PLUGIN,
        "data",
        "encode",
        SQUARES,
        "--quiet",
        *arguments,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def manifest(folder: str) -> Manifest:
    return Manifest.parse((Path(folder) / MANIFEST).read_bytes(), MANIFEST)


def test_show_counts_pictures_that_are_codes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No blank sheet of texts in the width of a picture that is not there."""
    assert encode("-o", "shards") == 0
    capsys.readouterr()
    assert main(["data", "show", "dataset=tokens", "dataset.path=shards", "-o", "sheet.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "20 documents         20 pictures (17 different)" in lines[1]
    assert lines[-1] == "its pictures are stored as codes: no contact sheet"
    assert not (place / "sheet.png").exists()


def test_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert encode("-o", "out", "--shard-size", "8") == 0
    assert capsys.readouterr().out == (
        "out: split train: 20 documents, 0.1 MB in 3 shards\n"
        "out: split held: 5 documents, 0.0 MB in 1 shard\n"
        "train on them: cm3 train RECIPE dataset=tokens dataset.path=out\n"
    )
    assert sorted(files(Path("out"))) == [
        "held-000000.tar",
        "manifest.json",
        "skipped.jsonl",
        "text_tokenizer/characters.txt",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    with tarfile.open("out/train-000002.tar") as tar:
        names = [one.name for one in tar]
    assert names[:2] == ["000000000016.json", "000000000016.npy"]
    before = files(Path("out"))
    assert encode("-o", "out", "--shard-size", "8") == 0
    assert capsys.readouterr().out.startswith(
        "nothing to do: these are already the shards of this data\n"
    )
    assert files(Path("out")) == before


RECORDS = [
    {"id": "a", "text": "Red  apple", "image": "0.png", "licence": "MIT"},
    {"id": "b", "text": "red apple", "image": "0.png", "licence": "MIT"},
    {"id": "c", "text": "a fruit", "image": "0.png", "licence": "CC0-1.0"},
    {"id": "d", "text": "red apple", "image": "1.png"},
    {"id": "e", "segments": [{"text": "words alone"}]},
    {"id": "f", "segments": [{"text": "Words alone"}]},
    {"id": "g", "text": "gone", "image": "gone.png"},
]


def records(place: Path) -> str:
    write(place, {"0.png": picture(0), "1.png": picture(1)})
    write(place, {"all.jsonl": "\n".join(map(json.dumps, RECORDS))})
    return str(place / "all.jsonl")


@pytest.mark.parametrize(
    ("duplicates", "kept"),
    [("documents", "acde"), ("pictures", "ade"), ("keep", "abcdef")],
)
def test_duplicates_by_hand(place: Path, duplicates: str, kept: str) -> None:
    """Pictures are equal by their bytes, words without case and spacing."""
    source = JSONLSourceConfig(path=records(place), split="all").build()
    found = kept_documents(source, duplicates)
    assert "".join(source.id(index) for index in found.tolist()) == kept


def test_what_is_left_out_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "dataset=jsonl",
        f"dataset.path={records(place)}",
        "dataset.split=all",
        "text_tokenizer=byte",
        "--splits",
        "all",
    ]
    assert encode("-o", "the out", *given) == 0
    assert capsys.readouterr().out == (
        "the out: split all: 4 documents, 0.0 MB in 1 shard; left out: 2 duplicates, 1 unusable record\n"
        "why records are unusable: the out/skipped.jsonl\n"
        "train on them: cm3 train RECIPE dataset=tokens 'dataset.path=the out'\n"
    )
    split = manifest("the out").splits["all"]
    assert (split.num_documents, split.num_duplicates, split.num_skipped) == (4, 2, 1)
    assert [(one.licence, number) for one, number in split.provenance] == [
        ("unknown", 2),
        ("CC0-1.0", 1),
        ("MIT", 1),
    ]
    (skipped,) = [
        json.loads(line) for line in Path("the out/skipped.jsonl").read_text().splitlines()
    ]
    assert skipped["split"] == "all"
    assert skipped["cause"] == "there is no such file"


def test_pictures_that_do_not_decode_are_counted(place: Path) -> None:
    spoiled = bytearray(picture(2))
    at = spoiled.index(b"IDAT")
    spoiled[at + 8 : at + 40] = bytes(32)
    length = int.from_bytes(spoiled[at - 4 : at], "big")
    spoiled[at + 4 + length : at + 8 + length] = zlib.crc32(spoiled[at : at + 4 + length]).to_bytes(
        4, "big"
    )
    write(
        place / "p", {"0.png": picture(0), "0.txt": "good", "1.png": bytes(spoiled), "1.txt": "bad"}
    )
    given = ["dataset=folder", "dataset.path=p", "dataset.valid=0", "text_tokenizer=byte"]
    assert encode("-o", "out", *given) == 0
    split = manifest("out").splits["train"]
    assert (split.num_documents, split.num_skipped) == (1, 1)


def test_parts_write_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """Two machines that share a folder, and one alone."""
    assert encode("-o", "whole", "--shard-size", "3") == 0
    assert encode("-o", "out", "--shard-size", "3", "--part", "2/2") == 0
    assert capsys.readouterr().out.endswith(
        "part 2/2 of out is done; the manifest is written when all parts are\n"
    )
    assert not Path("out/manifest.json").exists()
    assert encode("-o", "out", "--shard-size", "3", "--part", "1/2") == 0
    assert files(Path("out")) == files(Path("whole"))


@pytest.mark.slow
def test_processes_that_are_killed(place: Path) -> None:
    """The command and its processes are killed at several moments; the command again writes the rest. A killed
    command's processes end as well."""
    assert encode("-o", "whole", "--shard-size", "2") == 0
    arguments = ("-o", "out", "--shard-size", "2", "--processes", "2")
    for moment in (0.5, 2.0, 3.0):
        running = subprocess.Popen(
            command(*arguments),
            env=environment(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moment)
        running.send_signal(signal.SIGKILL)
        running.wait()
        for _ in range(100):
            if not alive(running.pid):
                break
            time.sleep(0.1)
        assert not alive(running.pid)
    done = subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert files(Path("out")) == files(Path("whole"))


@pytest.mark.slow
def test_processes_run_nothing_that_lies_in_the_current_folder(place: Path) -> None:
    """It may be the data's, which anybody may have made: `tarfile` imports `grp`."""
    (place / "grp.py").write_text("open('was_run', 'w')\n")
    assert encode("-o", "out", "--shard-size", "3", "--processes", "2") == 0
    assert not (place / "was_run").exists()


def alive(session: int) -> bool:
    """Whether a process of the session is running."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == session and state != "Z":
            return True
    return False


def message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert encode(*arguments) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_messages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "mine", {"letter.txt": "dear"})
    assert tells(message(capsys, "-o", "mine"), "error: mine: contains 'letter.txt' and")
    assert encode("-o", "out") == 0
    for other in (["--texts", "3"], ["image_tokenizer.variant=b"], ["dataset.num_documents=7"]):
        assert tells(
            message(capsys, "-o", "out", *other),
            "error: out: contains token shards made from other data",
        )
    assert encode("-o", "half", "--part", "2/2") == 0
    assert tells(
        message(capsys, "-o", "half", "--part", "1/2", "dataset.num_documents=7"),
        "error: half: contains unfinished token shards made from other",
    )
    assert tells(message(capsys, "-o", "new", "--splits", ","), "error: --splits: names no split")
    assert "the squares have no split 'none'" in message(capsys, "-o", "new", "--splits", "none")
    assert main(["data", "encode", "mine", "-o", "new"]) == 2
    assert tells(
        capsys.readouterr().err, "error: text_tokenizer: is not given ... NAME dataset.path"
    )
    assert not Path("new").exists()


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/2/3", "a/b", "1/99999999"])
def test_wrong_parts(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tells(
        message(capsys, "-o", "out", "--part", part),
        f"error: cm3 data encode: argument --part: is '{part}' ... I/N",
    )


def test_a_shard_that_was_cut_off_meanwhile_is_written_again(place: Path) -> None:
    """Nobody knows who changed it: it is kept under another name."""
    assert encode("-o", "whole", "--shard-size", "8") == 0
    assert encode("-o", "out", "--shard-size", "8", "--part", "1/2") == 0
    path = place / "out" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert encode("-o", "out", "--shard-size", "8") == 0
    (place / "out" / "train-000000-1.tar").unlink()
    assert files(Path("out")) == files(Path("whole"))


def test_a_disk_that_does_not_give_out_what_is_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(path: Path) -> str:
        if path.suffix == ".json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_text(path)

    monkeypatch.setattr("cm3run.token_shards.writing.read_text", unreadable)
    assert encode("-o", "out", "--shard-size", "8") == 2
    note = Path("out") / ".encoding" / "train-000000.json"
    assert tells(capsys.readouterr().err, f"... error: {note}: can't be read ... Input/output")
    monkeypatch.undo()
    assert encode("-o", "out", "--shard-size", "8") == 0
    assert (Path("out") / MANIFEST).is_file()


def test_shards_are_validated_like_any_data_set(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They need not have the split `valid`."""
    assert encode("-o", "out", "--shard-size", "10", "--splits", "train") == 0
    capsys.readouterr()
    given = ["data", "validate", "--quiet", "dataset=tokens", "dataset.path=out"]
    assert main(given) == 0
    assert capsys.readouterr().out == "out (tokens): 20 good documents, 0 bad records\n"
    path = place / "out" / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(given) == 1
    assert "out/train-000001.tar: is truncated: " in capsys.readouterr().out
