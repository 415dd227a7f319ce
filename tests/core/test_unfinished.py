"""What a killed process left of its files is removed by the next one; what a living one writes never
is."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from cm3core.errors import CheckpointError
from cm3core.files import SUFFIX, atomic_path, remove_unfinished, temporary_folder, write_text
from cm3run.checkpoint.writing import new_folder, remove_leftovers

#: Exit code of a writer whose folder another one replaced.
REPLACED = 7


def write(folder: Path, turns: int) -> None:
    """Replace files and a folder again and again."""
    for turn in range(turns):
        with atomic_path(folder / f"file-{turn % 3}.txt") as path, path.open("w") as file:
            for _ in range(200):
                file.write(f"{turn}\n")
                file.flush()
        with new_folder(folder / "folder") as made:
            for name in "abc":
                (made / name).write_text(f"{turn}\n" * 50)


def start(folder: Path, turns: int) -> int:
    """A process that writes; returns its id."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(writer, b"ready")
            write(folder, turns)
            code = 0
        except CheckpointError:
            code = REPLACED
        finally:
            os._exit(code)
    os.close(writer)
    assert os.read(reader, 5) == b"ready"
    os.close(reader)
    return child


def ended(process: int) -> int:
    """Its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def hidden(folder: Path) -> list[str]:
    # unlike rglob, which fails on a folder that goes while it looks
    names = (name for _, *both in os.walk(folder) for own in both for name in own)
    return sorted(name for name in names if name.startswith("."))


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL


def test_what_killed_processes_left_goes_and_the_files_are_whole(tmp_path: Path) -> None:
    rng, seen = random.Random(0), 0
    for _ in range(4):
        process = start(tmp_path, 10**6)
        until = time.monotonic() + 10
        time.sleep(rng.random() / 20)
        while not hidden(tmp_path) and time.monotonic() < until:
            pass
        kill(process)
        seen += len(hidden(tmp_path))
    assert seen > 0, "no kill came while a file was being written"
    assert ended(start(tmp_path, 3)) == 0
    assert hidden(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"file-{number}.txt" for number in range(3)),
        "folder",
    ]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            lines = path.read_text().splitlines()
            assert len(lines) == (50 if path.parent.name == "folder" else 200)
            assert len(set(lines)) == 1


def test_living_processes_are_left_alone_while_others_die(tmp_path: Path) -> None:
    lasting = start(tmp_path, 60)
    for _ in range(3):
        kill(start(tmp_path, 10**6))
        remove_unfinished(tmp_path)
    # the folder that both replace is no file: whoever finds it changed by the other may say so
    assert ended(lasting) in (0, REPLACED)
    remove_unfinished(tmp_path)
    assert hidden(tmp_path) == []


def test_a_folder_in_use_stays_and_a_dead_one_goes(tmp_path: Path) -> None:
    dead = tmp_path / f".file.txt.0123abcd{SUFFIX}"
    dead.mkdir()
    (dead / "file.txt").write_text("half")
    with temporary_folder(tmp_path / "other") as living:
        assert not dead.exists()
        remove_unfinished(tmp_path)
        assert living.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_owner_was_forked_from_stays_while_the_child_lives(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "file") as folder:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
    (folder).mkdir()  # as if its owner had been killed: the child has no part in it
    remove_unfinished(tmp_path)
    assert not folder.exists()
    os.close(writer)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "name",
    [
        "notes",
        f"notes{SUFFIX}",
        f".notes{SUFFIX}",
        f".notes.0123abcg{SUFFIX}",
        ".notes.0123abcd.writing",
        f".notes.0123abcd{SUFFIX}.old",
    ],
)
def test_what_we_did_not_make_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    assert (tmp_path / name).is_dir()


def test_a_forked_process_looks_again(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "file"):
        pass
    (tmp_path / f".file.txt.0123abcd{SUFFIX}").mkdir()  # left since
    if (child := os.fork()) == 0:
        with temporary_folder(tmp_path / "file"):
            pass
        os._exit(0)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == []


def test_links_and_files_of_such_a_name_stay(tmp_path: Path) -> None:
    (kept := tmp_path / "kept").mkdir()
    (kept / "file").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".a.0123abcd{SUFFIX}").symlink_to(kept)
    (folder / f".b.0123abcd{SUFFIX}").write_text("mine")
    remove_unfinished(folder)
    assert len(list(folder.iterdir())) == 2
    assert (kept / "file").read_text() == "mine"


def test_a_place_that_can_t_be_read_is_no_error(tmp_path: Path) -> None:
    remove_unfinished(tmp_path / "missing")
    write_text(tmp_path / "file", "text")
    remove_unfinished(tmp_path / "file")


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_what_a_library_writes_beside_the_file_goes_too(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file") as path:
        path.write_text("text")
        (path.parent / "scratch").write_text("left by a library")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_checkpoints_go(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (left := checkpoints / f".step-1.0123abcd{SUFFIX}").mkdir(parents=True)
    (left / "weights").write_text("half")
    (checkpoints / ".step-1.deleting").mkdir()  # somebody else's
    with new_folder(checkpoints / "step-2") as folder:
        (folder / "weights").write_text("whole")
        remove_leftovers(tmp_path)
    assert sorted(path.name for path in checkpoints.iterdir()) == [".step-1.deleting", "step-2"]
