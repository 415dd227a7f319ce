"""Conversations: turns of texts and pictures, and the model's replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from cm3core.arguments import Called
from cm3core.document import Codes, PixelArray, Pixels
from cm3core.errors import GenerationError
from cm3core.images import png_bytes
from cm3run.generation.events import Event

Role: TypeAlias = Literal["user", "assistant"]
#: The kind of reply: chosen by the model, a text without pictures, or one picture.
Answer: TypeAlias = Literal["any", "text", "image"]
ANSWERS: tuple[Answer, ...] = ("any", "text", "image")
#: Names of the speakers in a conversation written as one text.
SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, eq=False)
class ReplyPicture:
    """A picture of a reply.

    Args:
        pixels: uint8 [height, width, 3], the image tokenizer's size.
        codes: the picture's codes, which later turns read.
        seed: of this picture's draws.
        log_probability: nats, see `Completion`.
        note: of an edited picture, see `GeneratedImage`.
    """

    pixels: PixelArray
    codes: Codes
    seed: int
    log_probability: float
    note: str = ""

    def _repr_png_(self) -> bytes:
        """The picture, for display in notebooks."""
        return png_bytes(self.pixels)


#: A text, or a picture: its file, RGB pixels uint8 [height, width, 3], or one that a model drew.
Part: TypeAlias = Annotated[str, Called("a text")] | Path | Pixels | ReplyPicture


@dataclass(frozen=True, eq=False)
class Turn:
    """One speaker's turn: texts and pictures in order. A `str` is a text; a file must be a `Path`."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, joined by newlines."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[Path | PixelArray | ReplyPicture]:
        """Its pictures."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True, eq=False)
class Reply:
    """A model's reply.

    Args:
        parts: texts and pictures in order.
        seed: the reply's; the same conversation and seed give the same reply.
        finish: "stop": the model ended its turn; "length": `max_tokens` or the decoder's context was reached.
        turns_read, turns_left_out: numbers of the turns before the last one.
        log_probability: nats, see `Completion`; of all parts.
    """

    parts: tuple[str | ReplyPicture, ...]
    seed: int
    finish: Literal["stop", "length"]
    turns_read: int
    turns_left_out: int
    log_probability: float

    @property
    def text(self) -> str:
        """Its texts, joined by newlines."""
        return self.turn.text

    @property
    def pictures(self) -> list[ReplyPicture]:
        """Its pictures."""
        return [part for part in self.parts if isinstance(part, ReplyPicture)]

    @property
    def turn(self) -> Turn:
        """The reply as a turn of the conversation."""
        return Turn("assistant", self.parts)

    def _repr_png_(self) -> bytes | None:
        """The last picture, if there is one, for display in notebooks."""
        return png_bytes(self.pictures[-1].pixels) if self.pictures else None


@dataclass(frozen=True, eq=False)
class ReplyPart(Event):
    """A text or a picture of a reply is finished: part `number`. In all events of a reply, `request` is the
    conversation's number; in the others, `segment` is the part's number."""

    number: int
    part: str | ReplyPicture


@dataclass(frozen=True, eq=False)
class ReplyReady(Event):
    """A reply is finished."""

    reply: Reply


def turns_of(conversation: str | Sequence[Turn]) -> list[Turn]:
    """The turns of a conversation, the last one the user's; a single text is one turn.

    Raises:
        GenerationError: there are no turns, one is empty, or the last isn't the user's.
    """
    turns = [Turn("user", (conversation,))] if isinstance(conversation, str) else list(conversation)
    for number, turn in enumerate(turns):
        if not turn.pictures and not turn.text.strip():
            raise GenerationError(
                f"conversation, turn {number}", "is empty", "say something, or show a picture"
            )
    if not turns or turns[-1].role != "user":
        raise GenerationError(
            "conversation",
            "doesn't end with a turn of the user" if turns else "has no turn",
            "add a turn of the user",
        )
    return turns


def as_text(said: Sequence[tuple[str, str]]) -> str:
    """(role, text) of turns as one text, in the form that conversation tasks read: a question at the
    beginning has no speaker.

    >>> as_text([("user", "What is it?"), ("assistant", "A bell."), ("user", "And now?")])
    'What is it? Assistant: A bell. User: And now?'
    """
    named = [f"{SPEAKERS[role]}: {text}" for role, text in said]
    return " ".join([said[0][1] if said[0][0] == "user" else named[0], *named[1:]])


def beginnings(roles: Sequence[str]) -> list[int]:
    """The possible numbers of turns before the last one to read, so that the first turn read is the user's;
    ascending.

    Args:
        roles: of the turns before the last one.

    >>> beginnings(["user", "assistant", "user", "assistant"])
    [0, 2, 4]
    """
    number = len(roles)
    return [0, *(number - place for place in reversed(range(number)) if roles[place] == "user")]


def most_that_fit(some: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of `some` ascending numbers of turns that fits, or the first if none does. Assumes that more turns
    never fit better.

    >>> most_that_fit([0, 2, 4, 6], lambda number: number < 5)
    4
    """
    low, high = 0, len(some)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(some[middle]) else (low, middle)
    return some[low]
