"""Spans of the bundled objectives: exact statistics against closed forms, metaseq's algorithm restated, their room."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from cm3core.document import TokenSequence
from cm3kits.objective import make_sequence
from cm3plugins.objectives.base import draw_spans
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.objectives.fim import FIMObjectiveConfig
from objective_parts import PAIR, VOCABULARY, agrees, spans_of

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
    trials = 8000
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
    trials = 3000
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
