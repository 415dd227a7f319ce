"""The forms of instructions: counted in training data, matched, and read with what a note says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import GenerationError
from cm3icons.data import IconSourceConfig
from cm3icons.tasks.source import BADGES, pairs_of, style_change
from cm3run import DEFAULT_MODEL
from cm3run.instructions import LEAST_RECORDS, MOST_FORMS, SLOT, Forms, Reading
from cm3run.model import load
from cm3run.model.tasks import read_as_tuned
from cm3run.words import nearest_word

FORMS = Forms(
    ("make it filled", "make it not thin", "cross it out", "add a star", "put a {} on it")
)
#: What people ask an icon model for, none of which is in its tuning; written before the mechanism was tried on them.
UNTRAINED = """make it red; make it blue and white; mirror it; flip it upside down; put it in a circle; rotate it by 45 degrees;
make it bigger; make it half the size; move it to the left; add a shadow; add a banana; add a hat; remove the background; make the
background black; make it look like a cat; turn it into a dog; make it smile; add two eyes; duplicate it; crop it; make it 3d;
make it shiny; add a gradient; write hello under it; add the number 3; remove the wheels; open the door; close the lid; make the
handle longer; make the stars bigger; give it wings; put a ring around it; blur it; sharpen it; make it transparent; make it more
modern; make it cute; make it isometric; simplify it; add a dot in the corner; remove the dot; replace the bell by a clock; swap
the colours; make the lines wavy; draw it by hand; make it not red; make it not filled; undo; hello; make it green, please"""
PARAPHRASES = {
    "turn it filled": "make it filled",
    "make filled": "make it filled",
    "add plus": "add a plus",
    "delete the plus": "remove the plus",
    "Make it filled!": "make it filled",
    "add a chekc mark": "add a check mark",
    "make it sharp outline": "make it outline sharp",
}


def no_spelling(word, vocabulary):
    return None


@pytest.fixture(scope="module")
def model():
    return load(DEFAULT_MODEL)


def test_an_instruction_is_read_by_hand():
    """As it is, without capitals, in another order, with a typing error, and not at all."""
    read = FORMS.read
    assert read("make it filled", no_spelling) == Reading("make it filled")
    assert read(" Make it FILLED. ", no_spelling) == Reading("make it filled")
    assert read("put a red hat on it", no_spelling) == Reading("put a red hat on it")
    assert read("a star add", no_spelling) == Reading(
        "add a star", "the same words in another order"
    )
    assert read("add a sstar", nearest_word).note == (
        "the instruction is read as 'add a star': typing errors corrected"
    )
    assert read("mirror it", nearest_word) is None
    assert read("put a on it", no_spelling) is None


def test_an_opposite_is_no_paraphrase():
    """An encoder finds "make it thin" and "make it not thin" alike, so shared words must all be in the form."""

    def alike(texts, forms):
        return [[0.95] * len(forms) for _ in texts]

    assert FORMS.read("make it not filled", no_spelling, alike) is None
    found = FORMS.read("do make it filled", no_spelling, alike)
    assert found == Reading("make it filled", "nearly the same meaning, similarity 0.95")
    assert FORMS.read("hello", no_spelling, alike) is None  # shares no word with any form


def test_forms_are_counted():
    few = {"make it red": 8, "make it blue": 4}
    assert Forms.of(few) == Forms(("make it red", "make it blue"))
    assert Forms.of({"make it red": LEAST_RECORDS - 1}) is None  # too few records to tell
    assert Forms.of({}) is None
    things = {f"add a thing{number}": 1 for number in range(900)}
    assert Forms.of(things | {"make it bold": 50}) == Forms((f"add a {SLOT}", "make it bold"))
    free = {f"word{number} other{number % 7} and{number % 11}": 1 for number in range(3000)}
    assert Forms.of(free) is None or len(Forms.of(free).forms) <= MOST_FORMS


WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=8)


@given(
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6, unique=True),
    st.lists(WORDS, min_size=1, max_size=30, unique=True),
    st.data(),
)
def test_every_template_with_any_filler_is_used_as_it_is(frames, fillers, data):
    """Whatever the data were made of passes without a note, and so do new fillers of an open slot."""
    counts = {
        f"{one} the {filler} {other}": LEAST_RECORDS for one, other in frames for filler in fillers
    }
    forms = Forms.of(counts)
    assert forms is not None
    for text in counts:
        assert forms.read(text, no_spelling) == Reading(text)
    if any(SLOT in form for form in forms.forms):
        one, other = data.draw(st.sampled_from(frames))
        text = f"{one} the {data.draw(WORDS)} {other}"
        found = forms.read(text, no_spelling)
        assert found is None or found == Reading(text)


@pytest.mark.slow
@given(st.data())
def test_every_trained_kind_of_edit_is_used_as_it_is(model, data):
    """Templates of the icon data with random fillers: changes between any two styles of a drawing, and all badges."""
    stored = model.tasks.instructions["edit"]
    corpus = IconSourceConfig(split="all").build().corpus
    pairs = [one for one in pairs_of(corpus.entries) if corpus.entries[one.target].split == "train"]
    pair = data.draw(st.sampled_from(pairs))
    badge = data.draw(st.sampled_from(sorted({one for own in BADGES.values() for one in own})))
    styles = (corpus.entries[pair.source].style, corpus.entries[pair.target].style)
    assert pair.instruction in (
        style_change(*styles),
        *(one for own in BADGES.values() for one in own),
    )
    for text in (pair.instruction, badge):
        assert stored.exact(text) == text
        assert read_as_tuned(model, "edit", text).note == ""


def test_the_record_is_what_the_data_have(model):
    """Of the part with all pairs; the part of badges has a share of them."""
    part = model.recipe.dataset.parts["edit"].build()
    counted = {part.record(index)["instruction"] for index in range(len(part))}
    assert counted == set(model.tasks.instructions["edit"].forms)


@pytest.mark.slow
def test_no_other_instruction_passes_unmarked(model):
    asked = [" ".join(one.split()) for one in UNTRAINED.split(";")]
    assert len(asked) >= 40
    forms = model.tasks.instructions["edit"]
    marked = {}
    for text in asked:
        try:
            marked[text] = read_as_tuned(model, "edit", text).note
        except GenerationError as error:
            marked[text] = f"refused: {error}"
    assert [text for text, note in marked.items() if not note] == []
    read = {text: note for text, note in marked.items() if not note.startswith("refused")}
    assert read == {}
    assert all(forms.exact(text) is None for text in asked)


@pytest.mark.parametrize(("typed", "meant"), PARAPHRASES.items())
def test_a_paraphrase_is_read_with_a_note(model, typed, meant):
    found = read_as_tuned(model, "edit", typed)
    assert found.text == meant
    plain = typed.lower().strip("!") == meant
    assert (found.note == "") == plain
    assert plain or meant in found.note
