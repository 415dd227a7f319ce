"""Replies on a terminal and in files: texts as they are written, pictures as they are finished."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli._model import printable, settings_of
from cm3core.files import write_bytes

if TYPE_CHECKING:
    from cm3run.generation.engine import Event
    from cm3run.model.model import Model
    from cm3run.model.turns import Reply, ReplyPicture


class Replies:
    """Writes pictures of replies, and shows replies.

    Args:
        args: of the command: `out`, and what changes its sampler.
        model: that replies.
    """

    def __init__(self, args: Namespace, model: Model) -> None:
        self.args, self.model = args, model
        #: By the `id` of a picture, where it was written.
        self.files: dict[int, Path] = {}
        #: What ids are of, so that none is used again.
        self._kept: list[ReplyPicture] = []
        self._next = _first_free(args.out)

    def save(self, picture: ReplyPicture, prompt: str, stem: str = "") -> Path:
        """Write a picture with what made it; returns the file. `stem`: of its name; "": a number."""
        from cm3run.attribution import png
        from cm3run.model.facts import facts_of_reply

        path: Path = self.args.out / f"{stem or f'chat-{self._next:03d}'}.png"
        self._next += not stem
        facts = facts_of_reply(
            self.model,
            picture,
            prompt,
            sampler=self.args.sampler,
            sampling=settings_of(self.args.settings, "sampler"),
        )
        write_bytes(path, png(picture.pixels, facts))
        self.files[id(picture)] = path
        self._kept.append(picture)
        return path

    def content(
        self, parts: Iterable[str | ReplyPicture], prompt: str, stem: str = ""
    ) -> list[dict[str, Any]]:
        """Parts of a reply as JSON; pictures are written."""
        found: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            if isinstance(part, str):
                found.append({"type": "text", "text": part})
            else:
                path = self.save(part, prompt, stem and f"{stem}-{number}")
                found.append({"type": "image", "file": str(path)})
        return found

    def show(self, events: Generator[Event, None, None], prompt: str) -> Reply:
        """Print a reply as it comes: pieces of its texts, and the paths of its pictures."""
        from cm3core.progress import make_bar
        from cm3run.generation.engine import PictureGrown, TextGrown
        from cm3run.model.turns import ReplyPart, ReplyReady

        bars: list[Any] = []

        def close() -> None:
            while bars:
                bars.pop().close()

        reply: Reply | None = None
        begun = False
        with closing(events):
            try:
                for event in events:
                    if isinstance(event, TextGrown):
                        text = event.text if begun else event.text.lstrip()
                        print(printable(text, lines=True), end="", flush=True)
                        begun = begun or bool(text)
                    elif isinstance(event, PictureGrown):
                        rows = event.codes.grid[0]
                        if not bars:
                            bar = make_bar(
                                desc="drawing",
                                total=rows,
                                unit="row",
                                file=sys.stderr,
                                leave=False,
                                dynamic_ncols=True,
                            )
                            bars.append(bar)
                        bars[0].update(_rows(event) - bars[0].n)
                    elif isinstance(event, ReplyPart) and not isinstance(event.part, str):
                        close()
                        if begun:
                            print()
                        print(self.save(event.part, prompt), flush=True)
                        begun = False
                    elif isinstance(event, ReplyReady):
                        reply = event.reply
            finally:
                close()
                if begun:
                    print(flush=True)
        assert reply is not None, "a stream ends with a reply"
        self.note(reply)
        return reply

    def note(self, reply: Reply) -> None:
        """Say what a reader would not notice."""
        if reply.turns_left_out:
            print(
                f"note: the oldest {reply.turns_left_out} turns no longer fit and were not read",
                file=sys.stderr,
            )
        if reply.finish == "length":
            print("note: the reply was cut: it may have no more tokens", file=sys.stderr)


def _rows(event: Any) -> int:
    """Rows of a growing picture that are finished."""
    rows, columns = event.codes.grid
    return int((~event.codes.missing.reshape(rows, columns)).all(1).sum())


def _first_free(folder: Path) -> int:
    """The first number behind those of the pictures that are there."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [
        int(match[1]) for name in names if (match := re.fullmatch(r"chat-(\d{1,9})\.png", name))
    ]
    return max(found, default=-1) + 1
