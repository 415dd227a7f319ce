"""A command replaces and deletes only the files that it wrote itself and nobody changed since."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cm3core import files, outputs
from cm3core.errors import FileError
from cm3core.files import cache_folder, write_text
from cm3core.outputs import (
    AppendedFile,
    OutputFolder,
    claim_file,
    is_own,
    record_folder,
    refuse_foreign_in,
    set_aside,
)
from messages import tells
from profiles import examples

MINE = "the user's\n"


def new_process() -> None:
    """Forget what this process claimed and read."""
    outputs._folders.clear()
    outputs._files.clear()
    outputs._resumed.clear()
    outputs._read.clear()
    files.guard = None


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for each test; claims end with it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    new_process()
    yield tmp_path / "state"
    new_process()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_what_a_killed_process_left_unfinished_is_nobodys(out: Path) -> None:
    work = out / "work"
    work.mkdir()
    with files.atomic_path(work / "plan.txt") as temporary:
        temporary.write_text("half")
        shutil.copytree(temporary.parent, left := out / temporary.parent.name)
    (work / "plan.txt").unlink()
    left.rename(work / left.name)
    OutputFolder(out, "work/**/*")
    (work / "notes.txt").write_text(MINE)
    with pytest.raises(FileError) as refused:
        OutputFolder(out, "work/**/*")
    assert tells(refused.value, ".../out/work/notes.txt: is there already")


def test_own_files_are_replaced_and_others_are_not(out: Path) -> None:
    OutputFolder(out, "report.json")
    write_text(out / "report.json", "1")
    new_process()
    OutputFolder(out, "report.json")
    write_text(out / "report.json", "2")
    (out / "report.json").write_text(MINE)
    with pytest.raises(FileError) as refused:
        OutputFolder(out, "report.json")
    assert tells(
        str(refused.value), ".../out/report.json: is there already, and was not written by cm3leon"
    )
    with pytest.raises(FileError):  # also if nobody asked before
        write_text(out / "report.json", "3")
    assert (out / "report.json").read_text() == MINE
    assert [path.name for path in out.iterdir()] == ["report.json"]


def test_names_are_patterns_and_other_files_are_not_looked_at(out: Path) -> None:
    (out / "candidates").mkdir()
    (out / "candidates" / "bell-1.svg").write_text(MINE)
    (out / "notes.txt").write_text(MINE)
    OutputFolder(out, "report.json", "candidates/key-*.svg", "a/**/*")
    with pytest.raises(FileError) as refused:
        OutputFolder(out, "candidates/*.svg")
    assert "candidates/bell-1.svg" in refused.value.place
    write_text(out / "new.txt", "1")
    assert OutputFolder(out).is_own("new.txt")


def test_the_same_bytes_are_left_and_stay_the_users(out: Path) -> None:
    (out / "recipe.yaml").write_text(MINE)
    before = (out / "recipe.yaml").stat().st_mtime_ns
    OutputFolder(out)
    write_text(out / "recipe.yaml", MINE)
    assert (out / "recipe.yaml").stat().st_mtime_ns == before
    assert not is_own(out / "recipe.yaml")
    with pytest.raises(FileError):
        write_text(out / "recipe.yaml", "2")


def test_a_file_is_removed_only_if_it_is_own(out: Path) -> None:
    folder = OutputFolder(out)
    for name in ("kept.svg", "gone.svg"):
        write_text(out / name, "1")
    (out / "kept.svg").write_text(MINE)
    (out / "foreign.svg").write_text(MINE)
    assert [folder.remove(f"{name}.svg") for name in ("kept", "gone", "foreign", "none")] == [
        False,
        True,
        False,
        True,
    ]
    assert sorted(path.name for path in out.iterdir()) == ["foreign.svg", "kept.svg"]


def test_a_copy_of_the_folder_is_not_own(out: Path, tmp_path: Path) -> None:
    OutputFolder(out)
    write_text(out / "a", "1")
    shutil.copytree(out, tmp_path / "copy")
    assert is_own(out / "a")
    assert not is_own(tmp_path / "copy" / "a")


class TestState:
    """The folder of the records."""

    @pytest.mark.parametrize("spoil", ["folder", "file", "link", "removed", "content", "other"])
    def test_without_a_record_that_only_the_user_can_write_nothing_is_own(
        self, out: Path, own_state: Path, spoil: str, tmp_path: Path
    ) -> None:
        OutputFolder(out)
        write_text(out / "a", "1")
        assert is_own(out / "a")
        folder = own_state / "cm3leon" / "written"
        [record] = folder.iterdir()
        match spoil:
            case "folder":
                folder.chmod(0o777)
            case "file":
                record.chmod(0o666)
            case "link":
                record.rename(tmp_path / "record")
                record.symlink_to(tmp_path / "record")
            case "removed":
                shutil.rmtree(own_state)
            case "content":
                record.write_bytes(b"\xff[" + record.read_bytes()[2:])
            case "other":
                record.write_bytes(record.read_bytes().replace(str(out).encode(), b"/elsewhere"))
        new_process()
        assert not is_own(out / "a")
        with pytest.raises(FileError):
            OutputFolder(out, "a")
        assert (out / "a").read_text() == "1"

    def test_a_state_folder_that_can_not_be_written_makes_new_files_possible(
        self, out: Path, own_state: Path
    ) -> None:
        own_state.write_text("a file")
        OutputFolder(out, "a")
        write_text(out / "a", "1")
        with pytest.raises(FileError):
            write_text(out / "a", "2")
        assert (out / "a").read_text() == "1"

    def test_a_cut_line_is_skipped(self, out: Path, own_state: Path) -> None:
        OutputFolder(out)
        write_text(out / "a", "1")
        [record] = (own_state / "cm3leon" / "written").iterdir()
        with record.open("ab") as file:
            file.write(b'["b", "12')
        write_text(out / "c", "1")
        assert is_own(out / "a")
        assert is_own(out / "c")

    def test_a_long_record_is_shortened(
        self, out: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outputs, "_LEAST_SHORTENED", 10)
        OutputFolder(out)
        for number in range(300):
            write_text(out / f"{number % 2}", f"{number}")
        [record] = (own_state / "cm3leon" / "written").iterdir()
        assert len(record.read_bytes().split()) < 300
        assert record.stat().st_mode & 0o777 == 0o600
        assert is_own(out / "0")
        assert is_own(out / "1")


class TestLinks:
    """A link never leads out of the folder."""

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_file(self, out: Path, tmp_path: Path, exists: bool) -> None:
        other = tmp_path / "other"
        if exists:
            other.write_text(MINE)
        (out / "report.json").symlink_to(other)
        with pytest.raises(FileError) as refused:
            OutputFolder(out, "report.json")
        assert "report.json" in refused.value.place
        with pytest.raises(FileError) as refused:
            write_text(out / "report.json", "1")
        assert tells(str(refused.value), "... leads out of the folder")
        assert other.exists() == exists
        assert not exists or other.read_text() == MINE

    def test_a_folder(self, out: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (out / "candidates").symlink_to(tmp_path / "other")
        folder = OutputFolder(out)
        with pytest.raises(FileError):
            write_text(out / "candidates" / "a.svg", "1")
        assert list((tmp_path / "other").iterdir()) == []
        OutputFolder(tmp_path / "other")
        write_text(tmp_path / "other" / "a.svg", "1")
        assert not folder.remove("candidates/a.svg")
        assert (tmp_path / "other" / "a.svg").exists()

    def test_the_folder_itself_may_be_one(self, out: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(out)
        OutputFolder(tmp_path / "link", "a")
        write_text(tmp_path / "link" / "a", "1")
        new_process()
        OutputFolder(out, "a")
        write_text(out / "a", "2")


def test_single_files(out: Path) -> None:
    claim_file(out / "a.png", out / "b.json")
    write_text(out / "a.png", "1")
    write_text(out / "a.png", "2")
    (out / "b.json").write_text(MINE)
    with pytest.raises(FileError):
        write_text(out / "b.json", "1")
    with pytest.raises(FileError) as refused:
        claim_file(out / "a.png", out / "b.json")
    assert refused.value.place.endswith("b.json")
    (out / "c.json").write_text(MINE)
    write_text(out / "c.json", "other files of the folder are not claimed")


def test_caches_in_the_folder_are_no_results(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(out / "cache"))
    OutputFolder(out)
    for place in (out / "cache", cache_folder("a", root=out / "kept")):
        place.mkdir(parents=True)
        (place / "a").write_text("damaged")
        write_text(place / "a", "1")


def test_a_folder_that_is_replaced_as_a_whole(out: Path) -> None:
    made = out / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a").write_text("1")
    (made / "sub" / "b").write_text("2")
    record_folder(made, out / "model")
    made.rename(out / "model")
    (out / "model" / "sub" / f".b.0123abcd{files.SUFFIX}").mkdir()  # left by a kill
    (out / "model" / "sub" / f".b.0123abcd{files.SUFFIX}" / "b").write_text("half")
    refuse_foreign_in(out / "model")
    (out / "model" / "sub" / "notes.txt").write_text(MINE)
    with pytest.raises(FileError) as refused:
        refuse_foreign_in(out / "model")
    assert refused.value.place.endswith("model/sub/notes.txt")


def test_a_log_is_own_after_each_line(out: Path) -> None:
    OutputFolder(out)
    with AppendedFile(out / "log.jsonl") as log:
        for line in (b"1\n", b"2\n"):
            log.write(line)
            assert is_own(out / "log.jsonl")
    with AppendedFile(out / "log.jsonl") as log:
        log.write(b"3\n")
    assert (out / "log.jsonl").read_text() == "1\n2\n3\n"
    (out / "log.jsonl").write_text(MINE)
    with pytest.raises(FileError):
        AppendedFile(out / "log.jsonl")


def test_foreign_results_are_set_aside(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OutputFolder(out)
    for name in ("m.jsonl", "m-1.jsonl"):
        (out / name).write_text(MINE)
    assert set_aside(out / "m.jsonl") == out / "m-2.jsonl"
    assert tells(capsys.readouterr().err, "note: ... it is kept as m-2.jsonl")
    write_text(out / "m.jsonl", "1")
    assert set_aside(out / "m.jsonl") is None
    assert (out / "m-2.jsonl").read_text() == MINE


def test_resumed_work_sets_aside_what_is_in_the_way(out: Path) -> None:
    (out / "sub").mkdir()
    for name in ("a", "sub/b.png"):
        (out / name).write_text(MINE)
    OutputFolder(out)
    OutputFolder(out / "sub", resumes=True)
    write_text(out / "sub" / "b.png", "1")
    with pytest.raises(FileError):
        write_text(out / "a", "1")
    assert (out / "sub" / "b-1.png").read_text() == MINE
    assert (out / "sub" / "b.png").read_text() == "1"
    log = AppendedFile(out / "sub" / "log.jsonl", b"kept\n")
    log.close()
    (out / "sub" / "log.jsonl").write_text(MINE)
    log = AppendedFile(out / "sub" / "log.jsonl", b"kept\n")
    log.write(b"2\n")
    log.close()
    assert (out / "sub" / "log.jsonl").read_text() == "kept\n2\n"
    assert (out / "sub" / "log-1.jsonl").read_text() == MINE


def test_a_large_file_is_known_by_its_ends_and_its_time(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_MOST_HASHED", 100)
    monkeypatch.setattr(outputs, "_END", 10)
    OutputFolder(out)
    write_text(out / "a", "1" * 500)
    assert is_own(out / "a")
    with (out / "a").open("r+") as file:
        file.seek(250)
        file.write("2")
    assert not is_own(out / "a")


def test_folders_that_are_gone_are_forgotten(
    out: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cm3core import user_state

    monkeypatch.setattr(user_state, "_MOST", 2)
    OutputFolder(out)
    records = own_state / "cm3leon" / "written"
    for name in "abcd":
        write_text(out / name / "file", name)
        if name < "c":
            shutil.rmtree(out / name)
        for record in records.iterdir():
            os.utime(record, (0, time.time() - 2 * user_state._KEPT_S))
    assert len(list(records.iterdir())) == 2
    assert is_own(out / "d" / "file")


def test_a_folder_that_is_about_to_be_there_is_not_forgotten(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a subfolder is begun while those of the folder's files are there, and the folder is not."""
    from cm3core import user_state

    monkeypatch.setattr(user_state, "_MOST", 0)
    made = out / f".model.0123abcd{files.SUFFIX}"
    (made / "sub" / "sub").mkdir(parents=True)
    for place in ("a", "sub/b", "sub/sub/c"):
        (made / place).write_text(place)
    record_folder(made, out / "model")
    made.rename(out / "model")
    refuse_foreign_in(out / "model")


def _killed_at(out: Path, number: int) -> None:
    """Write a file in a process that is killed before its `number`-th change of a file."""
    import sys

    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
        if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        new_process()
        sys.addaudithook(count)
        OutputFolder(out, "a")
        write_text(out / "a", "new")
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "old"])
def test_a_kill_at_any_moment_leaves_an_own_file(out: Path, before: str) -> None:
    """The old one or the new one, or none; the next call goes on."""
    seen = set()
    for number in range(1, 14):
        shutil.rmtree(out)
        out.mkdir()
        new_process()
        OutputFolder(out, "a")
        if before:
            write_text(out / "a", before)
        _killed_at(out, number)
        found = (out / "a").read_text() if (out / "a").exists() else ""
        seen.add(found)
        assert found in (before, "new")
        new_process()
        OutputFolder(out, "a")
        write_text(out / "a", "next")
    assert seen == {before, "new"}


NAMES = st.sampled_from(["a", "b", "sub/c"])
TEXTS = st.sampled_from(["", "1", "2", "3"])


class Sharing(RuleBasedStateMachine):
    """A command and its user write in one folder; the command is killed at times."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.root = Path(tempfile.mkdtemp(prefix="cm3-outputs-"))
        self.out = self.root / "out"
        self.before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(self.root / "state")
        self.users: dict[str, str] = {}
        self.ours: dict[str, set[str]] = {}
        new_process()
        OutputFolder(self.out)

    def teardown(self) -> None:
        if self.before is not None:
            os.environ["XDG_STATE_HOME"] = self.before
        shutil.rmtree(self.root)
        new_process()

    def _write(self, name: str, text: str) -> None:
        if name in self.users and self.users[name] != text:
            with pytest.raises(FileError):
                OutputFolder(self.out, name)
            with pytest.raises(FileError):
                write_text(self.out / name, text)
        else:
            write_text(self.out / name, text)
            if name not in self.users:
                self.ours[name] = {text}

    @rule(name=NAMES, text=TEXTS)
    def command_writes(self, name: str, text: str) -> None:
        self._write(name, text)

    @rule(name=NAMES, text=TEXTS, renamed=st.booleans())
    def command_is_killed(self, name: str, text: str, renamed: bool) -> None:
        """Before or after the file takes its name."""
        place = files._take_place

        def killed(temporary: Path, target: Path, mode: int) -> None:
            if renamed:
                place(temporary, target, mode)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_take_place", killed)
            try:
                write_text(self.out / name, text)
            except FileError:
                assert name in self.users
            except KeyboardInterrupt:
                assert name not in self.users
                if renamed:
                    self.ours[name] = {text}
        new_process()
        OutputFolder(self.out)

    @rule(name=NAMES)
    def command_removes(self, name: str) -> None:
        there = (self.out / name).exists()
        assert OutputFolder(self.out).remove(name) == (name not in self.users)
        if there and name not in self.users:
            del self.ours[name]

    @rule(name=NAMES, text=st.sampled_from(["mine", "mine, too"]))
    def user_writes(self, name: str, text: str) -> None:
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_text(text)
        self.users[name] = text
        self.ours.pop(name, None)

    @rule(name=NAMES)
    def user_removes(self, name: str) -> None:
        (self.out / name).unlink(missing_ok=True)
        self.users.pop(name, None)
        self.ours.pop(name, None)

    @precondition(lambda self: self.users)
    @rule()
    def user_renames(self) -> None:
        """To a name that the command writes, too."""
        name = min(self.users)
        new = self.out / "b"
        new.parent.mkdir(exist_ok=True)
        (self.out / name).replace(new)
        self.ours.pop("b", None)
        self.users["b"] = self.users.pop(name)

    @invariant()
    def files_are_as_their_last_writer_left_them(self) -> None:
        for name, text in self.users.items():
            assert (self.out / name).read_text() == text
        for name, texts in self.ours.items():
            assert (self.out / name).read_text() in texts
            assert is_own(self.out / name)


TestSharing: Callable[[], None] = Sharing.TestCase  # type: ignore[assignment]  # as pytest finds it
Sharing.TestCase.settings = settings(max_examples=examples(20), stateful_step_count=25)
