"""The documents that are shown before a thing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cm3core.document import Document, Image, PixelArray
from cm3run.attribution import Credit


@dataclass(frozen=True, eq=False)
class Shown:
    """A document that may be prepended.

    Args:
        id, text: its name in its source, and its caption.
        document: with its picture as codes.
        pixels: its picture.
        credit: its licence and source; None: a user's own.
        original: the file that it was read from; None: there is none.
        small: how far its ink reaches, as a share of what nearly all drawings of its set do, at most 1.
    """

    id: str
    text: str
    document: Document
    pixels: PixelArray
    credit: Credit | None
    original: bytes | None = None
    small: float = 1.0

    @property
    def thing(self) -> str:
        """What it shows."""
        return thing_of(self.text)

    @property
    def style(self) -> str:
        """The words of its style."""
        return style_of_caption(self.text)


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents for a thing.

    Args:
        name: the thing.
        kind: "restyled": the memory has it in other hands; "composed": it has parts of it, or nothing.
        things: of the thing, from the memory; those nearest in hand first. Of one that is composed of the set's own parts,
            the set's drawings of its base, such as "car" of "car off".
        hands: of the set, which show other things; the most alike first. Of one that is composed of the set's own parts,
            examples with the other words of its name, such as "bell off".
        without: for each of such examples what it shows without these words; () for things that are not so composed.
        remark: how the name was read, and which names the index has in its place; "": as it is.
    """

    name: str
    kind: str
    things: Sequence[Shown]
    hands: Sequence[Shown]
    without: Sequence[Shown] = ()
    remark: str = ""

    def pairs(self, number: int) -> list[tuple[Shown, ...]]:
        """Documents for so many candidates: each with a version of the thing and a drawing in the hand, as different
        as there are some; without the thing, two in the hand."""
        things, hands = self.things[:number], self.hands
        pairs: list[tuple[Shown, ...]] = []
        for place in range(number):
            first = things or hands[1:]
            own = [first[place % len(first)]] if first else []
            own += [hands[place % len(hands)]] if hands else []
            pairs.append(tuple(dict.fromkeys(own)))
        return pairs


def thing_of(text: str) -> str:
    """What a caption names, before its style and set."""
    return text.partition(",")[0].strip()


def picture_of(document: Document) -> PixelArray:
    """The picture of a document that has one."""
    return next(one.load() for one in document if isinstance(one, Image))


def style_of_caption(text: str) -> str:
    """The words of a caption between the thing and the set."""
    return text.partition(",")[2].rpartition(",")[0].strip()
