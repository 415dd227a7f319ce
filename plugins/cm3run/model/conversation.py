"""A conversation that goes on: its turns so far, and what is said next."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.arguments import checked
from cm3core.document import PixelArray
from cm3core.errors import GenerationError
from cm3run.generation.engine import Event, Failed, candidate_seed
from cm3run.model.turns import Part, Reply, ReplyPicture, ReplyReady, Turn

if TYPE_CHECKING:
    from cm3run.model.chatting import Chatting


class Conversation:
    """A conversation with a model.

    >>> talk = Conversation(cm3core.load("anole"))                     # doctest: +SKIP
    >>> talk.say("What is it?", Path("bell.png")).text                 # doctest: +SKIP
    'A bell.'
    >>> talk.say("Draw it in green.", answer="image").pictures[0]      # doctest: +SKIP

    Args:
        model: that replies.
        turns: said so far.
        seed: of the first reply; later ones have seeds that follow from it, so that a conversation
            can be repeated.
        options: of every reply, see `Model.chat`.

    Raises:
        GenerationError: the model was not tuned for conversations.
    """

    def __init__(
        self, model: Chatting, turns: list[Turn] | None = None, *, seed: int = 0, **options: Any
    ) -> None:
        model.check_converses(force=bool(options.get("force")))
        self.model, self.seed, self.options = model, seed, options
        #: Said so far, replies too.
        self.turns: list[Turn] = [] if turns is None else list(turns)

    @property
    def next_seed(self) -> int:
        """The seed of the next reply."""
        return candidate_seed(self.seed, sum(turn.role == "assistant" for turn in self.turns))

    @checked(GenerationError)
    def say(self, text: str, *pictures: Path | PixelArray | ReplyPicture, **options: Any) -> Reply:
        """Say something, pictures before the text, and return the reply; both are added to `turns`.

        `options`: of this reply, see `Model.chat`. What fails is not added.
        """
        for event in self.stream(text, *pictures, **options):
            if isinstance(event, ReplyReady):
                return event.reply
        raise AssertionError("a stream ends with a reply")

    @checked(GenerationError)
    def stream(
        self, text: str, *pictures: Path | PixelArray | ReplyPicture, **options: Any
    ) -> Generator[Event, None, None]:
        """The events of `say` with these arguments, as they happen; the last is `ReplyReady`. Leaving
        it ends the work, and nothing is added."""
        parts: tuple[Part, ...] = (*pictures, *([text] if text.strip() else []))
        said = [*self.turns, Turn("user", parts)]
        wanted = {"seed": self.next_seed, **self.options, **options}
        with closing(self.model.chat_events([said], **wanted)) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, ReplyReady):
                    self.turns = [*said, event.reply.turn] if event.reply.parts else said[:-1]
                yield event

    def undo(self) -> Turn | None:
        """Take back what was said last, and its reply. Returns it; None: nothing was said."""
        while self.turns:
            last = self.turns.pop()
            if last.role == "user":
                return last
        return None

    def reset(self) -> None:
        """Begin again."""
        self.turns = []
