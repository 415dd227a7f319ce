"""Bundled objectives: the kit's laws, exact statistics against closed forms, and against metaseq's
algorithm restated."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cm3core.document import NO_CELL, Codes, MaskedSequence, Span, Text, TokenSequence
from cm3core.errors import RecipeError
from cm3core.sequence.serialize import Serializer
from cm3core.testing.objective import ObjectiveContract, make_sequence
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.objectives.causal import CausalObjectiveConfig
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.objectives.fim import FIMObjectiveConfig
from cm3plugins.objectives.spans import draw_box, draw_spans
from cm3plugins.text_tokenizers.byte import ByteTokenizer

VOCABULARY = CM3LeonVocabulary(num_text=300, num_image=64, num_sentinels=32)
PAIR = [("text", 16), ("image", 256)]


class TestCM3(ObjectiveContract):
    config = CM3ObjectiveConfig(lambda_spans=3.0)


class FewerExamples(ObjectiveContract):
    """The same laws again."""

    max_examples = 10


class TestCM3OnBoxes(FewerExamples):
    config = CM3ObjectiveConfig(segment_mask_probability=0.0, box_mask_probability=1.0)


class TestCM3WithoutSentinelLoss(FewerExamples):
    config = CM3ObjectiveConfig(mask_sentinel_loss=False, retrieved_loss_weight=0.1)


class TestCausal(FewerExamples):
    config = CausalObjectiveConfig()


class TestFIM(FewerExamples):
    config = FIMObjectiveConfig()


def spans_of(masked: MaskedSequence) -> list[list[int]]:
    """The moved spans."""
    tokens = masked.tokens.tolist()
    moved = tokens[len(tokens) - tokens[::-1].index(VOCABULARY.eos) :]
    spans = []
    while moved:
        end = moved.index(VOCABULARY.end_of_infill)
        spans.append(moved[1:end])
        moved = moved[end + 1 :]
    return spans


def agrees(count: int, trials: int, probability: float) -> bool:
    """Whether a count is within five standard deviations of a binomial's mean."""
    return (
        abs(count - trials * probability)
        < 5 * math.sqrt(trials * probability * (1 - probability)) + 1
    )


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
    trials = 6000
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
    rng, trials = np.random.default_rng(8), 6000
    counts = Counter(
        min(len(spans_of(objective.mask(sequence, rng, 10**6))), 2) for _ in range(trials)
    )
    several = 0.25 * 3 / 4 * 4 / 5  # more than one row high, narrower than the picture
    assert agrees(counts[0], trials, 0.45), counts
    assert agrees(counts[2], trials, several), counts


# ---- random spans: closed forms


def valid_pairs(sequence: TokenSequence) -> list[tuple[int, int, int, int]]:
    """All (start, stop, clipped start, clipped stop) of equally likely ordered candidates, by brute
    force."""
    pairs = []
    for start in range(len(sequence) + 1):
        for stop in range(start + 1, len(sequence) + 1):
            overlaps = [min(stop, span.stop) - max(start, span.start) for span in sequence.segments]
            best = max(range(len(overlaps)), key=lambda index: (overlaps[index], -index))
            if overlaps[best] > 0:
                span = sequence.segments[best]
                pairs.append((start, stop, max(start, span.start), min(stop, span.stop)))
    return pairs


def test_one_span_has_the_exact_distribution() -> None:
    """n = 1: every (start, stop) has the probability 2 * (candidates that are clipped to it) / (B +
    1)**2."""
    sequence = make_sequence(VOCABULARY, [[("text", 3), ("image", 5)]])
    total = (len(sequence) + 1) ** 2
    expected = Counter((low, high) for _, _, low, high in valid_pairs(sequence))
    rng = np.random.default_rng(2)
    trials = 40000
    counts = Counter(tuple(draw_spans(sequence, 1, rng)) for _ in range(trials))
    assert set(counts) == {(key,) for key in expected} | {()}
    observed = [counts[()]] + [counts[(key,)] for key in expected]
    missed = total - 2 * sum(expected.values())
    wanted = [trials * missed / total] + [
        trials * 2 * number / total for number in expected.values()
    ]
    assert stats.chisquare(observed, wanted).pvalue > 1e-4


def test_two_spans_are_rejected_as_computed() -> None:
    """n = 2: one of four candidates is taken, then the first of the rest that does not meet it; the
    share is summed exactly."""
    sequence = make_sequence(VOCABULARY, [[("text", 2), ("image", 4)]])
    pairs = valid_pairs(sequence)
    total = (len(sequence) + 1) ** 2
    p_valid = 2 * len(pairs) / total
    expected = 0.0
    for start, stop, _, _ in pairs:
        apart = 2 * sum(other[1] <= start or other[0] >= stop for other in pairs) / total
        for first in range(4):  # the first `first` candidates are not spans
            expected += 2 / total * (1 - p_valid) ** first * (1 - (1 - apart) ** (3 - first))
    rng = np.random.default_rng(3)
    trials = 20000
    assert agrees(
        sum(len(draw_spans(sequence, 2, rng)) == 2 for _ in range(trials)), trials, expected
    ), expected


def test_number_of_spans_is_poisson() -> None:
    """Without rejection (n <= 1 counted apart) it is Poisson(1) where nothing else is masked."""
    objective = CM3ObjectiveConfig(segment_mask_probability=0.0, box_mask_probability=0.0).build(
        VOCABULARY
    )
    sequence = make_sequence(VOCABULARY, [PAIR])
    total = (len(sequence) + 1) ** 2
    no_span = 1 - 2 * len(valid_pairs(sequence)) / total
    rng = np.random.default_rng(4)
    trials = 8000
    counts = Counter(len(spans_of(objective.mask(sequence, rng, 10**6))) for _ in range(trials))
    p_none = math.exp(-1) + sum(
        math.exp(-1) / math.factorial(n) * no_span ** (n * n) for n in range(1, 8)
    )
    assert agrees(counts[0], trials, p_none), counts


# ---- random spans: metaseq's algorithm


def restated(
    length: int, segments: list[tuple[int, int]], rng: np.random.Generator, mean: float
) -> list[tuple[int, int]]:
    """metaseq `cm3_dataset.py` (branch scaling_racm3) as spec'd, scalar by scalar; empty spans and
    spans on specials left out."""
    n = min(int(rng.poisson(mean)), 31)
    taken: list[tuple[int, int]] = []
    for _ in range(n * n):
        u1, u2 = sorted([rng.random(), rng.random()])
        start, stop = max(1, math.floor(u1 * length)), math.floor(u2 * length + 0.5)
        if (
            start < stop
            and len(taken) < n
            and not any(start < high and low < stop for low, high in taken)
        ):
            taken.append((start, stop))
    clipped = []
    for start, stop in taken:
        low, high = max(
            segments, key=lambda segment: min(stop, segment[1]) - max(start, segment[0])
        )
        if max(start, low) < min(stop, high):
            clipped.append((max(start, low), min(stop, high)))
    return sorted(clipped)


def test_statistics_agree_with_metaseq() -> None:
    """Number of spans, length of spans and share of masked tokens of 272-token sequences with a
    retrieved pair in front."""
    sequence = make_sequence(
        VOCABULARY, [[("text", 16), ("image", 64)], [("text", 16), ("image", 64)]]
    )
    segments = [(span.start, span.stop) for span in sequence.segments]
    ours_rng, theirs_rng = np.random.default_rng(5), np.random.default_rng(6)
    trials = 12000
    ours = [draw_spans(sequence, int(ours_rng.poisson(1.0)), ours_rng) for _ in range(trials)]
    theirs = [restated(len(sequence), segments, theirs_rng, 1.0) for _ in range(trials)]
    table = np.asarray(
        [
            [sum(min(len(spans), 4) == number for spans in side) for number in range(5)]
            for side in (ours, theirs)
        ]
    )
    assert stats.chi2_contingency(table).pvalue > 1e-4, table
    lengths = [[stop - start for spans in side for start, stop in spans] for side in (ours, theirs)]
    assert stats.ks_2samp(*lengths).pvalue > 1e-4
    masked = [
        [sum(stop - start for start, stop in spans) for spans in side] for side in (ours, theirs)
    ]
    assert stats.ks_2samp(*masked).pvalue > 1e-4
    places = [[start for spans in side for start, _ in spans] for side in (ours, theirs)]
    assert stats.ks_2samp(*places).pvalue > 1e-4


# ---- room, weights, speed, wrong input


@pytest.mark.parametrize("room", [0, 2, 3, 5, 6, 48])
def test_spans_are_limited_by_the_room(room: int) -> None:
    objective = CM3ObjectiveConfig(
        lambda_spans=20.0, segment_mask_probability=0.0, box_mask_probability=0.0
    ).build(VOCABULARY)
    sequence = make_sequence(VOCABULARY, [PAIR])
    most = max(
        len(spans_of(objective.mask(sequence, np.random.default_rng(seed), len(sequence) + room)))
        for seed in range(40)
    )
    assert most == min(room // 3, 16) if room < 48 else most > 5


def test_fim_always_has_one_span() -> None:
    objective = FIMObjectiveConfig().build(VOCABULARY)
    sequence = make_sequence(VOCABULARY, [[("text", 1)]])
    assert all(
        len(spans_of(objective.mask(sequence, np.random.default_rng(seed), 10))) == 1
        for seed in range(50)
    )


def test_retrieved_documents_may_get_spans_and_keep_their_weight() -> None:
    objective = CM3ObjectiveConfig(segment_mask_probability=0.0, retrieved_loss_weight=0.25).build(
        VOCABULARY
    )
    sequence = make_sequence(VOCABULARY, [[("text", 40)], [("text", 40)]])
    front = 0
    for seed in range(200):
        masked = objective.mask(sequence, np.random.default_rng(seed), 10**6)
        added = (len(masked) - len(sequence)) // 3
        end = int(np.flatnonzero(masked.tokens == VOCABULARY.eos)[-1])
        front += bool((masked.weights[end + 1 :] == 0.25).any())
        quarter = int((masked.weights == 0.25).sum())
        # <eos>, 40 tokens, <break>, and three tokens for each of its spans
        assert 42 <= quarter <= 42 + 3 * added
    assert front > 20


def test_faster_than_twenty_training_loops() -> None:
    """The training loop on two cores consumes about 9,000 tokens a second; masking must be 20 times
    faster."""
    objective = CM3ObjectiveConfig().build(VOCABULARY)
    sequence = make_sequence(VOCABULARY, [PAIR, [("text", 11), ("image", 256)]])
    assert 540 <= len(sequence) <= 548
    rng = np.random.default_rng(0)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(200):
            objective.mask(sequence, rng, 600)
        best = min(best, time.process_time() - start)
    assert 200 * len(sequence) / best > 20 * 9000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CM3ObjectiveConfig(lambda_spans=-1.0),
            "objective.lambda_spans: is -1.0\n  next: use 0..100; the paper's is 1",
        ),
        (
            CM3ObjectiveConfig(text_segment_share=1.5),
            "objective.text_segment_share: is 1.5\n  next: use a probability, 0..1",
        ),
        (
            CM3ObjectiveConfig(segment_mask_probability=0.75, box_mask_probability=0.5),
            "objective.box_mask_probability: is 0.5\n"
            "  next: use at most 0.25, what objective.segment_mask_probability leaves",
        ),
        (
            CausalObjectiveConfig(retrieved_loss_weight=-0.5),
            "objective.retrieved_loss_weight: is -0.5, must be at least 0\n"
            "  next: correct the value",
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
    assert str(caught.value) == message
