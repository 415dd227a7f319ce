"""Kind `task`: a record of named fields -> the document to train on, with its response marked, and the
prompt that asks for it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

from cm3core.boxes import Boxes
from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    Segment,
    Text,
    TextHole,
)
from cm3core.errors import DataError, PluginError
from cm3core.interfaces.component import ComponentConfig, broken

if TYPE_CHECKING:
    import numpy as np

#: Field -> value: a text (or `Boxes`, which become one) or a picture (`Image`, `Codes`).
Record: TypeAlias = Mapping[str, Any]
FieldType: TypeAlias = Literal["text", "image"]
#: Methods of a model that a task may serve.
#: "structure" is `generate` with a condition.
Method: TypeAlias = Literal["generate", "caption", "ask", "edit", "structure", "upscale"]
#: Default maximum of tokens in a text hole.
DEFAULT_TOKENS = 64
#: Punctuation at the start of a text, up to white space or the end.
_PUNCTUATION = re.compile(r"([^\w\s]+(?=\s|$))?")


@dataclass(kw_only=True)
class TaskConfig(ComponentConfig):
    """Base of tasks' configs."""

    kind: ClassVar[str] = "task"
    #: The method of a model, and the command, that the task is for; "" if it is available from
    #: Python only. A task with `is_default` is used if none is named. Not inherited by subclasses.
    serves: ClassVar[Method | Literal[""]] = ""

    def build(self) -> Task:
        """Return the task."""
        raise NotImplementedError

    def for_untuned(self) -> TaskConfig:
        """The config for a model that was not tuned: its prompts have the form of plain documents, a
        text before its picture. The default is this config."""
        return self


@dataclass(frozen=True)
class Blank:
    """A response's place in a document; `field`: its name."""

    field: str


#: A segment of a document: pieces of text with blanks, or a picture, given or to be generated.
Line: TypeAlias = tuple[str | Blank, ...] | Image | Codes | Blank


class Task(ABC):
    """Makes both the training documents with their responses and the prompts, so that a model is prompted as it
    was trained.

    Records come from data sets (`DocumentSource.record`) or from a caller."""

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, FieldType]:
        """The fields that a record must have, with their types, in order of use."""

    @property
    @abstractmethod
    def responses(self) -> tuple[str, ...]:
        """Names of the fields to generate; the others are given."""

    @abstractmethod
    def _lines(self, given: Record, rng: np.random.Generator | None) -> Sequence[Line]:
        """Return the document's segments with a `Blank` for each response.

        `given` has texts as `str` and no responses, so nothing can leak from them. The blank of a text
        is in a tuple, alone or among pieces; that of a picture is a segment. With `rng`, the wording
        may vary; it is the only source of randomness."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that are given."""
        return tuple(name for name in self.fields if name not in self.responses)

    def document(
        self, record: Record, rng: np.random.Generator | None = None, *, place: str = "record"
    ) -> Document:
        """Return the training document, its responses marked.

        Args:
            record: all fields; additional ones are ignored.
            rng: draws the wording; None: the first one.
            place: the record's name in errors.

        Raises:
            DataError: a field is missing, empty or of another type.
        """
        values = self._checked(record, tuple(self.fields), place)
        return tuple(_filled(line, values) for line in self._checked_lines(values, rng))

    def prompt(
        self,
        record: Record,
        rng: np.random.Generator | None = None,
        *,
        place: str = "record",
        max_tokens: int | None = DEFAULT_TOKENS,
    ) -> Document:
        """Return the same document with a hole for each response, whose value is not read.

        Args:
            record, rng, place: see `document`.
            max_tokens: of each text hole, see `TextHole`.

        Raises:
            DataError: a given field is missing, empty or of the wrong type.
        """
        values = self._checked(record, self.given, place)
        hole = TextHole(max_tokens)
        return tuple(_with_holes(line, hole) for line in self._checked_lines(values, rng))

    def answer(
        self, record: Record, filled: Document, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """Return the responses in a prompt whose holes have been filled, by field.

        Args:
            record, rng: those of the prompt.
            filled: the prompt's document without holes: `Completion.document`.
        """
        values = self._checked(record, self.given, "record")
        found: dict[str, Any] = {}
        for line, segment in zip(self._checked_lines(values, rng), filled, strict=True):
            if isinstance(line, Blank):
                found[line.field] = segment
            elif isinstance(line, tuple) and isinstance(segment, Text):
                found |= _read(line, segment.text)
        return found

    def _checked(self, record: Record, names: Sequence[str], place: str) -> dict[str, Any]:
        """The named fields, texts as `str`."""
        values: dict[str, Any] = {}
        for name in names:
            value = record.get(name)
            if isinstance(value, Boxes):
                value = value.text
            if value is None or (isinstance(value, str) and not value.strip()):
                raise DataError(
                    place,
                    f"has {'no' if value is None else 'an empty'} field {name!r}",
                    f"give it; the task's fields are {', '.join(self.fields)}",
                )
            is_text = self.fields[name] == "text"
            if not isinstance(value, str if is_text else (Image, Codes)):
                raise DataError(
                    place,
                    f"has a field {name!r} that is {type(value).__name__}, not "
                    f"{'a text' if is_text else 'a picture'}",
                    f"give one; the task's fields are {', '.join(self.fields)}",
                )
            values[name] = value.strip() if isinstance(value, str) else value
        return values

    def _checked_lines(
        self, values: Mapping[str, Any], rng: np.random.Generator | None
    ) -> Sequence[Line]:
        """`_lines` of the given values; raises `PluginError` unless each response occurs once."""
        given = {name: value for name, value in values.items() if name not in self.responses}
        lines = self._lines(given, rng)
        blanks = [
            piece.field
            for line in lines
            for piece in (line if isinstance(line, tuple) else [line])
            if isinstance(piece, Blank)
        ]
        if sorted(blanks) != sorted(self.responses):
            raise broken(
                self,
                "the_prompt_filled_is_the_document",
                f"its document has blanks for {', '.join(blanks) or 'nothing'}, but its responses are "
                f"{', '.join(self.responses)}",
            )
        return lines


def _filled(line: Line, values: Mapping[str, Any]) -> Segment:
    """A segment with its responses filled in and marked."""
    if isinstance(line, Blank):
        return cast("Segment", replace(values[line.field], response=True))
    if not isinstance(line, tuple):
        return line
    text, responses = "", []
    for place, piece in enumerate(line):
        if isinstance(piece, Blank):
            start = len(text)
            text += values[piece.field]
            end = _punctuation_after(line, place)
            responses.append((start, len(text) + len(end)))
        else:
            text += piece
    return Text(text, tuple(responses))


def _with_holes(line: Line, hole: TextHole) -> Segment:
    """A segment with holes for its responses.

    A text tokenizer may join the end of a response to the punctuation after it ("red!" and "." to
    "!."), so the hole includes that too."""
    if isinstance(line, Blank):
        return ImageHole()
    if not isinstance(line, tuple):
        return line
    parts: list[str | TextHole] = []
    end = ""
    for place, piece in enumerate(line):
        if isinstance(piece, Blank):
            end = _punctuation_after(line, place)
            parts.append(hole)
        else:
            parts.append(piece[len(end) :])
            end = ""
    parts = [part for part in parts if part != ""]
    if all(isinstance(part, str) for part in parts):
        return Text("".join(map(str, parts)))
    return hole if len(parts) == 1 else MaskedText(tuple(parts))


def _punctuation_after(line: tuple[str | Blank, ...], place: int) -> str:
    """Punctuation that directly follows a blank."""
    after = line[place + 1] if place + 1 < len(line) else ""
    match = _PUNCTUATION.match(after) if isinstance(after, str) else None
    return (match[0] or "") if match else ""


def _read(line: tuple[str | Blank, ...], text: str) -> dict[str, str]:
    """The texts in the blanks of a line."""
    places = [place for place, piece in enumerate(line) if isinstance(piece, Blank)]
    names = [piece.field for piece in line if isinstance(piece, Blank)]
    if len(places) == 1:
        # the model may omit the punctuation after its answer
        before = "".join(str(piece) for piece in line[: places[0]])
        end = _punctuation_after(line, places[0])
        after = "".join(str(piece) for piece in line[places[0] + 1 :])[len(end) :]
        return {names[0]: text[len(before) : len(text) - len(after)].removesuffix(end)}
    pattern = "".join("(.*?)" if isinstance(piece, Blank) else re.escape(piece) for piece in line)
    match = re.fullmatch(pattern, text, re.DOTALL)
    return {} if match is None else dict(zip(names, match.groups(), strict=True))


def fields_of_type(task: Task, names: Sequence[str], kind: FieldType) -> list[str]:
    """The names, of those given, whose field has this type."""
    return [name for name in names if task.fields[name] == kind]


def instruction_field(task: Task) -> str | None:
    """The field of a task that says how to change a picture: the one text that is given with pictures, where the
    response is a picture; None: it is no such task."""
    texts = fields_of_type(task, task.given, "text")
    pictures = fields_of_type(task, task.given, "image")
    changes = [task.fields[name] for name in task.responses] == ["image"]
    return texts[0] if len(texts) == 1 and pictures and changes else None


def check_serves(task: Task, method: str, texts: int, pictures: int, response: FieldType) -> None:
    """Raise `PluginError` unless a task's fields match the inputs and output of a model's method."""
    kinds = [task.fields[name] for name in task.given]
    if (
        kinds.count("text") != texts
        or kinds.count("image") != pictures
        or [task.fields[name] for name in task.responses] != [response]
    ):
        raise PluginError(
            f"task {type(task).__name__}",
            f"takes {', '.join(task.given)} and returns {', '.join(task.responses)}, which does not "
            f"match the method {method!r}",
            "use it from Python: model.do(task, record)",
        )
