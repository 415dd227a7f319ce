"""Tasks defined by their wording: segments of text with the names of fields in braces.

Edit first image following the instruction      a text
{image: source}                                 a given picture
{instruction}                                   a text with a field
{image: target}                                 the response
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.task import Blank, FieldType, Line, Record, Task, TaskConfig

if TYPE_CHECKING:
    import numpy as np

#: A wording: the segments of a document.
Wording = Sequence[str]
_FIELD = re.compile(r"\{(\w+)\}")
_PICTURE = re.compile(r"\{image:\s*(\w+)\}")


def fields_of(wording: Wording) -> dict[str, FieldType]:
    """Return the fields of a wording with their types, in order.

    >>> fields_of(["{image: picture}", "Question: {question} Answer:", "{answer}"])
    {'picture': 'image', 'question': 'text', 'answer': 'text'}
    """
    found: dict[str, FieldType] = {}
    for segment in wording:
        if picture := _PICTURE.fullmatch(segment.strip()):
            found[picture[1]] = "image"
        else:
            found |= dict.fromkeys(_FIELD.findall(segment), "text")
    return found


class WordedTask(Task):
    """A task with one or more wordings; training draws one for each document.

    Args:
        wordings: all have the same fields; the first is the canonical one.
        responses: fields to predict.
    """

    def __init__(self, wordings: Sequence[Wording], responses: Sequence[str]) -> None:
        self.wordings, self._responses = wordings, tuple(responses)
        self._fields = fields_of(wordings[0])
        # parsed once: a data set makes hundreds of thousands of documents
        self._parsed = [[_parsed(segment) for segment in wording] for wording in wordings]

    @property
    def fields(self) -> Mapping[str, FieldType]:
        return self._fields

    @property
    def responses(self) -> tuple[str, ...]:
        return self._responses

    def _lines(self, given: Record, rng: np.random.Generator | None) -> Sequence[Line]:
        place = 0 if rng is None else int(rng.integers(len(self.wordings)))
        return [self._line(segment, given) for segment in self._parsed[place]]

    def _line(self, segment: str | _Words, given: Record) -> Line:
        if isinstance(segment, str):
            picture: Line = Blank(segment) if segment in self._responses else given[segment]
            return picture
        pieces: list[str | Blank] = []
        text = ""
        for before, name in segment.fields:
            text += before
            if name in self._responses:
                pieces += [text, Blank(name)]
                text = ""
            else:
                text += given[name]
        return tuple(piece for piece in [*pieces, text + segment.end] if piece != "")


class _Words(NamedTuple):
    """A segment of text: fields, each with the words before it, and the final words."""

    fields: tuple[tuple[str, str], ...]
    end: str


def _parsed(segment: str) -> str | _Words:
    """Parse a segment of a wording: returns the name of its picture, or its words."""
    if picture := _PICTURE.fullmatch(segment.strip()):
        return picture[1]
    fields, end = [], 0
    for match in _FIELD.finditer(segment):
        fields.append((segment[end : match.start()], match[1]))
        end = match.end()
    return _Words(tuple(fields), segment[end:])


@dataclass(kw_only=True)
class TemplateTaskConfig(TaskConfig):
    """A task worded in the recipe; by default, text to picture.

    Args:
        title: name of the task in the checkpoint and in `--task`; "": "template".
        segments: the document: texts with the names of fields in braces, such as "Colour it {colour}", or
            "{image: NAME}" for a picture.
        paraphrases: further wordings with the same fields, each with any number of segments; training
            draws one.
        response: the fields to predict. An answer that is a text works best as the last segment,
            alone.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "title": TEXT,
        "segments": TEXT,
        "response": TEXT,
        "paraphrases": TEXT,
    }

    title: str = ""
    segments: list[str] = field(default_factory=lambda: ["{caption}", "{image: image}"])
    response: list[str] = field(default_factory=lambda: ["image"])
    paraphrases: list[list[str]] = field(default_factory=list)

    def check(self) -> None:
        """Raise `RecipeError` for an invalid wording."""
        super().check()
        check_wordings([self.segments, *self.paraphrases], self.response)

    def build(self) -> WordedTask:
        self.check()
        return WordedTask([self.segments, *self.paraphrases], self.response)


def check_wordings(wordings: Sequence[Wording], responses: Sequence[str]) -> None:
    """Raise `RecipeError` unless all wordings have the same fields, each once, and the responses are
    among them."""
    names = fields_of(wordings[0])
    for number, wording in enumerate(wordings):
        place = f"task.paraphrases[{number - 1}]" if number else "task.segments"
        own = fields_of(wording)
        if dict(own) != dict(names):
            raise RecipeError(
                place,
                f"has the fields {', '.join(sorted(own)) or 'none'}, but the first wording has "
                f"{', '.join(sorted(names))}",
                "use the same fields in each wording, pictures as {image: NAME}",
            )
        for segment in wording:
            rest = _PICTURE.sub("", _FIELD.sub("", segment))
            alone = _PICTURE.fullmatch(segment.strip()) or "{image:" not in segment
            if not segment.strip() or "{" in rest or "}" in rest or not alone:
                raise RecipeError(
                    place,
                    f"has the segment {segment!r}",
                    "write a text with {field}, or {image: field} alone",
                )
        used = [name for segment in wording for name in _FIELD.findall(segment)]
        if twice := [name for name in responses if used.count(name) > 1]:
            raise RecipeError(place, f"asks for {twice[0]!r} twice", "name each response once")
    if not responses or not set(responses) <= set(names) or len(set(responses)) < len(responses):
        raise RecipeError(
            "task.response",
            f"is {list(responses)}, but the fields are {', '.join(names) or 'none'}",
            "name one or more of them, each once",
        )
