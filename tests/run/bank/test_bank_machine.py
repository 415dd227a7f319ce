"""A memory bank under any order of additions, removals, merges, rebuilds, reopenings and kills: what is
in it is what was put there, and a killed write leaves the bank before it or the one after it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bank_parts import documents, tools
from built_banks import coded
from cm3kits.retriever import ListSource
from cm3run.bank import MemoryBank, Shards, add_documents, build_bank, merge_banks, remove_documents
from forking import own_locks
from profiles import examples

#: Exit code of a process that was killed in the middle of a write.
KILLED = 9
COUNTS, SHARDS = st.integers(1, 5), st.sampled_from([1, 2, 4])


def source(numbers: list[int]) -> ListSource:
    """Documents by their numbers, of ids "d0", "d1", ..."""
    return ListSource([documents(1, n)[0] for n in numbers], [f"d{n}" for n in numbers])


def killed_at(write: Callable[[], object], rename: int) -> bool:
    """Do it in another process, which ends without a word before its `rename`-th rename.

    Returns whether it came so far."""
    child = os.fork()
    if child == 0:
        left = rename

        def counted(call):
            def replace(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(KILLED)
                return call(*arguments, **options)

            return replace

        try:
            own_locks()
            os.rename, os.replace = counted(os.rename), counted(os.replace)
            write()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == KILLED


class Bank(RuleBasedStateMachine):
    """The bank, and the numbers of the documents that it must have, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "bank"
        self.numbers: list[int] = []
        self.next = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def fresh(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    @initialize(count=COUNTS, shard_size=SHARDS)
    def build(self, count: int, shard_size: int) -> None:
        self.numbers = self.fresh(count)
        build_bank(
            source(self.numbers), self.folder, tools(), Shards(size=shard_size), progress=False
        )

    @rule(count=COUNTS, shard_size=SHARDS)
    def add(self, count: int, shard_size: int) -> None:
        self._add(self.fresh(count), shard_size)

    def _add(self, new: list[int], shard_size: int) -> None:
        report = add_documents(
            self.folder, source(new), tools(), Shards(size=shard_size), progress=False
        )
        self.numbers += new
        assert (report.num_added, report.num_documents) == (len(new), len(self.numbers))

    @rule(data=st.data())
    @precondition(lambda self: len(self.numbers) > 1)
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(
            st.sets(st.sampled_from(self.numbers), min_size=1, max_size=len(self.numbers) - 1)
        )
        report = remove_documents(self.folder, [f"d{n}" for n in gone] + ["absent"])
        self.numbers = [n for n in self.numbers if n not in gone]
        assert (report.num_removed, report.missing) == (len(gone), ["absent"])
        assert report.num_documents == len(self.numbers)

    @rule(count=COUNTS, shard_size=SHARDS, front=st.booleans())
    def merge(self, count: int, shard_size: int, front: bool) -> None:
        new, other, out = self.fresh(count), self.root / "other", self.root / "merged"
        build_bank(source(new), other, tools(), Shards(size=shard_size), progress=False)
        pair = [other, self.folder] if front else [self.folder, other]
        merge_banks(pair, out, progress=False)
        self.numbers = new + self.numbers if front else self.numbers + new
        shutil.rmtree(self.folder)
        shutil.rmtree(other)
        out.rename(self.folder)

    @rule(shard_size=SHARDS)
    def rebuild(self, shard_size: int) -> None:
        """Of the same documents, in shards of another size."""
        shutil.rmtree(self.folder)
        build_bank(
            source(self.numbers), self.folder, tools(), Shards(size=shard_size), progress=False
        )

    @rule(count=COUNTS, shard_size=SHARDS, rename=st.integers(0, 6))
    def killed_while_adding(self, count: int, shard_size: int, rename: int) -> None:
        new = self.fresh(count)

        def write() -> None:
            add_documents(
                self.folder, source(new), tools(), Shards(size=shard_size), progress=False
            )

        killed_at(write, rename)
        if self._is(self.numbers):
            self._add(new, shard_size)  # resumes
        else:
            self.numbers += new

    @rule(rename=st.integers(0, 6), data=st.data())
    @precondition(lambda self: len(self.numbers) > 1)
    def killed_while_removing(self, rename: int, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.numbers))
        killed_at(lambda: remove_documents(self.folder, [f"d{gone}"]), rename)
        if not self._is(self.numbers):
            self.numbers.remove(gone)

    def _is(self, numbers: list[int]) -> bool:
        bank = MemoryBank.open(self.folder)
        return [bank.id(index) for index in range(len(bank))] == [f"d{n}" for n in numbers]

    @invariant()
    def holds_what_was_put_there(self) -> None:
        if not self.numbers:
            return
        bank = MemoryBank.open(self.folder)
        assert self._is(self.numbers)
        assert bank.verify() == []
        for index, number in enumerate(self.numbers):
            (document,) = documents(1, number)
            assert bank.document(index) == coded(document)
            assert bank.find([f"d{number}"]) == {f"d{number}": index}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_any_order_of_changes_and_kills() -> None:
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    own = settings(max_examples=examples(5), stateful_step_count=6, deadline=None, phases=phases)
    run_state_machine_as_test(Bank, settings=own)


def test_a_process_is_killed_before_its_rename(tmp_path: Path) -> None:
    """What the machine relies on: the first rename does not happen, the second one is not reached."""
    (tmp_path / "a").touch()
    assert killed_at(lambda: (tmp_path / "a").replace(tmp_path / "b"), 0)
    assert (tmp_path / "a").exists()
    assert not killed_at(lambda: (tmp_path / "a").replace(tmp_path / "b"), 1)
    assert (tmp_path / "b").exists()
