"""Atomic files: the old or the new one, whatever happens, and errors that name the file."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3core.errors import CM3Error, DataError, FileError
from cm3core.files import (
    atomic_path,
    check_links,
    check_not_input,
    check_writable,
    held_folder,
    locked,
    read_text,
    sha256_file,
    write_bytes,
    write_text,
)
from messages import tells


def test_a_file_takes_its_place_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "één")
    write_text(path, "deux")
    assert path.read_text(encoding="utf-8") == "deux"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), ValueError("wrong"), OSError(errno.ENOENT, "another file is missing")],
)
def test_the_old_file_stays_when_writing_stops(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(path) as temporary:  # noqa: PT012  # must rise inside atomic_path
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the write fails in the middle either way."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(FileError) as caught:
            write_bytes(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tells(caught.value, f"{path}: can't be written (File too large)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = "name a place where you may write"
    with pytest.raises(FileError) as caught:
        write_text(tmp_path / "file" / "inside", "x")
    assert (
        str(caught.value) == f"{tmp_path / 'file'}: can't be written (File exists)\n  next: {place}"
    )
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError) as caught:
        write_text(tmp_path / "folder", "x")
    assert (
        str(caught.value)
        == f"{tmp_path / 'folder'}: can't be written (Is a directory)\n  next: {place}"
    )
    far = tmp_path / "folder" / "far"
    (far / "folder").mkdir(parents=True)
    (tmp_path / "folder" / "link").symlink_to(far / "folder")
    os.utime(far, ns=(0, 0))
    with pytest.raises(FileError, match="Is a directory"):
        write_text(tmp_path / "folder" / "link", "x")
    assert far.stat().st_mtime_ns == 0, "nothing is made beside the folder, not even for a while"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_asking_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder", folder=True)
    check_writable(tmp_path, folder=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    place = "name a place where you may write"
    wrong = {
        (tmp_path / "file", True): "is a file\n  next: name a folder",
        (tmp_path, False): "is a folder\n  next: name a file's path",
        (
            tmp_path / "file" / "a" / "b",
            True,
        ): f"can't be written ({tmp_path / 'file'} is a file)\n  next: {place}",
        # a folder "s3:" would be made here
        (
            Path("s3://bucket/folder"),
            True,
        ): "is an address, but only local disks can be written\n"
        "  next: write to a folder here, then copy it to the store",
    }
    for (path, folder), message in wrong.items():
        with pytest.raises(FileError) as caught:
            check_writable(path, folder=folder)
        assert str(caught.value) == f"{path}: {message}"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(FileError) as caught:
        check_writable(tmp_path / "new.txt")
    assert (
        str(caught.value)
        == f"{tmp_path / 'new.txt'}: can't be written (no permission in {tmp_path})\n  next: {place}"
    )


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "folder" / "not-yet")
    write_text(dangling, "first")
    assert dangling.is_symlink()
    assert (tmp_path / "folder" / "not-yet").read_text() == "first"


@pytest.mark.parametrize("write", [write_text, lambda path, _: check_writable(path)])
def test_devices_and_pipes_are_never_replaced(tmp_path: Path, write: Callable[..., None]) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null")):
        with pytest.raises(FileError) as caught:
            write(path, "x")
        assert tells(caught.value, f"{path}: is a device, a pipe or")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    picture, other = tmp_path / "picture.png", tmp_path / "other.png"
    picture.write_text("x")
    (tmp_path / "link.png").symlink_to(picture)
    check_not_input(other, picture)
    for out in (picture, tmp_path / "link.png", tmp_path / ".." / tmp_path.name / "picture.png"):
        with pytest.raises(FileError) as caught:
            check_not_input(out, other, picture)
        assert tells(caught.value, f"{out}: is the input file")


BUSY = CM3Error("here", "another process is at it", "wait")


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    for _ in range(2):
        with locked(lock, BUSY):
            with pytest.raises(CM3Error) as caught, locked(lock, BUSY):
                pass
            assert caught.value is BUSY
    with pytest.raises(KeyError), locked(lock, BUSY):
        raise KeyError
    with locked(lock), pytest.raises(CM3Error), locked(lock, BUSY):
        pass


def test_a_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom cm3core.files import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    lock = tmp_path / ".lock"
    command = [sys.executable, "-c", script, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CM3Error), locked(lock, BUSY):
            pass
        other.kill()
        other.wait()
    with locked(lock, BUSY):
        pass


def test_a_lock_whose_file_its_last_holder_deleted_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, flock, deleted = tmp_path / ".lock", fcntl.flock, []

    def after_deletion(handle: int, operation: int) -> None:
        if not deleted:
            lock.unlink()
            deleted.append(lock)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_deletion)
    with locked(lock, BUSY):
        assert lock.exists()
        with pytest.raises(CM3Error), locked(lock, BUSY):
            pass


def test_what_a_lock_s_file_holds_stays(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("words")
    with locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text() == "words"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe"])
def test_a_lock_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    lock, target = tmp_path / ".lock", tmp_path / "precious"
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(target)
        if kind == "link":
            target.write_text("kept")
    with pytest.raises(FileError) as caught, locked(lock):
        pass
    assert tells(caught.value, f"{lock}: is a link, a folder or")
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "kept"


def test_a_lock_that_can_t_be_made_or_held_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileError, match="can't be written"), locked(tmp_path / "none" / ".lock"):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(FileError) as caught, locked(tmp_path / ".lock", BUSY):
        pass
    assert tells(caught.value, f"{tmp_path}/.lock: can't be locked (No locks available)")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A device never ends, and a pipe without a writer blocks, also through a link."""
    (tmp_path / "text").write_bytes("grün\r\n".encode())
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "text") == read_text(tmp_path / "link") == "grün\n"
    for name in ("zero", "pipe"):
        for read in (read_text, sha256_file):
            with pytest.raises(OSError, match="Is not a regular file"):
                read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing")


def test_a_link_out_of_a_folder_is_not_written_through(tmp_path: Path) -> None:
    """Others may have made the folder; links within it, and to folders, are their owner's business."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "large").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "file").write_text("x")
    (run / "inside").symlink_to("file")
    (run / "checkpoints").symlink_to(tmp_path / "large")
    check_links(run)
    check_links(tmp_path / "nothing")
    for name, target in (("log", tmp_path / "precious"), ("new", "../not-there-yet")):
        (run / name).symlink_to(target)
        for names in ((), (name,)):
            with pytest.raises(FileError) as caught:
                check_links(run, *names)
            assert tells(caught.value, f"{run / name}: is a link to a file")
        (run / name).unlink()


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    """The folder itself is the lock: made, left empty, and removed if nothing comes of it."""
    folder = tmp_path / "out" / "deep"
    with held_folder(folder, BUSY):
        assert list(folder.iterdir()) == []
        with pytest.raises(CM3Error) as caught, held_folder(folder, BUSY):
            pass
        assert caught.value is BUSY
        assert folder.is_dir()
    with held_folder(folder, BUSY):
        (folder / "1.png").write_text("")
    with pytest.raises(KeyError), held_folder(folder, BUSY):
        raise KeyError
    assert (folder / "1.png").is_file()
    with pytest.raises(BlockingIOError), held_folder(tmp_path / "new", BUSY):
        raise BlockingIOError
    assert not (tmp_path / "new").exists()


def test_a_disk_that_refuses_the_bytes(tmp_path: Path) -> None:
    """As a share whose rights changed while it was written; what is read meanwhile has its own error."""
    refused = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(FileError) as caught, atomic_path(tmp_path / "new"):
        raise refused
    assert tells(caught.value, f"{tmp_path / 'new'}: can't be written (Permission denied)")
    other = OSError(errno.EACCES, "Permission denied", str(tmp_path / "read" / "me"))
    with pytest.raises(OSError, match="read/me"), atomic_path(tmp_path / "new"):
        raise other


def test_a_lock_whose_close_fails_is_left_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def failing(handle: int) -> None:
        close(handle)
        raise OSError(errno.EIO, "Input/output error")

    busy = DataError("here", "is busy", "wait")
    with monkeypatch.context() as patched:
        with locked(tmp_path / "lock"):
            patched.setattr(os, "close", failing)
        with held_folder(tmp_path, busy):
            pass
    with locked(tmp_path / "lock", busy):
        pass  # it was free


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        write_text(tmp_path / "a", "x\ud800")
    assert tells(caught.value, f"{tmp_path / 'a'}: can't be written ... '\\ud800'")
