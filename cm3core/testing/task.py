"""Conformance kit of tasks: documents, prompts and answers fit each other, whatever the wording.

class TestMine(TaskContract):
    config = MyTaskConfig()
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    Segment,
    Text,
    TextHole,
    text_of,
)
from cm3core.errors import DataError
from cm3core.interfaces.task import Record, Task
from cm3core.testing._laws import Contract

#: Words of which a law makes texts, each field its own.
_WORDS = ("red", "bell", "is it", "under 3", "café", "don't know", "yes!", "A (b)", "1.")


class TaskContract(Contract[Task]):
    """Laws of `Task`. `max_examples` is of each law."""

    kind: ClassVar[str] = "task"
    max_examples: ClassVar[int | None] = 25

    def build(self, config: Any) -> Task:
        """See `TaskConfig.build`."""
        task: Task = config.build()
        return task

    def record(self, data: st.DataObject) -> dict[str, Any]:
        """A record of the task; override it if fields have values of a special form."""
        record: dict[str, Any] = {"unused": "a further field"}
        for number, (name, kind) in enumerate(self.subject.fields.items()):
            if kind == "text":
                words = data.draw(st.sampled_from(_WORDS), label=name)
                record[name] = f"x{number} {words} y{number}"
            else:
                record[name] = Image(f"picture {number}", _no_pixels)
        return record

    def law_fields_and_responses_are_named(self) -> None:
        """At least one field is given and one asked for; types are "text" or "image"."""
        task = self.subject
        assert set(task.fields.values()) <= {"text", "image"}
        assert task.responses
        assert len(set(task.responses)) == len(task.responses)
        assert set(task.responses) < set(task.fields)

    def law_the_prompt_filled_is_the_document(self, data: st.DataObject) -> None:
        """With the same generator, the prompt is the document with a hole in place of each response,
        and of nothing else."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        prompt = self.subject.prompt(record, _rng(seed))
        assert len(prompt) == len(document)
        holes = 0
        for asked, whole in zip(prompt, document, strict=True):
            number = _num_holes(asked)
            holes += number
            if isinstance(whole, Text):
                assert number == len(whole.responses)
                assert _parts_seen(asked) == _parts_between(whole)
            else:
                assert isinstance(whole, (Image, Codes))
                assert whole.response == bool(number)
                assert number or asked == whole
        assert holes == len(self.subject.responses)

    def law_responses_are_marked(self, data: st.DataObject) -> None:
        """What the document marks are the responses; a text may have the punctuation behind it."""
        record, seed = self.record(data), data.draw(_SEEDS)
        marked: list[Any] = []
        for segment in self.subject.document(record, _rng(seed)):
            if isinstance(segment, Text):
                marked += [segment.text[start:stop] for start, stop in segment.responses]
            elif isinstance(segment, (Image, Codes)) and segment.response:
                marked.append(segment)
        values = [record[name] for name in self.subject.responses]
        assert len(marked) == len(values)
        for value in values:
            assert any(
                one == value if isinstance(value, Image) else str(one).startswith(value)
                for one in marked
            )

    def law_every_wording_has_all_fields(self, data: st.DataObject) -> None:
        """Nothing that is given is left out, whatever wording is drawn."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        texts = text_of(document)
        for name, kind in self.subject.fields.items():
            if kind == "text":
                assert record[name] in texts
            else:
                assert record[name] in document

    def law_prompts_read_no_response(self, data: st.DataObject) -> None:
        """A prompt needs no responses, and is the same with others."""
        record, seed = self.record(data), data.draw(_SEEDS)
        prompt = self.subject.prompt(record, _rng(seed))
        bare = {name: record[name] for name in record if name not in self.subject.responses}
        assert self.subject.prompt(bare, _rng(seed)) == prompt

    def law_answers_are_read_back(self, data: st.DataObject) -> None:
        """`answer` of the whole document gives its responses."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        bare = {name: record[name] for name in record if name not in self.subject.responses}
        found = self.subject.answer(bare, document, _rng(seed))
        assert found == {name: record[name] for name in self.subject.responses}

    def law_the_generator_decides_the_wording(self, data: st.DataObject) -> None:
        """Equal generators give equal documents, and no generator always the same one."""
        record, seed = self.record(data), data.draw(_SEEDS)
        for make in (self.subject, self.make_again()):
            assert make.document(record, _rng(seed)) == self.subject.document(record, _rng(seed))
            assert make.document(record) == self.subject.document(record)
            assert make.prompt(record) == self.subject.prompt(record)

    def law_incomplete_records_are_refused(self, data: st.DataObject) -> None:
        """A field that is missing, empty or of another type is an error that names record and
        field."""
        whole = self.record(data)
        for name, kind in self.subject.fields.items():
            for wrong in (None, " " if kind == "text" else "no picture", 7):
                record: Record = {**whole, name: wrong}
                with pytest.raises(DataError, match=f"record 7.*field '{name}'"):
                    self.subject.document(record, place="record 7")
                if name not in self.subject.responses:
                    with pytest.raises(DataError, match=f"record 7.*field '{name}'"):
                        self.subject.prompt(record, place="record 7")


_SEEDS = st.integers(0, 2**32 - 1)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _no_pixels() -> Any:
    raise AssertionError("a task needs no pixels")


def _num_holes(segment: Segment) -> int:
    if isinstance(segment, MaskedText):
        return sum(isinstance(part, TextHole) for part in segment.parts)
    return int(isinstance(segment, (TextHole, ImageHole)))


def _parts_seen(segment: Segment) -> list[str]:
    """The texts before, between and behind the holes of a text."""
    parts = segment.parts if isinstance(segment, MaskedText) else ()
    if isinstance(segment, Text):
        parts = (segment.text,)
    texts = [""]
    for part in parts if not isinstance(segment, TextHole) else (segment,):
        if isinstance(part, TextHole):
            texts.append("")
        else:
            texts[-1] += part
    return texts


def _parts_between(text: Text) -> list[str]:
    """The texts before, between and behind the responses of a text."""
    ends = [0, *(stop for _, stop in text.responses)]
    starts = [*(start for start, _ in text.responses), len(text.text)]
    return [text.text[end:start] for end, start in zip(ends, starts, strict=True)]


def responses_of(document: Document) -> list[str]:
    """The texts that a document marks, for tests of tasks."""
    return [
        segment.text[start:stop]
        for segment in document
        if isinstance(segment, Text)
        for start, stop in segment.responses
    ]
