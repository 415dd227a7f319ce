"""Conformance kit of tasks: documents, prompts and answers match for every wording.

class TestMine(TaskContract):
    config = MyTaskConfig()
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
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
from cm3core.interfaces.task import Record, Task, TaskConfig, check_serves
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import holds, refuses, same, shown
from cm3kits._module_laws import Outputs
from cm3run.tasks import SIGNATURES

#: Words for the texts of laws; each field gets different ones.
_WORDS = ("red", "bell", "is it", "under 3", "café", "don't know", "yes!", "A (b)", "1.")


class TaskContract(ConfigLaws[Task]):
    """Laws of `Task`. `max_examples` applies to each law."""

    kind: ClassVar[str] = "task"
    max_examples: ClassVar[int | None] = 25

    def build(self, config: Any) -> Task:
        """See `TaskConfig.build`."""
        task: Task = config.build()
        return task

    def record(self, data: st.DataObject) -> dict[str, Any]:
        """Draw a record of the task; override it if fields need values in a special format."""
        record: dict[str, Any] = {"unused": "a further field"}
        for number, (name, kind) in enumerate(self.subject.fields.items()):
            if kind == "text":
                words = data.draw(st.sampled_from(_WORDS), label=name)
                record[name] = f"x{number} {words} y{number}"
            else:
                record[name] = Image(f"picture {number}", _no_pixels)
        return record

    def observe(self, component: Task) -> Outputs:
        """Return fields, and documents and prompts of a record, in many wordings."""
        records: list[dict[str, Any]] = [{} for _ in range(4)]
        for place, record in enumerate(records):
            for number, (name, kind) in enumerate(component.fields.items()):
                word = _WORDS[(number + 2 * place) % len(_WORDS)]
                picture = Image(f"picture {number}", _no_pixels)
                record[name] = f"x{number} {word} y{place}" if kind == "text" else picture
        found: Outputs = {
            "fields": dict(component.fields),
            "responses": list(component.responses),
            "documents": [],
            "prompts": [],
        }
        for record in records:
            for seed in (None, *range(12)):
                rngs = [None if seed is None else _rng(seed) for _ in "12"]
                found["documents"].append(shown_segments(component.document(record, rngs[0])))
                found["prompts"].append(shown_segments(component.prompt(record, rngs[1])))
        return found

    def declared(self, component: Task) -> Iterator[tuple[str, bool, str, Any]]:
        """Fields that are given."""
        wanted = tuple(name for name in component.fields if name not in component.responses)
        yield "given", tuple(component.given) == wanted, str(wanted), component.given
        if self.config is None:
            return
        if method := vars(type(self.config)).get("serves", ""):
            holds(method in SIGNATURES, "looked at serves", f"one of {list(SIGNATURES)}", method)
            check_serves(component, method, *SIGNATURES[method])
        untuned = self.config.for_untuned()
        good = isinstance(untuned, TaskConfig)
        yield "for_untuned() of the config", good, "a task's config", type(untuned).__name__
        fields = dict(self.build(untuned).fields)
        wanted_fields = dict(component.fields)
        did = "the fields of the task that for_untuned() of the config builds"
        yield did, fields == wanted_fields, str(wanted_fields), fields

    def law_fields_and_responses_are_named(self) -> None:
        """At least one field is an input and one a response; types are "text" or "image"."""
        task, did = self.subject, "looked at fields and responses"
        kinds = set(task.fields.values())
        holds(kinds <= {"text", "image"}, did, 'types "text" or "image"', sorted(kinds))
        responses = list(task.responses)
        holds(responses, did, "at least one response", "none")
        holds(len(set(responses)) == len(responses), did, "each response once", responses)
        holds(
            set(responses) < set(task.fields),
            did,
            f"responses among the fields {list(task.fields)}, and at least one input field",
            responses,
        )

    def law_the_prompt_filled_is_the_document(self, data: st.DataObject) -> None:
        """With the same generator, the prompt is the document with exactly each response replaced by a
        hole."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        prompt = self.subject.prompt(record, _rng(seed))
        did = f"made document and prompt of a record, with default_rng({seed})"
        told = f"{shown_segments(prompt)} of {shown_segments(document)}"
        same(len(prompt), len(document), f"{did}, and counted segments")
        holes = 0
        for place, (asked, whole) in enumerate(zip(prompt, document, strict=True)):
            number, at = _num_holes(asked), f"segment {place}"
            holes += number
            if isinstance(whole, Text):
                expected = f"{len(whole.responses)} holes"
                holds(number == len(whole.responses), did, expected, told, where=at)
                around = f"{did}, and compared the texts around the holes of {at}"
                same(_parts_seen(asked), _parts_between(whole), around)
            else:
                known = isinstance(whole, (Image, Codes))
                holds(known, did, "a text or a picture", type(whole).__name__, where=at)
                is_response = getattr(whole, "response", False)
                good = is_response == bool(number) and (number or asked == whole)
                holds(good, did, "a hole for each response alone", told, where=at)
        expected = f"a hole for each of {list(self.subject.responses)}"
        holds(holes == len(self.subject.responses), did, expected, f"{holes} holes: {told}")

    def law_responses_are_marked(self, data: st.DataObject) -> None:
        """The document marks exactly the responses; a text may include the punctuation after it."""
        record, seed = self.record(data), data.draw(_SEEDS)
        marked: list[Any] = []
        for segment in self.subject.document(record, _rng(seed)):
            if isinstance(segment, Text):
                marked += [segment.text[start:stop] for start, stop in segment.responses]
            elif isinstance(segment, (Image, Codes)) and segment.response:
                marked.append(segment)
        values = {name: record[name] for name in self.subject.responses}
        did = f"made the document of a record, with default_rng({seed}), and looked at its marks"
        told = [one if isinstance(one, str) else shown(one) for one in marked]
        holds(len(marked) == len(values), did, f"{len(values)} responses", told)
        for name, value in values.items():
            found = any(
                one == value if isinstance(value, Image) else str(one).startswith(value)
                for one in marked
            )
            holds(found, did, f"the response {name!r}: {shown(value)}", told)

    def law_every_wording_has_all_fields(self, data: st.DataObject) -> None:
        """Every wording includes all fields."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        did = f"made the document of a record, with default_rng({seed})"
        for name, kind in self.subject.fields.items():
            value = record[name]
            there = value in text_of(document) if kind == "text" else value in document
            expected = f"the field {name!r} in it: {shown(value)}"
            holds(there, did, expected, shown_segments(document))

    def law_prompts_read_no_response(self, data: st.DataObject) -> None:
        """A prompt needs no responses, and does not depend on them."""
        record, seed = self.record(data), data.draw(_SEEDS)
        prompt = self.subject.prompt(record, _rng(seed))
        bare = {name: record[name] for name in record if name not in self.subject.responses}
        did = (
            f"made the prompt of a record with its responses and without, with default_rng({seed})"
        )
        same(self.subject.prompt(bare, _rng(seed)), prompt, did)

    def law_answers_are_read_back(self, data: st.DataObject) -> None:
        """`answer` of the complete document returns its responses."""
        record, seed = self.record(data), data.draw(_SEEDS)
        document = self.subject.document(record, _rng(seed))
        bare = {name: record[name] for name in record if name not in self.subject.responses}
        found = self.subject.answer(bare, document, _rng(seed))
        wanted = {name: record[name] for name in self.subject.responses}
        same(found, wanted, f"read the answer of {shown_segments(document)}")

    def law_the_generator_decides_the_wording(self, data: st.DataObject) -> None:
        """Equal generators give equal documents; without a generator the document is always the same."""
        record, seed = self.record(data), data.draw(_SEEDS)
        for make, how in ((self.subject, "twice"), (self.make_again(), "with two of one config")):
            did = f"made the document of a record {how}, "
            whole = self.subject.document(record, _rng(seed))
            same(make.document(record, _rng(seed)), whole, f"{did}with default_rng({seed})")
            bare = f"{did}without a generator"
            same(make.document(record), self.subject.document(record), bare)
            same(make.prompt(record), self.subject.prompt(record), f"{bare}: the prompt")

    def law_incomplete_records_are_refused(self, data: st.DataObject) -> None:
        """A missing or empty field, or one with another type, raises an error that names record and
        field."""
        whole = self.record(data)
        for name, kind in self.subject.fields.items():
            for wrong in (None, " " if kind == "text" else "no picture", 7):
                record: Record = {**whole, name: wrong}
                calls = {"document": self.subject.document, "prompt": self.subject.prompt}
                if name in self.subject.responses:
                    del calls["prompt"]
                for what, call in calls.items():
                    refuses(
                        lambda call=call, record=record: call(record, place="record 7"),  # type: ignore[misc]  # a default
                        f"made the {what} of a record whose field {name!r} is {wrong!r}",
                        DataError,
                        match=f"record 7.*field '{name}'",
                    )


def shown_segments(document: Document) -> str:
    """Describe a document or prompt in one line."""
    parts = []
    for segment in document:
        if isinstance(segment, Text):
            parts.append(repr(segment.text))
        elif isinstance(segment, MaskedText):
            parts.append(
                "".join("[...]" if isinstance(one, TextHole) else one for one in segment.parts)
            )
        elif isinstance(segment, Image):
            parts.append(f"<{segment.key}>")
        else:
            parts.append(
                {"TextHole": "[...]", "ImageHole": "<...>"}.get(type(segment).__name__, "<codes>")
            )
    return " ".join(parts)


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
    """Return the texts before, between and after the holes of a text."""
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
    """Return the texts before, between and after the responses of a text."""
    ends = [0, *(stop for _, stop in text.responses)]
    starts = [*(start for start, _ in text.responses), len(text.text)]
    return [text.text[end:start] for end, start in zip(ends, starts, strict=True)]


def responses_of(document: Document) -> list[str]:
    """Return the texts marked in a document, for tests of tasks."""
    return [
        segment.text[start:stop]
        for segment in document
        if isinstance(segment, Text)
        for start, stop in segment.responses
    ]
