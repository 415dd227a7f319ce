"""The loop of `cm3 chat`: messages and commands from lines, and replies on a terminal and in files. Text appears as it
is generated, pictures when they are finished.
"""

from __future__ import annotations

import contextlib
import re
import sys
from argparse import Namespace
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli._model import printable, show_note
from cm3apps.cli.opening import settings_of
from cm3core.errors import CM3Error, FileError, close_match
from cm3core.files import check_not_input, user_path, write_bytes
from cm3core.outputs import claim_file

if TYPE_CHECKING:
    from cm3run.generation.engine import Event
    from cm3run.model import Conversation
    from cm3run.model.model import Model
    from cm3run.model.turns import Reply, ReplyPicture


class Replies:
    """Shows replies and writes their pictures.

    Args:
        args: the command's arguments: `out`, and the options for the sampler.
        model: the model that replies.
    """

    def __init__(self, args: Namespace, model: Model) -> None:
        self.args, self.model = args, model
        #: The written file of each picture, by `id`.
        self.files: dict[int, Path] = {}
        #: Keeps the pictures alive, so that no `id` is used again.
        self._kept: list[ReplyPicture] = []
        self._next = _first_free(args.out)

    def save(self, picture: ReplyPicture, prompt: str, stem: str = "") -> Path:
        """Write a picture with its metadata and return the file. `stem` is the name's stem; "" means a number."""
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
        """The parts of a reply as JSON; its pictures are written to files."""
        found: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            if isinstance(part, str):
                found.append({"type": "text", "text": part})
            else:
                path = self.save(part, prompt, stem and f"{stem}-{number}")
                noted = {"note": part.note} if part.note else {}
                found.append({"type": "image", "file": str(path), **noted})
        return found

    def show(self, events: Generator[Event, None, None], prompt: str) -> Reply:
        """Print a reply as it is generated: text in pieces, and the paths of pictures."""
        from cm3run.generation.engine import PictureGrown, TextGrown
        from cm3run.model.turns import ReplyPart, ReplyReady
        from cm3run.progress import make_bar

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
                        show_note(event.part.note)
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
        """Print notes about a reply that was cut or did not see all turns."""
        if reply.turns_left_out:
            print(
                f"note: the oldest {reply.turns_left_out} turns no longer fit and were not read",
                file=sys.stderr,
            )
        if reply.finish == "length":
            print("note: the reply was cut at the maximum number of tokens", file=sys.stderr)


def _rows(event: Any) -> int:
    """The number of finished rows of a growing picture."""
    rows, columns = event.codes.grid
    return int((~event.codes.missing.reshape(rows, columns)).all(1).sum())


def _first_free(folder: Path) -> int:
    """The first number after those of existing pictures."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [
        int(match[1]) for name in names if (match := re.fullmatch(r"chat-(\d{1,9})\.png", name))
    ]
    return max(found, default=-1) + 1


#: Command -> (its argument, its help).
COMMANDS = {
    "image": ("FILE", "send a picture with your next message"),
    "draw": ("TEXT", "send the text and ask for a picture"),
    "write": ("TEXT", "send the text and ask for a reply without pictures"),
    "again": ("", "generate another reply to your last message"),
    "undo": ("", "remove your last message and its reply"),
    "reset": ("", "start a new conversation"),
    "history": ("", "print the conversation"),
    "save": ("FILE", "save the conversation; cm3 chat --load FILE continues it"),
    "help": ("", "print this"),
    "quit": ("", "quit, like Ctrl-D"),
}
#: The end of a line that continues on the next one.
GOES_ON = "\\"


class Loop:
    """A conversation on a terminal, or with lines from a pipe.

    Args:
        args: the command's arguments.
        talk: the conversation.
        replies: shows the replies.
    """

    def __init__(self, args: Namespace, talk: Conversation, replies: Replies) -> None:
        self.args, self.talk, self.replies = args, talk, replies
        self.pictures: list[Path] = list(args.images)

    def run(self) -> int:
        """Read lines until the end of the input or `/quit`; errors are reported, and the loop continues."""
        if sys.stdin.isatty():
            print("/help lists commands, Ctrl-D quits, Ctrl-C stops a reply", file=sys.stderr)
        for line in _lines():
            try:
                if not self._do(line):
                    break
            except CM3Error as error:
                print(f"error: {error}", file=sys.stderr)
        return 0

    def _do(self, line: str) -> bool:
        """Process a line; return False to quit."""
        if not line.startswith("/"):
            if line.strip() or self.pictures:
                self._say(line)
            return True
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            raise CM3Error(
                f"/{printable(name)}", "is no command", f"{close_match(name, COMMANDS)}; see /help"
            )
        if COMMANDS[name][0] and not rest:
            raise CM3Error(f"/{name}", f"needs {COMMANDS[name][0]}", f"/{name} {COMMANDS[name][0]}")
        if name == "quit":
            return False
        {
            "image": self._image,
            "draw": lambda text: self._say(text, answer="image"),
            "write": lambda text: self._say(text, answer="text"),
            "again": self._again,
            "undo": self._undo,
            "reset": self._reset,
            "history": self._history,
            "save": self._save,
            "help": self._help,
        }[name](rest)
        return True

    def _say(self, text: str, **options: Any) -> None:
        said = list(self.talk.turns)
        try:
            events = self.talk.stream(text, *self.pictures, **options)
            self.replies.show(events, text)
        except KeyboardInterrupt:
            self.talk.turns = said
            print("stopped: your last message is not part of the conversation", file=sys.stderr)
            return
        self.pictures = []

    def _image(self, name: str) -> None:
        from cm3core import images

        path = user_path(name)
        images.open_image(
            path
        )  # open it now, so that a bad file is refused now and not with the next message
        self.pictures.append(path)
        print(f"will be sent with your next message: {path}", file=sys.stderr)

    def _again(self, _: str) -> None:
        turns = list(self.talk.turns)
        last = self.talk.undo()
        if last is None:
            raise CM3Error("/again", "there is no message yet", "send one")
        text = "\n".join(part for part in last.parts if isinstance(part, str))
        shown: list[Any] = [part for part in last.parts if not isinstance(part, str)]
        self.talk.seed += 1
        try:
            self.replies.show(self.talk.stream(text, *shown), text)
        except KeyboardInterrupt:
            self.talk.turns = turns
            print("stopped: the previous reply is kept", file=sys.stderr)
        except CM3Error:
            self.talk.turns = turns
            raise

    def _undo(self, _: str) -> None:
        last = self.talk.undo()
        if last is None:
            raise CM3Error("/undo", "there is no message yet", "send one")
        print(f"removed: {printable(last.text)}", file=sys.stderr)

    def _reset(self, _: str) -> None:
        self.talk.reset()
        self.pictures = []
        print("a new conversation", file=sys.stderr)

    def _history(self, _: str) -> None:
        for turn in self.talk.turns:
            for part in turn.parts:
                shown = part if isinstance(part, str) else self.replies.files.get(id(part), part)
                text = str(shown) if isinstance(shown, (str, Path)) else "a picture"
                print(f"{turn.role}: {printable(text, lines=True)}")

    def _save(self, name: str) -> None:
        from cm3apps.cli._chat_files import write_conversation

        path = user_path(name)
        if path.suffix.lower() != ".json":
            raise FileError(str(path), "does not end with .json", "save as NAME.json")
        shown = [part for turn in self.talk.turns for part in turn.parts if isinstance(part, Path)]
        check_not_input(path, *shown)
        claim_file(path)
        write_conversation(path, self.talk.turns, self.replies.files)
        print(path, file=sys.stderr)

    def _help(self, _: str) -> None:
        for name, (what, does) in COMMANDS.items():
            print(f"  {f'/{name} {what}'.strip():<14} {does}")
        print(f"  a line that ends with {GOES_ON} continues on the next one")


def _lines() -> Iterator[str]:
    """The entered text, with continued lines joined."""
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # history and editing, where there is any
    kept: list[str] = []
    while True:
        try:
            line = input(("... " if kept else "> ") if asks else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if not kept:
                return
            kept = []
            continue
        except UnicodeDecodeError as error:
            print(f"error: a line is not UTF-8 text ({error})", file=sys.stderr)
            continue
        if line.endswith(GOES_ON):
            kept.append(line.removesuffix(GOES_ON))
            continue
        yield "\n".join([*kept, line])
        kept = []
    if kept:
        yield "\n".join(kept)
