"""Bundled objectives: the kit's laws, whole segments, boxes, wrong settings. Spans: `test_objective_spans`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cm3core.document import NO_CELL, Codes, Span, Text, TokenSequence
from cm3core.errors import RecipeError
from cm3core.sequence.serialize import Serializer
from cm3kits.objective import ObjectiveContract, make_sequence
from cm3plugins.objectives.base import draw_box
from cm3plugins.objectives.causal import CausalObjectiveConfig
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.objectives.fim import FIMObjectiveConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from kit_variants import Variant
from messages import tells
from objective_parts import PAIR, VOCABULARY, agrees, spans_of
from profiles import examples


class TestCM3(ObjectiveContract):
    config = CM3ObjectiveConfig(lambda_spans=3.0)


class FewerExamples(ObjectiveContract):
    """The same laws again."""

    max_examples = examples(5)


class TestCM3OnBoxes(Variant, FewerExamples):
    config = CM3ObjectiveConfig(segment_mask_probability=0.0, box_mask_probability=1.0)


class TestCM3WithoutSentinelLoss(Variant, FewerExamples):
    config = CM3ObjectiveConfig(mask_sentinel_loss=False, retrieved_loss_weight=0.1)


class TestCausal(FewerExamples):
    config = CausalObjectiveConfig()


class TestFIM(FewerExamples):
    config = FIMObjectiveConfig()


# ---- whole segments


def test_share_of_whole_segments() -> None:
    """Exactly: the caption in 0.3 * 0.7 of the sequences, the picture in 0.3 * 0.3, of the query
    document only."""
    objective = CM3ObjectiveConfig(lambda_spans=0.0, box_mask_probability=0.0).build(VOCABULARY)
    sequence = make_sequence(VOCABULARY, [PAIR, PAIR])
    rng = np.random.default_rng(0)
    caption, picture = (
        sequence.tokens[span.start : span.stop].tolist() for span in sequence.segments[2:]
    )
    trials = 2500
    counts: Counter[str] = Counter()
    for _ in range(trials):
        spans = spans_of(objective.mask(sequence, rng, 10**6))
        assert spans in ([], [caption], [picture])
        counts["none" if not spans else "caption" if spans == [caption] else "picture"] += 1
    for name, probability in (("none", 0.7), ("caption", 0.21), ("picture", 0.09)):
        assert agrees(counts[name], trials, probability), counts


def test_hidden_captions_are_the_form_that_guidance_uses() -> None:
    """`<eos> <sentinel:0> <break> picture <eos> <sentinel:0> caption <eoss>` in at least a fifth of
    the sequences."""
    objective = CM3ObjectiveConfig().build(VOCABULARY)
    sequence = make_sequence(VOCABULARY, [PAIR])
    rng = np.random.default_rng(1)
    head = [VOCABULARY.eos, VOCABULARY.sentinel(0), VOCABULARY.break_]
    hidden = sum(
        objective.mask(sequence, rng, 600).tokens[:3].tolist() == head for _ in range(3000)
    )
    assert agrees(hidden, 3000, 0.3 * 0.7), hidden


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([("text", 0), ("image", 4)], "image"),
        ([("text", 3)], "text"),
        ([("image", 4)], "image"),
        ([("text", 0)], None),
    ],
)
def test_a_missing_or_empty_modality_is_never_chosen(
    document: list[tuple[str, int]], expected: str | None
) -> None:
    objective = CM3ObjectiveConfig(segment_mask_probability=1.0, box_mask_probability=0.0).build(
        VOCABULARY
    )
    sequence = make_sequence(VOCABULARY, [PAIR, document])
    whole = [
        sequence.tokens[span.start : span.stop].tolist()
        for span in sequence.segments[2:]
        if span.modality == expected
    ]
    for seed in range(20):
        assert spans_of(objective.mask(sequence, np.random.default_rng(seed), 10**6)) == whole


# ---- boxes


def pair_with_picture(rows: int, columns: int) -> TokenSequence:
    """A retrieved pair and a query pair; their pictures' codes are 0, 1, 2, ... in raster order."""
    tokens = [VOCABULARY.eos, 10, 11, VOCABULARY.break_]
    codes = [VOCABULARY.image.start + code for code in range(rows * columns)]
    tokens += [*codes, VOCABULARY.break_, 12, VOCABULARY.break_, *codes, VOCABULARY.eos]
    first, second = 4, 7 + rows * columns
    grid = (rows, columns)
    segments = (
        Span(1, 3, "text"),
        Span(first, first + len(codes), "image", grid),
        Span(second - 2, second - 1, "text"),
        Span(second, second + len(codes), "image", grid),
    )
    cells = np.full(len(tokens), NO_CELL, np.int32)
    for start in (first, second):
        cells[start : start + len(codes)] = np.arange(len(codes))
    return TokenSequence(np.asarray(tokens, np.int32), cells, segments, query_segment=2)


class Fixed(np.random.Generator):
    """Gives the numbers it is told, in turn."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.numbers = list(numbers)

    def integers(self, *_: object, **__: object) -> int:  # type: ignore[override]  # a plan in place of numpy's randomness
        return self.numbers.pop(0)


def test_a_box_by_hand() -> None:
    """Rows 1 and 2, columns 1 to 3 of a 4 x 5 picture that starts at 27: cells 6..8 and 11..13."""
    sequence = pair_with_picture(4, 5)
    assert sequence.segments[3].start == 27
    # picture, height, width, top, left
    assert draw_box(sequence, 16, Fixed(0, 2, 3, 1, 1)) == [(33, 36), (38, 41)]
    # as wide as the picture: one run
    assert draw_box(sequence, 16, Fixed(0, 3, 5, 1, 0)) == [(32, 47)]
    assert draw_box(sequence, 0, np.random.default_rng(0)) == []
    assert (
        draw_box(make_sequence(VOCABULARY, [PAIR, [("text", 5)]]), 16, np.random.default_rng(0))
        == []
    )


def test_a_box_of_a_sequence_is_a_run_of_its_codes() -> None:
    """A picture of 7 codes without places, from 27 on: code 2 up to 5; then all of them."""
    sequence = make_sequence(VOCABULARY, [PAIR, [("text", 5), ("image", 7)]])
    [*_, picture] = sequence.segments
    assert picture.grid is None
    first = picture.start
    # picture, height, width, top, left
    assert draw_box(sequence, 16, Fixed(0, 1, 3, 0, 2)) == [(first + 2, first + 5)]
    assert draw_box(sequence, 1, Fixed(0, 1, 7, 0, 0)) == [(first, first + 7)]
    rng = np.random.default_rng(3)
    drawn = {draw_box(sequence, 16, rng)[0] for _ in range(500)}
    assert drawn == {(first + low, first + high) for low in range(7) for high in range(low + 1, 8)}


def test_every_box_of_the_query_picture_is_equally_likely_given_its_size() -> None:
    """3 x 2 cells: 3 * 2 sizes of probability 1/6 each, shared by a size's places; never the
    retrieved picture."""
    sequence = pair_with_picture(3, 2)
    start, rng, trials = sequence.segments[3].start, np.random.default_rng(7), 12000
    counts = Counter(
        tuple(
            cell - start for low, high in draw_box(sequence, 16, rng) for cell in range(low, high)
        )
        for _ in range(trials)
    )
    places = {(h, w): (4 - h) * (3 - w) for h in (1, 2, 3) for w in (1, 2)}
    expected = {
        tuple(
            2 * row + column for row in range(top, top + h) for column in range(left, left + w)
        ): 1 / 6 / places[h, w]
        for h, w in places
        for top in range(4 - h)
        for left in range(3 - w)
    }
    assert counts.keys() == expected.keys()
    assert (
        stats.chisquare(
            [counts[box] for box in expected], [trials * p for p in expected.values()]
        ).pvalue
        > 1e-4
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30))
def test_a_masked_box_is_the_prompt_that_in_painting_gives(
    seed: int, rows: int, columns: int, room: int
) -> None:
    """Trained form == prompted form: same sentinels in place, same order behind; no taller than
    there is room for."""
    sequence = pair_with_picture(rows, columns)
    objective = CM3ObjectiveConfig(
        segment_mask_probability=0.0, box_mask_probability=1.0, max_spans=4
    ).build(VOCABULARY)
    masked = objective.mask(sequence, np.random.default_rng(seed), len(sequence) + room)
    spans = spans_of(masked)
    assert len(spans) <= min(4, room // 3)
    assert bool(spans) == (room >= 3)
    if not spans:
        return
    missing = np.zeros(rows * columns, np.bool_)
    missing[np.concatenate(spans) - VOCABULARY.image.start] = True
    codes = np.arange(rows * columns, dtype=np.int32)
    tokenizer = ByteTokenizer()
    serializer = Serializer(VOCABULARY, tokenizer, (rows, columns))
    query = (
        Text(tokenizer.decode([12 - VOCABULARY.text.start])),
        Codes(codes, (rows, columns), missing),
    )
    retrieved = (
        Text(tokenizer.decode([10 - VOCABULARY.text.start, 11 - VOCABULARY.text.start])),
        Codes(codes, (rows, columns)),
    )
    if missing.all():
        return  # the whole picture is asked for by plain continuation
    prompt = serializer.prompt(query, [retrieved])
    assert masked.tokens[: len(prompt)].tolist() == prompt.tokens.tolist()
    assert masked.cells[: len(prompt)].tolist() == prompt.cells.tolist()
    assert [hole.cells.tolist() for hole in prompt.holes if hole.cells is not None] == [
        [token - VOCABULARY.image.start for token in span] for span in spans
    ]


def test_share_of_boxes() -> None:
    objective = CM3ObjectiveConfig(
        lambda_spans=0.0, segment_mask_probability=0.3, box_mask_probability=0.25
    ).build(VOCABULARY)
    sequence = pair_with_picture(4, 5)
    rng, trials = np.random.default_rng(8), 2500
    counts = Counter(
        min(len(spans_of(objective.mask(sequence, rng, 10**6))), 2) for _ in range(trials)
    )
    several = 0.25 * 3 / 4 * 4 / 5  # more than one row high, narrower than the picture
    assert agrees(counts[0], trials, 0.45), counts
    assert agrees(counts[2], trials, several), counts


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CM3ObjectiveConfig(lambda_spans=-1.0),
            "objective.lambda_spans: is -1.0 ... use 0..100 ... uses 1",
        ),
        (
            CM3ObjectiveConfig(text_segment_share=1.5),
            "objective.text_segment_share: is 1.5 ... 0..1",
        ),
        (
            CM3ObjectiveConfig(segment_mask_probability=0.75, box_mask_probability=0.5),
            "objective.box_mask_probability: is 0.5 ... most 0.25",
        ),
        (
            CausalObjectiveConfig(retrieved_loss_weight=-0.5),
            "objective.retrieved_loss_weight: is -0.5, must ... least 0",
        ),
        (
            FIMObjectiveConfig(fim_rate=2.0),
            "objective.fim_rate: is 2.0\n  next: use a probability, 0..1",
        ),
    ],
)
def test_wrong_config_is_explained(config: CM3ObjectiveConfig, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        config.check()
    assert tells(caught.value, message)
