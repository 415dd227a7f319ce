"""The shards of a bank that is being built, by one process or several.

Each finished shard has a note in the bank's folder `WORK`: what is noted is not made again, whoever
made it. A note is written when its shard is whole, so that processes need nothing else to share work.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3core.errors import CM3Error, DataError
from cm3core.files import make_folder, read_text, write_text
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3core.progress import make_bar
from cm3run.bank.encoding import encoded_documents
from cm3run.bank.manifest import WORK, ShardInfo, shard_of
from cm3run.bank.shard import BankDocument, Shard, write_shard
from cm3run.bank.tools import Tools
from cm3run.bank.writing import remove_unfinished_shards

#: Starts a process that calls `cm3run.bank.help_build`. If its output is piped, that is the error it fails with, and
#: no more than a pipe holds.
Helper = Callable[[], "subprocess.Popen[bytes]"]
_PLAN = "plan.txt"
#: Seconds between looks at what helpers have done.
_LOOK = 0.2


@dataclass(frozen=True, eq=False)
class ShardWork:
    """Shards to be made.

    Args:
        folder: the bank's.
        source: documents.
        wanted: indices of those that the shards are made of, in order.
        tools: make vectors and codes.
        plan: hash of all that decides the shards.
        shard_size: documents of a shard.
        id_prefix: prepended to the documents' ids.
    """

    folder: Path
    source: DocumentSource
    wanted: Sequence[int]
    tools: Tools
    plan: str
    shard_size: int
    id_prefix: str

    def build(
        self, helpers: Sequence[Helper] = (), *, progress: bool
    ) -> tuple[list[ShardInfo], list[SkippedRecord]]:
        """All shards, in order, and the records that they skip; those that an earlier call with this
        plan finished are taken as they are. `helpers`: see `cm3run.bank.build_bank`."""
        self._begin()
        remove_unfinished_shards(self.folder)
        shards: list[ShardInfo] = []
        skipped: list[SkippedRecord] = []
        with make_bar(
            total=len(self.wanted),
            desc="memory bank",
            unit="document",
            disable=None if progress else True,
        ) as bar:
            failed: list[_Failed] = []
            if helpers:
                failed = self._share(helpers, bar)
                bar.reset()
            for start in self._starts():
                info, own = self._finished(start) or self._rest(start, bar, failed)
                if info is not None:
                    shards.append(info)
                skipped += own
                bar.update(min(start + self.shard_size, len(self.wanted)) - bar.n)
        return shards, [*self.source.skipped, *skipped]

    def help(self, share: tuple[int, int]) -> None:
        """Make those shards of a share that are not there; see `cm3run.bank.help_build`."""
        path = self.folder / WORK / _PLAN
        if not path.is_file() or path.read_text() != self.plan:
            raise DataError(
                str(self.folder),
                "is not being built from this data and these settings",
                "run cm3 memory build, which starts its helpers itself",
            )
        with make_bar(disable=True) as bar:
            for start in self._starts()[share[0] :: share[1]]:
                if self._finished(start) is None:
                    self._make(start, bar)

    def _rest(
        self, start: int, bar: Any, failed: list[_Failed]
    ) -> tuple[ShardInfo | None, list[SkippedRecord]]:
        """Make a shard that helpers left, and say once why they did, unless it is what happens here too."""
        try:
            made = self._make(start, bar)
        except CM3Error as error:
            _say([one for one in failed if one.error != str(error)])
            raise
        _say(failed)
        failed.clear()
        return made

    def _share(self, helpers: Sequence[Helper], bar: Any) -> list[_Failed]:
        """Make every n-th shard while helpers make the others, and wait for them. Returns those that failed."""
        with _running(helpers) as processes:
            for start in self._starts()[:: 1 + len(helpers)]:
                if self._finished(start) is None:
                    self._make(start, bar)
            while any(process.poll() is None for process in processes):
                time.sleep(_LOOK)
                done = len(list((self.folder / WORK).glob("*.json"))) * self.shard_size
                bar.update(min(done, len(self.wanted)) - bar.n)
            return [
                _Failed(len(helpers), process.returncode, _told(process))
                for process in processes
                if process.returncode
            ]

    def _starts(self) -> range:
        return range(0, len(self.wanted), self.shard_size)

    def _note(self, start: int) -> Path:
        return self.folder / WORK / f"{start:012d}.json"

    def _make(self, start: int, bar: Any) -> tuple[ShardInfo | None, list[SkippedRecord]]:
        """Write a shard and its note; its records that can't be used."""
        own: list[SkippedRecord] = []
        places = self.wanted[start : start + self.shard_size]
        documents = encoded_documents(self.source, places, self.tools, self.id_prefix, own)
        info = write_shard(self.folder, _counted(documents, bar), self.tools.manifest)
        values = {
            "shard": None if info is None else asdict(info),
            "skipped": [asdict(record) for record in own],
        }
        write_text(self._note(start), json.dumps(values))
        return info, own

    def _finished(self, start: int) -> tuple[ShardInfo | None, list[SkippedRecord]] | None:
        """A shard that is there, and the records that it skipped; None when it is to be built."""
        try:
            values = json.loads(read_text(self._note(start)))
            info = None if values["shard"] is None else shard_of(values["shard"])
            if info is not None:
                Shard(self.folder, info, self.tools.manifest)
            return info, [SkippedRecord(**record) for record in values["skipped"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            # a `DataError` is a `ValueError`: what was lost is built again
            return None

    def _begin(self) -> None:
        """Keep the notes of this plan; those of another one are thrown away."""
        work = self.folder / WORK
        path = work / _PLAN
        if work.is_dir():
            if path.is_file() and path.read_text() == self.plan:
                return
            if path.is_file():
                tqdm.write(
                    "note: data or settings have changed since building was interrupted; starting "
                    "from scratch",
                    file=sys.stderr,
                )
            shutil.rmtree(work)
        make_folder(work)
        write_text(path, self.plan)


@dataclass(frozen=True)
class _Failed:
    """One of `number` helpers that ended with an exit code; `error`: what it told, "" if nothing."""

    number: int
    code: int
    error: str


def _told(process: subprocess.Popen[bytes]) -> str:
    """The error that a helper ended with."""
    return "" if process.stdout is None else process.stdout.read().decode(errors="replace")


def _say(failed: Sequence[_Failed]) -> None:
    """A note on helpers that failed, with the error of the first that told one."""
    if failed:
        told = next((one.error for one in failed if one.error), f"exit code {failed[0].code}")
        tqdm.write(
            f"note: {len(failed)} of {failed[0].number} other processes ended early ({told.splitlines()[0]}); "
            "what they left is made by this one",
            file=sys.stderr,
        )


@contextmanager
def _running(helpers: Sequence[Helper]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The helpers' processes, which end with the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for start in helpers:
            processes.append(start())
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _counted(documents: Iterator[BankDocument], bar: Any) -> Iterator[BankDocument]:
    for document in documents:
        yield document
        bar.update()
