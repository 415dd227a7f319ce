"""The tasks' kit: a right task passes, and each law fails for one that is wrong in just that way."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from cm3core.document import Image, ImageHole, Text
from cm3core.interfaces.task import Blank, Task, TaskConfig
from cm3kits.task import TaskContract
from kit_mutants import assert_covers, assert_law_fails, cases


class Colour(Task):
    """Right: a picture and a colour to the picture in that colour, named."""

    fields = MappingProxyType(
        {"source": "image", "colour": "text", "name": "text", "target": "image"}
    )
    responses = ("name", "target")

    def _lines(self, given, rng):
        verb = "Colour" if rng is None else str(rng.choice(["Colour", "Paint"]))
        return [
            given["source"],
            (f"{verb} it {given['colour']}.",),
            ("It is a ", Blank("name"), ", then."),
            Blank("target"),
        ]


@dataclass(kw_only=True)
class ColourConfig(TaskConfig):
    def build(self) -> Task:
        return Colour()


class TestRight(TaskContract):
    config = ColourConfig()


class AsksForAll(Colour):
    responses = ("source", "colour", "name", "target")

    def _lines(self, given, rng):
        return [Blank("source"), (Blank("colour"), " ", Blank("name")), Blank("target")]


class HasStrangeTypes(Colour):
    fields = MappingProxyType({**Colour.fields, "sound": "audio"})


class AsksOtherwise(Colour):
    def prompt(self, record, rng=None, **options):
        return (Text("So:"), *super().prompt(record, rng, **options))


class HidesMore(Colour):
    def prompt(self, record, rng=None, **options):
        return (ImageHole(), *super().prompt(record, rng, **options)[1:])


class MarksNothing(Colour):
    def document(self, record, rng=None, **options):
        return tuple(
            Text(segment.text) if isinstance(segment, Text) else segment
            for segment in super().document(record, rng, **options)
        )


class MarksTooMuch(Colour):
    def document(self, record, rng=None, **options):
        return tuple(
            Text(segment.text, ((0, len(segment.text)),)) if isinstance(segment, Text) else segment
            for segment in super().document(record, rng, **options)
        )


class LeavesOutTheColour(Colour):
    def _lines(self, given, rng):
        lines = super()._lines(given, rng)
        paint = lines[1][0].startswith("Paint")
        return [lines[0], ("Paint it.",) if paint else lines[1], *lines[2:]]


class LeavesOutThePicture(Colour):
    def _lines(self, given, rng):
        return super()._lines(given, rng)[1:]


class LooksAtTheAnswer(Colour):
    def prompt(self, record, rng=None, **options):
        prompt = super().prompt(record, rng, **options)
        return (*prompt[:1], Text(record.get("name", "unknown")), *prompt[2:])


class NeedsTheAnswer(Colour):
    def prompt(self, record, rng=None, **options):
        self.document(record, rng)
        return super().prompt(record, rng, **options)


class ForgetsAnswers(Colour):
    def answer(self, record, filled, rng=None):
        return {"name": filled[2].text, "target": filled[3]}


class DrawsForItself(Colour):
    def _lines(self, given, rng):
        return super()._lines(given, np.random.default_rng())


class TakesEmptyTexts(Colour):
    def document(self, record, rng=None, **options):
        filled = {
            name: "none" if record.get(name) == " " else value for name, value in record.items()
        }
        return super().document(filled, rng, **options)


class NamesNoRecord(Colour):
    def document(self, record, rng=None, *, place="record"):
        return super().document(record, rng)


class TakesAnyPicture(Colour):
    def document(self, record, rng=None, **options):
        filled = {
            name: Image("none", lambda: None)
            if self.fields.get(name) == "image" and not isinstance(value, Image)
            else value
            for name, value in record.items()
        }
        return super().document(filled, rng, **options)


MUTANTS: dict[str, list[Any]] = {
    "fields_and_responses_are_named": [AsksForAll, HasStrangeTypes],
    "the_prompt_filled_is_the_document": [AsksOtherwise, HidesMore],
    "responses_are_marked": [MarksNothing, MarksTooMuch],
    "every_wording_has_all_fields": [LeavesOutTheColour, LeavesOutThePicture],
    "prompts_read_no_response": [LooksAtTheAnswer, NeedsTheAnswer],
    "answers_are_read_back": [ForgetsAnswers],
    "the_generator_decides_the_wording": [DrawsForItself],
    "incomplete_records_are_refused": [TakesEmptyTexts, NamesNoRecord, TakesAnyPicture],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_task_fails(law: str, wrong: Any) -> None:
    assert_law_fails(TaskContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(TaskContract, MUTANTS)
