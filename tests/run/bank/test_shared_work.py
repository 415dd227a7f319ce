"""Banks built by several processes, and in parts that are merged: the shards of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank_parts import source, tools
from built_banks import built, contents, files
from cm3apps.cli.main import main
from cm3core.errors import DataError, FileError
from cm3run.bank import MemoryBank, Shards, build_bank, help_build, merge_banks
from cm3run.bank.manifest import MANIFEST, WORK
from cm3run.bank.writing import ShardWork
from messages import tells

HELP = """
import sys
from bank_parts import source, tools
from cm3run.bank import Shards, help_build
help_build(source(10), sys.argv[1], tools(), (int(sys.argv[2]), int(sys.argv[3])), Shards(size=2))
"""


def started(*command, stdout: int = subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@given(st.integers(1, 200), st.integers(1, 17), st.data())
def test_parts_are_whole_shards_that_make_the_whole(number, shard_size, data):
    num_shards = -(-number // shard_size)
    parts = data.draw(st.integers(1, num_shards))
    pieces = [
        list(Shards(size=shard_size, part=(part, parts)).wanted(range(number)))
        for part in range(1, parts + 1)
    ]
    assert [index for piece in pieces for index in piece] == list(range(number))
    assert all(piece and piece[0] % shard_size == 0 for piece in pieces)
    sizes = [-(-len(piece) // shard_size) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_merged_parts_are_the_bank_of_the_whole(tmp_path, parts):
    whole = built(tmp_path / "whole", 10, shard_size=2)
    folders = [tmp_path / f"part-{part}" for part in range(1, parts + 1)]
    for part, folder in enumerate(folders, 1):
        build_bank(source(10), folder, tools(), Shards(size=2, part=(part, parts)), progress=False)
    merged = merge_banks(folders, tmp_path / "merged", progress=False)
    assert merged.fingerprint == whole.fingerprint
    assert contents(merged) == contents(whole)
    ours, theirs = files(whole.folder), files(merged.folder)
    ours.pop(".lock", None)
    assert {name for name in ours if ours[name] != theirs.get(name)} == {MANIFEST}
    values = [json.loads(one[MANIFEST]) for one in (ours, theirs)]
    assert values[0] | {"built_from": ""} == values[1]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            (2, 6),
            "part 2/6: the data set's 10 ... are 5 ... of 2 ... use 5",
        ),
        ((0, 2), "part: is 0 of 2\n  next: use 1/2 to 2/2"),
    ],
)
def test_parts_that_are_none(tmp_path, part, message):
    with pytest.raises(DataError) as error:
        build_bank(
            source(10), tmp_path / "bank", tools(), Shards(size=2, part=part), progress=False
        )
    assert tells(error.value, message)


@pytest.mark.slow
def test_helpers_make_the_same_bank(tmp_path, capsys):
    """One helper works, one is gone at once: what it leaves is made by the first process."""
    whole = built(tmp_path / "whole", 10, shard_size=2)
    script = tmp_path / "help.py"
    script.write_text(HELP)
    dead = tmp_path / "dead.py"
    dead.write_text("import os; os.kill(os.getpid(), 9)")
    build_bank(
        source(10),
        tmp_path / "shared",
        tools(),
        Shards(size=2),
        helpers=[lambda: started(script, tmp_path / "shared", 1, 3), lambda: started(dead)],
        progress=False,
    )
    assert files(tmp_path / "shared") == files(whole.folder)
    assert tells(capsys.readouterr().err, "note: 1 of 2 ... code -9")


def test_a_helper_alone_is_refused(tmp_path):
    built(tmp_path / "bank", 4)
    with pytest.raises(DataError) as error:
        help_build(source(4), tmp_path / "bank", tools(), (1, 2))
    assert tells(error.value, f"{tmp_path / 'bank'}: is not being built from this")
    assert not (tmp_path / "bank" / WORK).exists()


def write_texts(path: Path, number: int) -> None:
    lines = [
        json.dumps({"id": f"t{i}", "segments": [{"text": f"thing number {i}"}]})
        for i in range(number)
    ]
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.slow
def test_the_command_with_processes_and_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    write_texts(tmp_path / "texts.jsonl", 40)
    common = ["--model", "bundled:emoji64", "--shard-size", "8", "--quiet", "train.num_threads=1"]
    build = ["memory", "build", "texts.jsonl", *common, "-o"]
    assert main([*build, "one"]) == 0
    (tmp_path / "grp.py").write_text(
        "raise SystemExit('a helper runs what lies beside the data')\n"
    )
    assert main([*build, "three", "--processes", "3"]) == 0
    assert "ended early" not in capsys.readouterr().err
    assert files(tmp_path / "one") == files(tmp_path / "three")
    for part in ("1/2", "2/2"):
        assert main([*build, f"part-{part[0]}", "--part", part]) == 0
    assert "part 2 of 2; merge all in order: cm3 memory merge" in capsys.readouterr().out
    assert main(["memory", "merge", "part-1", "part-2", "-o", "merged", "--quiet"]) == 0
    assert MemoryBank.open("merged").fingerprint == MemoryBank.open("one").fingerprint


def test_a_helper_ends_with_the_process_that_started_it(tmp_path):
    """Its work would take minutes; its input ends, as when the other process is killed."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    helper = started("-m", "cm3apps.cli._memory_build")
    values = {"out": "bank", "plugin": [str(tmp_path / "slow.py")], "share": 1, "processes": 2}
    helper.stdin.write(json.dumps(values).encode() + b"\n")
    helper.stdin.close()
    assert helper.wait(120) == 1
    helper.stderr.close()


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_wrong_parts(text, capsys):
    assert main(["memory", "build", "x", "-o", "y", "--part", text]) == 2
    assert tells(
        capsys.readouterr().err,
        f"... cm3 memory build: argument --part: is {text!r} ... I/N ... from 1",
    )


TOLD = "print('x: is full\\n  next: make room', end=''); raise SystemExit(2)"


def failing(folder: Path, error: str | None, capsys) -> str:
    """What a build says whose only helper tells `TOLD`, and which fails itself with `error`, if that is given."""
    script = folder / "told.py"
    script.write_text(TOLD)

    def helper():
        return subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def build():
        build_bank(
            source(10), folder / "bank", tools(), Shards(size=2), helpers=[helper], progress=False
        )

    if error is None:
        build()
        return capsys.readouterr().err
    whole, made = ShardWork._make, []

    def make(self, start, bar):
        """Fails at the first shard that the helper left, after its own three."""
        made.append(start)
        if len(made) > 3:
            raise FileError("x", error, "make room")
        return whole(self, start, bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWork, "_make", make)
        with pytest.raises(FileError):
            build()
    assert made == [0, 4, 8, 2]
    return capsys.readouterr().err


def test_why_a_helper_failed_is_said_unless_it_is_why_the_build_does(tmp_path, capsys):
    note = (
        "note: 1 of 1 other processes ended early (x: is full); this process finishes their work\n"
    )
    for name, error, said in (("a", "is full", ""), ("b", "is on fire", note), ("c", None, note)):
        (tmp_path / name).mkdir()
        assert failing(tmp_path / name, error, capsys) == said
    whole = built(tmp_path / "whole", 10, shard_size=2)
    assert files(tmp_path / "c" / "bank") == files(whole.folder)


@pytest.mark.slow
def test_a_helper_tells_its_error_alone(tmp_path):
    """On its output, without what a plugin prints, and not beside the command's own errors."""
    (tmp_path / "noisy.py").write_text("import os\nprint('noise')\nos.system('echo more')\n")
    helper = started("-m", "cm3apps.cli._memory_build", stdout=subprocess.PIPE)
    values = {"out": "bank", "plugin": [str(tmp_path / "noisy.py")], "share": 1, "processes": 2}
    helper.stdin.write(json.dumps(values).encode() + b"\n")
    helper.stdin.flush()
    assert helper.wait(120) == 2
    assert sorted(helper.stderr.read().split()) == [b"more", b"noise"]
    assert tells(
        helper.stdout.read().decode(),
        f"plugin 'noisy' ({tmp_path / 'noisy.py'}): does not state CM3_API ... `CM3_API = 1`",
    )
    for stream in (helper.stdin, helper.stdout, helper.stderr):
        stream.close()
