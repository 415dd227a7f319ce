"""`cm3 chat --conversations`: replies to many conversations, resumable."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli._chat_files import MOST_BYTES, turns_in
from cm3core.errors import CM3Error, DataError
from cm3core.files import check_not_input, read_text, write_text

if TYPE_CHECKING:
    from cm3apps.cli._chat_loop import Replies
    from cm3run.model.model import Model
    from cm3run.model.turns import Turn

FILE = "replies.jsonl"
#: Seconds between two writings of the replies.
SECONDS = 5.0


def reply_to_all(args: Namespace, model: Model, replies: Replies, options: dict[str, Any]) -> int:
    """Reply to each line of a file, write the replies in its order; the exit code is 1 when one failed.

    Replies that are there already, of the same line, model and options, are kept.
    """
    from cm3core.progress import make_bar
    from cm3run.generation.engine import Failed
    from cm3run.model.turns import ReplyReady

    path = args.out / FILE
    check_not_input(path, args.conversations)
    lines = _lines(args.conversations)
    facts = json.dumps([model.name, model.recipe_hash, model.step, args.seed, options], default=str)
    keys = [hashlib.sha256(f"{facts}\n{line}".encode()).hexdigest()[:16] for line in lines]
    known = _known(path)
    done = {number: known[key] for number, key in enumerate(keys) if key in known}
    failed: dict[int, dict[str, Any]] = {}
    conversations: dict[int, list[Turn]] = {}
    names: dict[int, str] = {}
    for number, line in enumerate(lines):
        if number in done:
            continue
        try:
            place = f"{args.conversations}:{number + 1}"
            conversations[number], names[number] = turns_in(line, place, args.conversations.parent)
        except DataError as error:
            failed[number] = _error(error)
    order = list(conversations)
    last = time.monotonic()

    def write() -> None:
        rows = {**done, **failed}
        text = [
            json.dumps({"line": number + 1, "key": keys[number]} | rows[number], ensure_ascii=False)
            for number in sorted(rows)
        ]
        write_text(path, "".join(f"{row}\n" for row in text))

    events = model.chat_events(
        [conversations[number] for number in order], details=False, seed=args.seed, **options
    )
    code = 0
    try:
        with make_bar(desc="replying", total=len(lines), initial=len(done), leave=False) as bar:
            for event in events:
                number = order[event.request]
                if isinstance(event, Failed):
                    failed[number] = _error(event.error)
                elif isinstance(event, ReplyReady):
                    reply, prompt = event.reply, conversations[number][-1].text
                    content = replies.content(reply.parts, prompt, f"{number + 1:05d}")
                    done[number] = {
                        **({"id": names[number]} if names[number] else {}),
                        "content": content,
                        "finish": reply.finish,
                        "seed": reply.seed,
                        "turns_read": reply.turns_read,
                        "turns_left_out": reply.turns_left_out,
                    }
                else:
                    continue
                bar.update(1)
                if time.monotonic() - last > SECONDS:
                    write()
                    last = time.monotonic()
    except KeyboardInterrupt:
        events.close()
        code = 130
    write()
    print(path)
    if code == 130:
        print(
            f"interrupted: {len(done)} of {len(lines)} replies are written; the same command goes on",
            file=sys.stderr,
        )
    for number, row in sorted(failed.items()):
        print(f"error: line {number + 1}: {row['error']}", file=sys.stderr)
    return code or int(bool(failed))


def _error(error: CM3Error) -> dict[str, Any]:
    return {"error": f"{error.place}: {error.cause}; {error.next_step}"}


def _lines(path: Path) -> list[str]:
    """The lines of a file that hold something."""
    try:
        if path.stat().st_size > 2 * MOST_BYTES:
            raise DataError(str(path), "is larger than 128 MiB", "cut it into several files")
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
    """Replies of an earlier call whose pictures are there, by their keys; none of what is damaged."""
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
