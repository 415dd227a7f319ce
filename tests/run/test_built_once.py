"""Several processes need what the cache lacks: one builds it, whatever is killed, and all have the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3core.errors import FileError
from cm3core.files import atomic_path
from cm3run import built_once as module
from cm3run.built_once import built_once, computed_once, holder_of, only_builder
from cm3run.progress import make_bar
from messages import tells
from own_temporary import no_private_folder as no_private_folder
from own_temporary import private_folder as private_folder
from small_disk import leave_room, small_disk

#: A command: builds ten steps in a folder, notes each of them in a file that all share, and prints the result.
COMMAND = """
import os, sys, time
from pathlib import Path
from cm3core.files import atomic_path
from cm3run.built_once import built_once
from cm3run.progress import make_bar

folder, pause, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
trace = os.open(folder.parent / "trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def build(path):
    os.write(trace, f"start {os.getpid()}\\n".encode())
    with atomic_path(path) as temporary, make_bar(total=steps, desc="drawing", unit="icon") as bar:
        for step in range(steps):
            time.sleep(pause)
            with temporary.open("a") as file:
                file.write(f"{step}\\n")
            bar.update(1)
    os.write(trace, f"end {os.getpid()}\\n".encode())

def read(path):
    return path.read_text() if path.exists() else None

print("ready", flush=True)
sys.stdin.readline()
try:
    print(repr(built_once(folder / "icons.txt", "drawing icons", read, build)), flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""
WHOLE = repr("".join(f"{step}\n" for step in range(10)))


class Processes:
    """Commands that start their work at the same moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace = folder / "cache", folder / "trace"
        self.all: list[subprocess.Popen[str]] = []

    def start(self, number: int, pause: float = 0.1) -> None:
        for _ in range(number):
            self.all.append(
                subprocess.Popen(
                    [sys.executable, "-c", COMMAND, str(self.folder), str(pause), "10"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for one in self.all[-number:]:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in self.all[-number:]:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()

    def events(self, kind: str) -> list[int]:
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(kind)]

    def builder(self, number: int = 1) -> subprocess.Popen[str]:
        """The process that starts to build as the `number`th."""
        wait_for(lambda: len(self.events("start")) >= number)
        return next(one for one in self.all if one.pid == self.events("start")[number - 1])

    def ended(self) -> dict[int, tuple[int, str, str]]:
        return {one.pid: (one.wait(60), *one.communicate(timeout=60)) for one in self.all}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def wait_for(ready: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


@pytest.mark.slow
def test_of_processes_that_start_together_one_builds(processes: Processes) -> None:
    processes.start(4, pause=0.3)
    [builder] = {processes.builder().pid}
    ended = processes.ended()
    assert {(code, out.strip()) for code, out, _ in ended.values()} == {(0, WHOLE)}
    assert processes.events("start") == processes.events("end") == [builder]
    assert processes.left() == ["icons.txt"]
    for pid, (_, _, err) in ended.items():
        notes = [line for line in err.splitlines() if line.startswith("note")]
        told = [f"note: waiting for process {builder}, which is drawing icons"]
        assert notes == ([] if pid == builder else told)
    processes.start(1)  # the finished cache
    assert processes.ended()[processes.all[-1].pid][1].strip() == WHOLE
    assert processes.events("start") == [builder]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_killed_builder_is_succeeded_at_once(processes: Processes, seed: int) -> None:
    """Killed once or twice at random moments, also just before or after its last step."""
    rng = random.Random(seed)
    processes.start(4, pause=0.05)
    kills = rng.randint(1, 2)
    for kill in range(kills):
        one = processes.builder(kill + 1)
        time.sleep(rng.uniform(0, 0.55))
        if processes.events("end"):
            break
        one.kill()
        killed_at = time.monotonic()
        wait_for(lambda wanted=kill + 2: len(processes.events("start")) >= wanted)
        assert time.monotonic() - killed_at < 3
    ended = processes.ended()
    done = {pid: (code, out.strip()) for pid, (code, out, _) in ended.items()}
    assert set(done.values()) <= {(0, WHOLE), (-signal.SIGKILL, "")}
    assert len(processes.events("end")) == 1
    assert list(done.values()).count((0, WHOLE)) >= 4 - kills
    assert processes.left() == ["icons.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["builder", "waiter"])
def test_ctrl_c(processes: Processes, who: str) -> None:
    processes.start(3, pause=0.15)
    builder = processes.builder()
    stopped = builder if who == "builder" else next(one for one in processes.all if one != builder)
    time.sleep(0.3)
    stopped.send_signal(signal.SIGINT)
    ended = processes.ended()
    assert ended[stopped.pid][:2] == (130, "")
    del ended[stopped.pid]
    assert {(code, out.strip()) for code, out, _ in ended.values()} == {(0, WHOLE)}
    assert len(processes.events("start")) == (2 if who == "builder" else 1)
    assert processes.left() == ["icons.txt"]


@pytest.mark.slow
def test_a_killed_waiter_changes_nothing(processes: Processes) -> None:
    processes.start(3, pause=0.15)
    builder = processes.builder()
    next(one for one in processes.all if one != builder).kill()
    results = [(code, out.strip()) for code, out, _ in processes.ended().values()]
    assert sorted(results) == [(-signal.SIGKILL, ""), (0, WHOLE), (0, WHOLE)]
    assert processes.events("start") == [builder.pid]


# ---- in one process


def text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


class Builder:
    """Builds slowly, and counts."""

    def __init__(self, steps: int = 3, pause: float = 0.05) -> None:
        self.steps, self.pause, self.places = steps, pause, list[Path]()

    def __call__(self, path: Path) -> None:
        self.places.append(path)
        with atomic_path(path) as temporary, make_bar(total=self.steps, desc="steps") as bar:
            for _ in range(self.steps):
                time.sleep(self.pause)
                bar.update(1)
            temporary.write_text("built")


def test_threads_of_one_process_build_once(tmp_path: Path) -> None:
    builder, results = Builder(), list[str]()

    def run() -> None:
        results.append(built_once(tmp_path / "a" / "one", "building", text, builder))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert results == ["built"] * 4
    assert builder.places == [tmp_path / "a" / "one"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["one"]


def test_what_is_built_may_need_another_and_itself(tmp_path: Path) -> None:
    inner = Builder(1, 0)

    def outer(path: Path) -> None:
        built_once(tmp_path / "inner", "building", text, inner)
        if not path.exists():  # again in the same place, by the same thread: nobody to wait for
            with only_builder(path, "building"), atomic_path(path) as temporary:
                temporary.write_text("outer")

    assert built_once(tmp_path / "outer", "building", text, outer) == "outer"
    assert inner.places == [tmp_path / "inner"]


def test_a_forked_process_neither_waits_for_its_parent_nor_keeps_its_lock(tmp_path: Path) -> None:
    path, lock = tmp_path / "one", tmp_path / "one.lock"
    reader, writer = os.pipe()

    def by_the_child(place: Path) -> None:
        with atomic_path(place) as temporary:
            temporary.write_text("by the child")

    def build(place: Path) -> None:
        if (child := os.fork()) == 0:
            try:
                os.close(writer)
                built_once(place, "building", text, by_the_child)
                os.read(reader, 1)  # lives as long as this test
            finally:
                os._exit(0)
        children.append(child)
        wait_for(place.exists)

    children: list[int] = []
    assert built_once(path, "building", text, build) == "by the child"
    with only_builder(path, "building"):  # the child, which is alive, doesn't hold it
        assert holder_of(lock) is not None
    os.close(writer)
    os.waitpid(children[0], 0)
    os.close(reader)


def test_the_record_says_who_builds_what_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BETWEEN_RECORDS_S", 0.0)
    lock = tmp_path / "one.lock"
    with only_builder(tmp_path / "one", "drawing icons"):
        first = holder_of(lock)
        with make_bar(total=8, desc="icons", unit="icon", disable=True) as bar:
            bar.mininterval, bar.miniters = 0, 1
            bar.update(3)
            second = holder_of(lock)
    assert first is not None
    assert second is not None
    assert (first.process, first.builds, first.shown.total) == (os.getpid(), "drawing icons", 0)
    assert (second.shown.what, second.shown.done, second.shown.total) == ("icons", 3, 8)
    assert not lock.exists()


@pytest.mark.parametrize(
    "stale", [b"", b"{", b"[]", b'{"process": 1}', b"\xff" * 99, json.dumps({"shown": 3}).encode()]
)
def test_a_lock_that_a_dead_process_left(tmp_path: Path, stale: bytes) -> None:
    (tmp_path / "one.lock").write_bytes(stale)
    assert holder_of(tmp_path / "one.lock") is None
    assert built_once(tmp_path / "one", "building", text, Builder(1, 0)) == "built"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.slow
def test_a_waiter_shows_the_builders_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a moment instead of a line a minute; ten steps of a tenth of a second, seen from the first on."""
    monkeypatch.setattr(module, "_BETWEEN_RECORDS_S", 0.0)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    monkeypatch.setattr("cm3run.progress.SECONDS_BETWEEN_LINES", 0.05)
    builder = Builder(10, 0.1)
    thread = threading.Thread(
        target=built_once, args=(tmp_path / "one", "drawing icons", text, builder)
    )
    thread.start()
    wait_for(lambda: (tmp_path / "one.lock").exists())
    assert built_once(tmp_path / "one", "drawing icons", text, builder) == "built"
    thread.join()
    lines = capsys.readouterr().err.splitlines()
    told = "note: waiting for another thread of this process, which is drawing icons"
    assert lines.count(told) == 1
    assert any(line.startswith("waiting: steps: ") and " of 10" in line for line in lines)
    assert len(builder.places) == 1


def test_a_failure_is_the_builders_and_the_next_one_builds(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        built_once(tmp_path / "one", "building", text, fails)
    assert list(tmp_path.iterdir()) == []
    assert built_once(tmp_path / "one", "building", text, Builder(1, 0)) == "built"


# ---- disks


def test_a_read_only_cache_is_read_and_what_it_lacks_is_built_elsewhere(
    tmp_path: Path, private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = Builder(1, 0)
    with small_disk(tmp_path / "disk") as disk:
        assert built_once(disk / "icons" / "one", "drawing icons", text, builder) == "built"
        (disk / "icons" / "two.lock").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert built_once(disk / "icons" / "one", "drawing icons", text, builder) == "built"
        assert capsys.readouterr().err == ""
        for _ in range(2):  # by this process once
            assert built_once(disk / "icons" / "two", "drawing icons", text, builder) == "built"
        assert computed_once(disk / "new" / "three", "a", text, lambda: "3", Path.write_text) == "3"
        assert len(builder.places) == 2
        assert builder.places[1].is_relative_to(private_folder)
        first, second = capsys.readouterr().err.splitlines()
        assert tells(first, f"note: {disk}/icons can't ... drawing icons for this process alone")
        assert tells(second, f"note: {disk}/new can't be written ... a for this process alone")


def test_a_full_disk(tmp_path: Path, private_folder: Path) -> None:
    computed: list[int] = []

    def compute() -> str:
        computed.append(1)
        return "x" * 50_000

    with small_disk(tmp_path / "disk") as disk:
        (disk / "icons").mkdir()
        leave_room(disk, 8)
        path = disk / "icons" / "one"
        assert len(computed_once(path, "drawing", text, compute, Path.write_text)) == 50_000
        assert len(computed_once(path, "drawing", text, compute, Path.write_text)) == 50_000
        assert computed == [1]
        assert list((disk / "icons").iterdir()) == []


def test_where_nothing_at_all_can_be_written(
    tmp_path: Path, no_private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "one"
    with pytest.raises(FileError, match="can't be written"):
        built_once(path, "drawing", text, Builder())
    with pytest.raises(FileError, match="can't be written"):
        computed_once(path, "drawing", text, lambda: "3", Path.write_text)


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process builds, in the cache; the result is whole whoever is last."""

    def refuse(handle: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(module, "_noted", set())
    builder = Builder(1, 0)
    assert built_once(tmp_path / "one", "drawing icons", text, builder) == "built"
    assert built_once(tmp_path / "one", "drawing icons", text, builder) == "built"
    assert builder.places == [tmp_path / "one"]
    assert tells(
        capsys.readouterr().err,
        f"note: {tmp_path}/one.lock can't be locked (Function not implemented) ... each is drawing icons",
    )
