"""Forms of pictures: grids of one or several codes, sequences, and their rules; by hand, and against all pictures that
there can be.

Legend: c codes, S states, K classes, V codes of the codebook.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import TokenizerError
from cm3core.picture_form import (
    FORBIDDEN,
    MISSING,
    CodePositions,
    CodeRules,
    Filling,
    GridPositions,
    PictureForm,
)
from messages import tells

#: Pairs (x, y), at least one, then the end: x is 0 or 1, y is 2 or 3, the end is 4.
PAIRS = CodeRules(
    np.array([0, 0, 1, 1, 2]),
    np.array([[1, -1, -1], [-1, 2, -1], [1, -1, 3], [-1, -1, 3]]),
)


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_a_grid_of_several_codes_a_place():
    form = PictureForm.of_grid(2, 3, 2, CodeRules.by_slot([4, 2]))
    assert (form.grid, form.num_codes, form.is_sequence, form.is_plain) == (
        (2, 6),
        12,
        False,
        False,
    )
    right = np.array([[0, 4, 3, 5] * 3])
    assert form.strange_place(right) is None
    wrong = right.copy()
    wrong[0, 7] = 0
    assert form.strange_place(wrong) == (0, 7)


def test_a_plain_grid_has_no_rules():
    form = PictureForm.of_grid(2, 3)
    assert (form.grid, form.is_plain, form.name) == ((2, 3), True, "a grid of 2 x 3 places")
    assert form.strange_place(np.full((1, 6), 9)) is None
    assert form.completed(codes(1, 2, 3, 4, 5, 6), np.arange(6) > 2).tolist() == [1, 2, 3, 0, 0, 0]


def test_a_sequence_counts_to_its_end_and_repeats_it():
    form = PictureForm.sequence(5, 4, 5, PAIRS)
    assert (form.grid, form.is_sequence) == ((1, 5), True)
    assert form.length(codes(0, 2, 4, 4, 4)) == 3
    assert form.padded(codes(0, 2, 4)).tolist() == [0, 2, 4, 4, 4]
    assert form.strange_place(np.stack([form.padded(codes(1, 3, 4)), codes(0, 2, 1, 2, 4)])) is None
    for strange, place in (
        (codes(0, 2, 4, 4, 0), 4),  # something behind the end
        (codes(0, 4, 4, 4, 4), 1),  # the end inside a pair
        (codes(0, 2, 0, 2, 0), 4),  # no end
    ):
        assert form.strange_place(strange[None]) == (0, place)


def test_a_sequence_without_rules_has_a_code_and_an_end():
    form = PictureForm.sequence(3, 0, 4)
    assert form.strange_place(np.array([[3, 0, 0], [1, 2, 0]])) is None
    assert form.strange_place(np.array([[0, 0, 0]])) == (0, 0)


def test_what_is_missing_of_a_sequence_ends_as_soon_as_it_can():
    form = PictureForm.sequence(7, 4, 5, PAIRS)
    missing = np.arange(7) >= 3
    assert form.completed(codes(1, 3, 1, 0, 0, 0, 0), missing).tolist() == [1, 3, 1, 2, 4, 4, 4]
    assert form.completed(np.zeros(7, np.int32), np.ones(7, bool)).tolist() == [0, 2, 4, 4, 4, 4, 4]


def test_known_codes_behind_a_gap_decide_what_may_fill_it():
    form = PictureForm.sequence(7, 4, 5, PAIRS)
    filling = Filling(form, codes(0, MISSING, MISSING, 3, 4, 4, 4))
    assert filling.allowed(1).tolist() == [False, True, False]
    filling.put(1, 2)
    assert filling.allowed(2).tolist() == [
        True,
        False,
        False,
    ]  # the end would come before what is known
    assert not Filling(form, codes(0, MISSING, 3, 4, 4, 4, 4)).can_be_filled


def test_a_gap_of_any_length_closes_where_the_known_codes_may_follow():
    """By hand: pairs of 0..1 and 2..3, the end 4; two known pairs around up to three codes."""
    form = PictureForm.sequence(8, 4, 5, PAIRS)
    filling = Filling(form, codes(0, 2, MISSING, MISSING, MISSING, 1, 3, 4), any_length=True)
    assert [filling.may_close(2), filling.allowed(2).tolist()] == [False, [True, False, False]]
    filling.put(2, 0)
    assert [filling.may_close(3), filling.allowed(3).tolist()] == [False, [False, True, False]]
    filling.put(3, 3)
    # a third code would be the first of a pair, and then the gap is full
    assert [filling.may_close(4), filling.allowed(4).any()] == [True, False]
    assert not Filling(form, codes(0, 2, MISSING, 1, 3, 4, 4, 4), any_length=True).can_be_filled


@given(st.data(), st.integers(0, 4), st.integers(1, 4))
def test_gaps_of_any_length_hold_exactly_what_keeps_the_rules(data, first, most):
    form = data.draw(forms())
    if form is None or not form.is_sequence:
        return
    whole = data.draw(st.sampled_from(all_pictures(form)))
    length = form.length(np.array(whole))
    first = min(first, length - 1)
    behind = whole[first + data.draw(st.integers(0, length - 1 - first)) : length]
    larger = replace(form, columns=first + most + len(behind))
    gap = [*whole[:first], *[MISSING] * most, *behind]
    right = {
        tuple(own)
        for number in range(1, most + 1)
        for own in product(range(form.rules.codebook_size), repeat=number)
        if larger.strange_place(larger.padded(np.array([*whole[:first], *own, *behind]))[None])
        is None
        and form.end not in own
    }
    found = set()

    def draw(own: tuple[int, ...]) -> None:
        filling = Filling(larger, np.array(gap, np.int32), any_length=True)
        for place, code in enumerate(own):
            assert filling.allowed(first + place)[form.rules.class_of[code]]
            filling.put(first + place, code)
        if len(own) == most or filling.may_close(first + len(own)):
            found.add(own)
        if len(own) < most:
            for code in np.flatnonzero(filling.allowed(first + len(own))[form.rules.class_of]):
                draw((*own, int(code)))

    if Filling(larger, np.array(gap, np.int32), any_length=True).can_be_filled:
        draw(())
    assert found == right


@st.composite
def machines(draw) -> CodeRules:
    num_states, num_classes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    state = st.integers(FORBIDDEN, num_states - 1)
    row = st.lists(state, min_size=num_classes, max_size=num_classes)
    follows = draw(st.lists(row, min_size=num_states, max_size=num_states))
    return CodeRules(np.arange(num_classes), np.array(follows))


@st.composite
def forms(draw) -> PictureForm | None:
    rules = draw(machines())
    try:
        if draw(st.booleans()):
            return PictureForm.of_grid(1, draw(st.integers(1, 4)), 1, rules)
        num_states, num_classes = rules.follows.shape
        follows = np.full((num_states + 1, num_classes + 1), FORBIDDEN)
        follows[:-1, :-1] = rules.follows
        for end in draw(st.sets(st.integers(0, num_states - 1), min_size=1)):
            follows[end, -1] = num_states
        follows[-1, -1] = num_states
        whole = CodeRules(np.arange(num_classes + 1), follows)
        return PictureForm.sequence(draw(st.integers(2, 5)), num_classes, num_classes + 1, whole)
    except TokenizerError:
        return None


def all_pictures(form: PictureForm) -> list[tuple[int, ...]]:
    """Every array of codes that keeps the rules."""
    size = form.rules.codebook_size
    every = np.array(list(product(range(size), repeat=form.num_codes)), np.int32)
    return [tuple(one) for one in every.tolist() if form.strange_place(np.array([one])) is None]


@given(forms(), st.data())
def test_drawn_codes_are_exactly_those_that_some_picture_has(form, data):
    if form is None:
        return
    pictures = all_pictures(form)
    assert pictures
    whole = data.draw(st.sampled_from(pictures))
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))))
    given_c = np.where(gone, MISSING, whole).astype(np.int32)
    filling = Filling(form, given_c)
    known = [
        one for one in pictures if all(g in (MISSING, c) for g, c in zip(given_c, one, strict=True))
    ]
    for place in np.flatnonzero(gone).tolist():
        allowed = filling.allowed(place)
        assert set(np.flatnonzero(allowed).tolist()) == {one[place] for one in known}
        code = data.draw(st.sampled_from(np.flatnonzero(allowed).tolist()))
        filling.put(place, code)
        known = [one for one in known if one[place] == code]
    assert len(known) == 1
    assert form.strange_place(np.array([form.completed(np.array(whole), gone)])) is None


@given(forms(), st.integers(2, 5))
def test_a_smaller_maximum_leaves_the_shorter_pictures(form, most):
    if form is None or not form.is_sequence or most > form.num_codes:
        return
    lengths = {form.length(np.array(one)) for one in all_pictures(form)}
    filling = Filling(form, np.full(form.num_codes, MISSING, np.int32), most)
    assert filling.can_be_filled == (min(lengths) <= most)


REFUSALS = {
    "rules of codes: classes [2, 2] and follows [1, 1]": lambda: CodeRules(
        np.zeros((2, 2)), np.zeros((1, 1))
    ),
    "rules of codes: classes 0..1 ... 1 columns": lambda: CodeRules(
        np.array([0, 1]), np.array([[0]])
    ),
    "rules of codes: states 1..1 ... 1 rows": lambda: CodeRules(np.array([0]), np.array([[1]])),
    "picture form: 2 x 0 places of 1 codes": lambda: PictureForm.of_grid(2, 0),
    "picture form: no picture of 2 codes": lambda: PictureForm.of_grid(
        1, 2, 1, CodeRules(np.array([0]), np.array([[-1]]))
    ),
    "picture form: a sequence of at most 1 codes": lambda: PictureForm.sequence(1, 0, 4),
    "picture form: code 0 is to end pictures": lambda: PictureForm.sequence(
        4, 0, 2, CodeRules(np.array([0, 0]), np.array([[0]]))
    ),
    "...no picture of 2 codes keeps its rules": lambda: PictureForm.sequence(2, 4, 5, PAIRS),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals(words):
    with pytest.raises(TokenizerError) as info:
        REFUSALS[words]()
    assert tells(info.value, words)


def test_rules_and_forms_are_equal_by_what_they_allow():
    again = CodeRules(PAIRS.class_of.copy(), PAIRS.follows.copy())
    assert again == PAIRS
    assert hash(PictureForm.sequence(5, 4, 5, again)) == hash(PictureForm.sequence(5, 4, 5, PAIRS))
    assert PictureForm.sequence(5, 4, 5) != PictureForm.sequence(5, 4, 5, PAIRS)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(2, 3),
    st.permutations(["row", "column", "slot"]),
    st.integers(0, 3),
)
def test_cells_hold_the_index_and_the_axes_that_are_fed(rows, columns, depth, names, number):
    positions = GridPositions(rows, columns, depth)
    form = PictureForm.of_grid(rows, columns, depth)
    axes = {name: positions.axes[name] for name in names[:number]}
    fed, some = form.for_axes(axes), np.zeros(form.num_codes, np.int32)
    cells = fed.cells(some)[0]
    assert cells.dtype == np.int32
    assert (cells % form.num_codes).tolist() == list(range(form.num_codes))
    position = cells // form.num_codes
    for name in reversed(axes):
        own = list(positions.axes).index(name)
        assert (position % axes[name]).tolist() == positions.of(some)[:, own].tolist()
        position = position // axes[name]
    assert not position.any()
    cut = form.num_codes // 2
    first, state = fed.cells(some[:cut])
    behind = fed.cells(some[cut:], cut, state)[0]
    assert np.concatenate([first, behind]).tolist() == cells.tolist()
    assert form != fed or not axes
    assert form == PictureForm.of_grid(rows, columns, depth, positions=positions)


class OneByOne(GridPositions):
    """As the base computes them: one code after the other."""

    behind = CodePositions.behind


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.data())
def test_places_of_a_grid_at_once_are_those_one_after_the_other(sizes, data):
    positions, one_by_one = GridPositions(*sizes), OneByOne(*sizes)
    some = np.full(np.prod(sizes), MISSING, np.int32)
    cut = data.draw(st.integers(0, len(some)))
    first, state = positions.behind(positions.start(), some[:cut])
    assert (first.dtype, first.shape) == (np.int32, (cut, len(positions.axes)))
    assert state == one_by_one.behind(one_by_one.start(), some[:cut])[1]
    behind, state = positions.behind(state, some[cut:])
    assert np.concatenate([first, behind]).tolist() == one_by_one.of(some).tolist()
    assert state == len(some) - 1


def test_codes_of_a_grid_stand_in_rows_and_columns_unless_it_says_otherwise() -> None:
    form = PictureForm.of_grid(2, 3)
    assert form.positions == GridPositions(2, 3)
    assert form.for_axes({"column": 3}).cells(codes(9, 9, 9, 9))[0].tolist() == [0, 7, 14, 3]
    own = GridPositions(3, 2)
    assert PictureForm.of_grid(2, 3, positions=own).positions is own
    assert PictureForm.sequence(5, 4, 5).positions is None


def test_positions_that_are_out_of_range() -> None:
    class Wrong(OneByOne):
        def place(self, state: int) -> tuple[int, ...]:
            return state, 0

    with pytest.raises(TokenizerError) as info:
        Wrong(1, 3).of(codes(7, 8))
    assert tells(
        info.value,
        "positions of codes: [(0, 0), (1, 0)] of the codes [7, 8], and the axes are ... to its size - 1",
    )
