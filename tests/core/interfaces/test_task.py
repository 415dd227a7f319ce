"""Tasks by hand: documents with marks, prompts with holes, answers, what is refused; and the data set of
a task's documents."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType

import numpy as np
import pytest

from cm3core.boxes import Boxes
from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    Text,
    TextHole,
    text_of,
)
from cm3core.errors import DataError, PluginError
from cm3core.interfaces.dataset import TaskSource
from cm3core.interfaces.task import Blank, Task, check_serves
from cm3kits.samples import ListSource
from messages import tells

PICTURE = Codes(np.arange(4, dtype=np.int32), (2, 2))
IMAGE = Image("one", lambda: np.zeros((2, 2, 3), np.uint8))


class Question(Task):
    fields = MappingProxyType({"question": "text", "answer": "text", "image": "image"})
    responses = ("answer",)

    def _lines(self, given, rng):
        return [(f"Q: {given['question']} A: ", Blank("answer"), "! Or so."), given["image"]]


RECORD = {"question": "red?", "answer": "yes", "image": PICTURE}


def test_by_hand() -> None:
    task = Question()
    [text, picture] = task.document(RECORD)
    assert text.text == "Q: red? A: yes! Or so."
    assert text.responses == ((11, 15),)  # with the punctuation behind it
    assert picture == PICTURE
    assert not picture.response
    prompt = task.prompt({"question": "red?", "image": PICTURE}, max_tokens=3)
    assert prompt == (MaskedText(("Q: red? A: ", TextHole(3), " Or so.")), PICTURE)
    for written in ("yes!", "yes"):  # the model may leave the punctuation out
        filled = (Text(f"Q: red? A: {written} Or so."), PICTURE)
        assert task.answer(RECORD, filled) == {"answer": "yes"}


def test_marks_are_no_content() -> None:
    """Equal texts and pictures stay equal, whatever a task asks for."""
    assert Text("a") == Text("a", ((0, 1),))
    assert hash(Text("a")) == hash(Text("a", ((0, 1),)))
    assert Image("one", IMAGE.load, response=True) == IMAGE
    assert Codes(PICTURE.codes, (2, 2), response=True) == PICTURE


def test_boxes_become_text() -> None:
    boxes = Boxes((("bell", (0, 0, 50, 100)),), (100, 100))
    [text, _] = Question().document({**RECORD, "answer": boxes})
    assert "A: bell at (0, 0) -> (128, 255)!" in text.text


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"answer": None}, "has no field 'answer'"),
        ({"question": " "}, "has an empty field 'question'"),
        ({"image": "a.png"}, "has a field 'image' that is str, not a picture"),
        ({"question": 7}, "has a field 'question' that is int, not a text"),
    ],
)
def test_what_is_refused(change, cause) -> None:
    with pytest.raises(DataError) as error:
        Question().document({**RECORD, **change}, place="record 3")
    assert str(error.value).startswith(f"record 3: {cause}\n  next: give")


def test_a_task_that_loses_its_response() -> None:
    class Loses(Question):
        def _lines(self, given, rng):
            return [given["image"]]

    with pytest.raises(PluginError, match="blanks for nothing, but its responses are answer"):
        Loses().document(RECORD)


def test_which_methods_a_task_serves() -> None:
    check_serves(Question(), "ask", 1, 1, "text")
    with pytest.raises(PluginError) as error:
        check_serves(Question(), "edit", 1, 1, "image")
    assert tells(error.value, "... takes question, image ... 'edit'")


class Asked(ListSource):
    def record(self, index, rng=None):
        record = super().record(index, rng)
        return {"question": "what?", "answer": record.get("caption"), "image": record.get("image")}


def test_a_source_of_documents() -> None:
    source = Asked([(Text("a"), IMAGE), (IMAGE,), (Text("c"), IMAGE)])
    tuned = TaskSource(source, Question())
    assert len(tuned) == 2
    assert tuned.document(1)[0].text == "Q: what? A: c! Or so."
    assert tuned.id(1) == source.id(2)
    [skipped] = tuned.skipped
    assert skipped.place == f"record {source.id(1)}"
    assert skipped.cause == "has no field 'answer'"
    assert tuned.fingerprint != TaskSource(Asked([(Text("a"), IMAGE)]), Question()).fingerprint


@pytest.mark.parametrize("documents", [[], [(Text("b"), IMAGE)], [(IMAGE,), (Text("b"), IMAGE)]])
def test_the_content_fingerprint_of_a_task_is_as_if_all_were_read(
    documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the check of the records, also where some can't be used (the third list)."""
    tuned = TaskSource(Asked([(Text("a"), IMAGE), *documents]), Question())
    digest = hashlib.sha256(tuned.fingerprint.encode())
    for index in range(len(tuned)):
        keys = [one.key for one in tuned.document(index) if isinstance(one, Image)]
        entry = [tuned.id(index), text_of(tuned.document(index)), keys]
        digest.update(json.dumps(entry).encode())
    assert tuned.content_fingerprint == digest.hexdigest()
    monkeypatch.setattr(TaskSource, "_document", lambda *_: pytest.fail("read again"))
    assert tuned.content_fingerprint == digest.hexdigest()


def test_the_record_of_plain_documents() -> None:
    source = ListSource([(Text("a"), IMAGE), (Text("b"),)])
    assert source.record(0) == {"image": IMAGE, "caption": "a"}
    assert source.record(1) == {"caption": "b"}


def test_prompts_of_pictures() -> None:
    class Edit(Task):
        fields = MappingProxyType({"source": "image", "target": "image"})
        responses = ("target",)

        def _lines(self, given, rng):
            return [given["source"], Blank("target")]

    document = Edit().document({"source": IMAGE, "target": PICTURE})
    assert [segment.response for segment in document] == [False, True]
    assert Edit().prompt({"source": IMAGE}) == (IMAGE, ImageHole())
