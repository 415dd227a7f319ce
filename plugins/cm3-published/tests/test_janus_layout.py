"""The layout `janus`: one request and one answer, a picture last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, Text, TextHole
from cm3core.errors import DocumentError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.serialize import Serializer
from cm3kits.layout import NUM_CODES, LayoutContract, NamedBytes
from cm3published.layouts.janus import JanusLayoutConfig
from cm3run.training.sequences import sequence_length
from layout_parts import GRID, JANUS, PICTURE, serializer
from messages import tells


class TestJanus(LayoutContract):
    """Documents that it can write: a picture comes last."""

    config = JanusLayoutConfig()

    def text_tokenizer(self) -> TextTokenizer:
        return NamedBytes(JANUS)

    def law_every_document_has_ids(self, data: st.DataObject) -> None:
        """Of documents without retrieved ones."""
        document = self.document(data)
        tokens = self.serializer.sequence(document).tokens
        assert ((tokens >= 0) & (tokens < self.subject.vocabulary.size)).all()
        assert tuple(tokens[: len(self.subject.begin)].tolist()) == self.subject.begin
        assert tokens[-1] == self.subject.end[0]


def janus(**keys: Any) -> Serializer:
    return serializer(JanusLayoutConfig(**keys), tokenizer=NamedBytes(JANUS))


def janus_text(words: str) -> list[int]:
    return NamedBytes(JANUS).encode(words)


BOS, EOS, PAD, BOI, EOI, USER, ASSISTANT = range(7)
FIRST_CODE = NamedBytes(JANUS).vocab_size
DRAWN = (FIRST_CODE + PICTURE.codes).tolist()
REQUEST = [BOS, USER, *janus_text(": hi"), *janus_text("\n\n"), ASSISTANT, *janus_text(":")]


def test_janus_requests_by_hand() -> None:
    """Its template, a space before texts, codes behind the ids of texts."""
    own = janus()
    sequence = own.sequence((Text("hi"), PICTURE))
    assert sequence.tokens.tolist() == [*REQUEST, BOI, *DRAWN, EOI, EOS]
    answered = own.sequence((Text("hi"), Text("yes")))
    assert answered.tokens.tolist() == [*REQUEST, *janus_text(" yes"), EOS]
    assert own.documents(answered) == [(Text("hi"), Text("yes"))]
    assert own.layout.vocabulary.size == FIRST_CODE + NUM_CODES
    apart = janus(first_code=FIRST_CODE + 9)
    assert apart.layout.vocabulary.image.start == FIRST_CODE + 9
    length = sequence_length((Text("hi"), PICTURE), NamedBytes(JANUS), GRID, layout=own.layout)
    assert length == len(sequence)


def test_janus_hides_a_request_behind_padding() -> None:
    """As long as the request, also behind codes that are known; a negative prompt is a request."""
    own = janus()
    hidden = PromptVariant(hide_text="all")
    prompt = own.prompt((Text("hi"), ImageHole()), variant=hidden)
    blank = [BOS, *[PAD] * (len(REQUEST) - 1), BOI]
    assert prompt.tokens.tolist() == blank
    begun = Codes(PICTURE.codes, GRID, np.arange(8) >= 3)
    prompt = own.prompt((Text("hi"), begun), variant=hidden)
    assert prompt.tokens.tolist() == [*blank, *DRAWN[:3]]
    negative = own.prompt(
        (Text("hi"), ImageHole()), variant=PromptVariant(hide_text="all", replace_text="no")
    )
    assert negative.tokens.tolist() == own.prompt((Text("no"), ImageHole())).tokens.tolist()
    answer = own.prompt((Text("hi"), TextHole(3)), variant=hidden)
    assert PAD not in answer.tokens


@pytest.mark.parametrize(
    ("document", "retrieved", "message"),
    [
        (
            (PICTURE, TextHole(3)),
            (),
            "layout janus: has content after a picture",
        ),
        (
            (Text("hi"), ImageHole()),
            ((Text("a"),),),
            "layout janus: supports one request and one answer",
        ),
    ],
)
def test_what_janus_can_not_read(document: Document, retrieved: Any, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        janus().prompt(document, retrieved)
    assert tells(caught.value, message)


def test_stored_ids_have_no_prefix() -> None:
    with pytest.raises(DocumentError) as caught:
        janus().sequence((Text("hi", ids=(7,)), PICTURE))
    assert tells(caught.value.cause, "has stored ids ... 'janus' ... ' '")
