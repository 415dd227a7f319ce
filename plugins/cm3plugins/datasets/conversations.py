"""Data set `conversations`: LLaVA's format, also with pictures in answers (Lumina-mGPT's).

    [{"id": "7", "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A bell."}]}]

`image` is a path or a list of paths; `<image>` or `<|image|>` marks the position of each (haotian-liu/LLaVA,
docs/Finetune_Custom_Data.md; Alpha-VLLM/Lumina-mGPT, TRAIN.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from cm3core.errors import DataError
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.datasets.annotations import (
    Numbered,
    checked_text,
    folder_at,
    list_in,
    name_in,
    object_of,
)
from cm3plugins.datasets.file_source import (
    FileSourceConfig,
    FoundRecord,
    boundary,
    existing,
    skipped,
)
from cm3plugins.datasets.jsonl import PicturesOfLines
from cm3plugins.datasets.table import Row, picture_of, rows

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3plugins.datasets.file_source import Picture
    from cm3plugins.datasets.pictures import PictureIndex

_MARK = re.compile(r"<image>|<\|image\|>")
_USER, _MODEL = ("human", "user"), ("gpt", "assistant")
#: Text before each user turn except the first, and before each answer; as in the task `chat`.
USER, ASSISTANT = "User:", "Assistant:"


class Turn(NamedTuple):
    """One side's turn: texts and pictures in order, without empty texts."""

    pieces: tuple[Picture | str, ...]

    @property
    def text(self) -> str:
        return " ".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def pictures(self) -> list[Picture]:
        return [piece for piece in self.pieces if not isinstance(piece, str)]


@dataclass(kw_only=True)
class ConversationsConfig(FileSourceConfig):
    """Conversations of questions and answers, with pictures in both (LLaVA, Lumina-mGPT).

    Args:
        path: a JSON file with a list of conversations, or one conversation per line.
        pictures: folder of the pictures; "": the file's folder.
        turns: "whole": a document is a conversation with its answers marked as responses; needs no task.
            "marked": the same without words for the speaker: the model's layout ends turns (Chameleon,
            Lumina-mGPT; `Model.chat`). "each": a record is an answer with the turns before it, in the fields
            image, conversation, answer (task `chat`); answers with pictures need another value.
        allow_outside: read pictures outside their folder, through absolute paths, `../` or links;
            false: skip their records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the conversations"),
        "pictures": Outside(READS, "its pictures"),
    }

    path: str
    pictures: str = ""
    turns: Literal["whole", "marked", "each"] = "whole"
    allow_outside: bool = False

    @property
    def has_turns(self) -> bool:
        """Whether `turns` is "marked"."""
        return self.turns == "marked"

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records in the order of the file."""
        path = existing(self.path, folder=False)
        folder = folder_at(self.pictures, "pictures") if self.pictures else path.parent
        inside = boundary(folder, self.allow_outside)
        pictures = PicturesOfLines(folder, inside, index, "the pictures' folder")
        numbered = Numbered()
        for row in rows(path, ["id", "image", "conversations"], index):
            try:
                turns, name = _turns(row, pictures), _name(row)
            except DataError as error:
                yield skipped(error)
                continue
            name = numbered(name)
            shown = [picture for turn in turns for picture in turn.pictures]
            # conversations about the same picture are in the same split
            group = shown[0].key if shown else name
            place = row.place if isinstance(row, Row) else ""
            if self.turns != "each":
                make = _whole if self.turns == "whole" else _marked
                yield make(name, place, group, turns)
                continue
            for number in range(1, len(turns), 2):
                try:
                    yield _answer(f"{name}/{number // 2}", place, group, turns[: number + 1])
                except DataError as error:
                    yield skipped(error)


def _name(row: Row | DataError) -> str:
    assert isinstance(row, Row)  # otherwise `_turns` raised the error
    given = row.values.get("id") is not None
    return name_in(row.place, row.values, "id") if given else row.number


def _turns(row: Row | DataError, pictures: PicturesOfLines) -> list[Turn]:
    """Return the alternating turns, starting with the user; raises `DataError` for any other order."""
    if isinstance(row, DataError):
        raise row
    place, values = row.place, row.values
    images = values.get("image")
    images = [] if images is None else images if isinstance(images, list) else [images]
    found = [picture_of(place, image, "image", pictures) for image in images]
    said = [
        _said(f"{place}, turn {number}", turn, number)
        for number, turn in enumerate(list_in(place, values, "conversations"))
    ]
    if not said or len(said) % 2:
        cause = "ends with a question" if said else "has no turn"
        raise DataError(place, cause, "answer each question, or remove the record")
    marks = sum(len(_MARK.findall(text)) for text in said)
    if marks != len(found):
        raise DataError(
            place,
            f"has {len(found)} pictures in 'image', but {marks} <image> marks in its turns",
            "mark the position of each picture",
        )
    remaining = iter(found)
    return [_turn(f"{place}, turn {number}", text, remaining) for number, text in enumerate(said)]


def _said(place: str, value: Any, number: int) -> str:
    """Return the text of a turn, after checking its side."""
    turn = object_of(place, value)
    side, text = turn.get("from"), turn.get("value")
    if not isinstance(side, str) or side not in (*_USER, *_MODEL):
        raise DataError(
            place, f"its 'from' is {side!r}", f"use {' or '.join((_USER[0], _MODEL[0]))}"
        )
    if (side in _MODEL) != bool(number % 2):
        cause = f"two turns of {side!r} follow each other"
        if number == 0:
            cause = "the conversation starts with an answer"
        raise DataError(place, cause, "alternate questions and answers, starting with a question")
    if not isinstance(text, str) or not text.strip():
        raise DataError(place, "its 'value' is not a non-empty text", "write the turn's text")
    return checked_text(place, "value", text)


def _turn(place: str, text: str, pictures: Iterator[Picture]) -> Turn:
    """Return a turn, with its text split at the picture marks."""
    pieces: list[Picture | str] = []
    for number, piece in enumerate(_MARK.split(text)):
        pieces += [next(pictures)] if number else []
        pieces += [piece.strip()] if piece.strip() else []
    return Turn(tuple(pieces))


def _whole(name: str, place: str, group: str, turns: list[Turn]) -> FoundRecord:
    """Return a conversation as a document: before an answer, the question's text ends with "Assistant:"."""
    parts: list[Picture | tuple[str, ...]] = []
    responses: set[int] = set()
    for number, turn in enumerate(turns):
        answer = bool(number % 2)
        pieces = list(turn.pieces)
        if not answer:
            if number and isinstance(pieces[0], str):
                pieces[0] = f"{USER} {pieces[0]}"
            elif number:
                pieces.insert(0, USER)
            if isinstance(pieces[-1], str):
                pieces[-1] = f"{pieces[-1]} {ASSISTANT}"
            else:
                pieces.append(ASSISTANT)
        for piece in pieces:
            if answer:
                responses.add(len(parts))
            parts.append((piece,) if isinstance(piece, str) else piece)
    return FoundRecord(name, place, tuple(parts), responses=frozenset(responses), group=group)


def _marked(name: str, place: str, group: str, turns: list[Turn]) -> FoundRecord:
    """Return a conversation as a document with marked turns."""
    parts: list[Picture | tuple[str, ...]] = []
    responses: set[int] = set()
    starts: set[int] = set()
    for number, turn in enumerate(turns):
        starts.add(len(parts))
        if number % 2:
            responses |= {len(parts) + piece for piece in range(len(turn.pieces))}
        parts += [(piece,) if isinstance(piece, str) else piece for piece in turn.pieces]
    return FoundRecord(
        name,
        place,
        tuple(parts),
        responses=frozenset(responses),
        turns=frozenset(starts),
        group=group,
    )


def _answer(name: str, place: str, group: str, turns: list[Turn]) -> FoundRecord:
    """Return the last turn as an answer to the earlier ones, in the fields of the task `chat`."""
    *before, answer = turns
    shown = [picture for turn in before for picture in turn.pictures]
    cause = None
    if answer.pictures or any(turn.pictures for turn in before[1::2]):
        cause = "has a picture in an answer, which turns=each does not support"
    elif len(shown) > 1:
        cause = f"has {len(shown)} pictures, but turns=each supports one"
    if cause is not None:
        raise DataError(
            f"{place}, turn {len(before)}", cause, "use dataset.turns=whole without a task"
        )
    said = [
        turn.text if not number else f"{ASSISTANT if number % 2 else USER} {turn.text}"
        for number, turn in enumerate(before)
    ]
    if not (conversation := " ".join(text for text in said if text).strip()):
        raise DataError(
            f"{place}, turn 0", "has a picture but no question", "use dataset.turns=whole"
        )
    names = ("image", "conversation", "answer")
    parts: tuple[Picture | tuple[str, ...], ...] = (*shown, (conversation,), (answer.text,))
    return FoundRecord(name, place, parts, names=names[-len(parts) :], group=group)
