"""`cm3 chat --conversations`: replies to many conversations, resumable."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli._chat_files import MOST_BYTES, turns_in
from cm3core.errors import CM3Error, DataError
from cm3core.files import check_not_input, read_text, write_text
from cm3core.outputs import set_aside

if TYPE_CHECKING:
    from cm3apps.cli._chat_loop import Replies
    from cm3run.model.model import Model
    from cm3run.model.turns import Turn

FILE = "replies.jsonl"
#: Minimum seconds between two writes of the replies.
SECONDS = 5.0


@dataclass
class _ReplyFile:
    """The replies to the lines of a file, in its order, and the errors of lines without a reply.

    Args:
        path: the file of replies.
        keys: for each line, a key of everything that its reply depends on.
        done: number of a line -> its reply.
        failed: number of a line -> its error.
    """

    path: Path
    keys: list[str]
    done: dict[int, dict[str, Any]]
    failed: dict[int, dict[str, Any]] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, path: Path, lines: list[str], facts: str) -> _ReplyFile:
        """Open the file with its earlier replies to the same line, model and options."""
        keys = [hashlib.sha256(f"{facts}\n{line}".encode()).hexdigest()[:16] for line in lines]
        known = _known(path)
        done = {number: known[key] for number, key in enumerate(keys) if key in known}
        return cls(path, keys, done)

    def write(self) -> None:
        """Write all replies. A file of somebody else's, whose replies are among them, is kept under another name."""
        rows = {**self.done, **self.failed}
        text = [
            json.dumps(
                {"line": number + 1, "key": self.keys[number]} | rows[number], ensure_ascii=False
            )
            for number in sorted(rows)
        ]
        set_aside(self.path)
        write_text(self.path, "".join(f"{row}\n" for row in text))
        self._written = time.monotonic()

    def write_at_times(self) -> None:
        """Write all replies, if the last write was at least `SECONDS` ago."""
        if time.monotonic() - self._written > SECONDS:
            self.write()


@dataclass(frozen=True)
class _Asked:
    """A conversation that waits for its reply: its line number, and its name or ""."""

    number: int
    turns: list[Turn]
    name: str


def names_of_replies(args: Namespace) -> list[str]:
    """The files that `reply_to_all` replaces, as patterns: also the file of replies, unless it has replies that an
    interrupted call wrote, perhaps on another machine.

    Raises:
        DataError: the conversations can't be read.
        FileError: they are the file of replies.
    """
    check_not_input(args.out / FILE, args.conversations)
    numbers = range(1, len(_lines(args.conversations)) + 1)
    resumed = [] if _known(args.out / FILE) else [FILE]
    return [*resumed, *(f"{number:05d}-[0-9]*.png" for number in numbers)]


def reply_to_all(args: Namespace, model: Model, replies: Replies, options: dict[str, Any]) -> int:
    """Reply to each line of a file and write the replies in its order; the exit code is 1 if a line failed.

    Earlier replies to the same line, model and options are kept.
    """
    from cm3run.progress import make_bar

    path = args.out / FILE
    lines = _lines(args.conversations)
    facts = json.dumps([model.name, model.recipe_hash, model.step, args.seed, options], default=str)
    file = _ReplyFile.of(path, lines, facts)
    asked = _asked(args.conversations, lines, file)
    events = model.chat_events(
        [one.turns for one in asked], details=False, seed=args.seed, **options
    )
    code = 0
    try:
        with make_bar(
            desc="replying", total=len(lines), initial=len(file.done), leave=False
        ) as bar:
            for event in events:
                if _take(event, asked[event.request], file, replies):
                    bar.update(1)
                    file.write_at_times()
    except KeyboardInterrupt:
        events.close()
        code = 130
    file.write()
    print(path)
    if code == 130:
        print(
            f"interrupted: {len(file.done)} of {len(lines)} replies are written; the same "
            "command resumes",
            file=sys.stderr,
        )
    for number, row in sorted(file.failed.items()):
        print(f"error: line {number + 1}: {row['error']}", file=sys.stderr)
    return code or int(bool(file.failed))


def _asked(path: Path, lines: list[str], file: _ReplyFile) -> list[_Asked]:
    """The conversations without a reply; lines without a conversation fail."""
    asked = []
    for number, line in enumerate(lines):
        if number in file.done:
            continue
        try:
            turns, name = turns_in(line, f"{path}:{number + 1}", path.parent)
            asked.append(_Asked(number, turns, name))
        except DataError as error:
            file.failed[number] = _error(error)
    return asked


def _take(event: Any, asked: _Asked, file: _ReplyFile, replies: Replies) -> bool:
    """Record an event of a conversation; return whether it was the last."""
    from cm3run.generation.engine import Failed
    from cm3run.model.turns import ReplyReady

    if isinstance(event, Failed):
        file.failed[asked.number] = _error(event.error)
        return True
    if not isinstance(event, ReplyReady):
        return False
    reply = event.reply
    content = replies.content(reply.parts, asked.turns[-1].text, f"{asked.number + 1:05d}")
    file.done[asked.number] = {
        **({"id": asked.name} if asked.name else {}),
        "content": content,
        "finish": reply.finish,
        "seed": reply.seed,
        "turns_read": reply.turns_read,
        "turns_left_out": reply.turns_left_out,
    }
    return True


def _error(error: CM3Error) -> dict[str, Any]:
    return {"error": f"{error.place}: {error.cause}; {error.next_step}"}


def _lines(path: Path) -> list[str]:
    """The non-blank lines of a file."""
    try:
        if path.stat().st_size > 2 * MOST_BYTES:
            raise DataError(str(path), "is larger than 128 MiB", "split it into several files")
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), f"can't be read ({error})", "give a file of JSON lines in UTF-8"
        ) from error
    lines = text.split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise DataError(str(path), "holds no conversation", "write one a line")
    return lines


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """The undamaged replies of an earlier call whose pictures still exist, by their keys."""
    try:
        rows: Iterator[str] = iter(read_text(path).split("\n"))
    except (OSError, ValueError, CM3Error):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            continue
        content = value.get("content") if isinstance(value, dict) else None
        if not isinstance(content, list) or not isinstance(value.get("key"), str):
            continue
        files = [one.get("file") for one in content if isinstance(one, dict)]
        if all(Path(file).is_file() for file in files if isinstance(file, str)):
            key = value.pop("key")
            value.pop("line", None)
            found[key] = value
    return found
