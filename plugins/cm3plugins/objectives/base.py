"""Shared by the objectives: ranges of loss weights, random spans in segments, boxes in pictures.

Random spans follow metaseq's algorithm (`cm3_dataset.py`, branch scaling_racm3), without its defects: a
candidate that is empty or covers only special tokens is not a span; endpoints are drawn uniformly from
the B + 1 gaps between tokens. Legend: B tokens in a sequence, m non-empty segments, k
candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import TokenSequence
from cm3core.interfaces.objective import ObjectiveConfig
from cm3core.sequence import loss_weights, only_responses

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.document import TokenSequence
    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class LossWeightsConfig(ObjectiveConfig):
    """Base config: checks the ranges of the loss weights.

    Args:
        response_only: count the loss only on what a document's task asks for (its answer, the edited
            picture) and on the end token; documents without a task count fully. False: everything counts
            (the paper's instruction tuning).
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "retrieved_loss_weight": (0, 1e6),
        "text_loss_weight": (0, 1e6),
    }
    response_only: bool = False

    def weights_of(
        self, sequence: TokenSequence, vocabulary: Vocabulary
    ) -> npt.NDArray[np.float32]:
        """Return the loss weight of each token of a sequence, float32 [B]."""
        weights = loss_weights(
            sequence, vocabulary, self.retrieved_loss_weight, self.text_loss_weight
        )
        return only_responses(weights, sequence) if self.response_only else weights


SpanList = list[tuple[int, int]]


def draw_spans(sequence: TokenSequence, num_spans: int, rng: np.random.Generator) -> SpanList:
    """Draw at most `num_spans` disjoint spans, each inside one segment, sorted.

    Draws `num_spans`**2 candidates with both ends uniform over the sequence, and takes them in turn,
    skipping those that overlap one taken before. Each is then clipped to the segment it overlaps most
    (the first on a tie). Returns fewer spans if candidates run out.
    """
    if num_spans == 0:
        return []
    ends_k2 = np.sort(rng.integers(0, len(sequence) + 1, size=(num_spans * num_spans, 2)), axis=1)
    clipped_k2, holds_k = clip_to_segments(ends_k2, sequence)
    taken: SpanList = []
    spans: SpanList = []
    for (start, stop), clipped, holds in zip(
        ends_k2.tolist(), clipped_k2.tolist(), holds_k.tolist(), strict=True
    ):
        if holds and all(stop <= low or high <= start for low, high in taken):
            taken.append((start, stop))
            spans.append((clipped[0], clipped[1]))
            if len(spans) == num_spans:
                break
    return sorted(spans)


def clip_to_segments(
    ends_k2: npt.NDArray[np.int64], sequence: TokenSequence
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Clip each candidate to the segment that it overlaps most.

    Returns:
        the clipped candidates, int64 [k, 2], and whether each overlaps a segment at all, bool [k].
    """
    bounds = np.asarray(
        [(span.start, span.stop) for span in sequence.segments if len(span)], np.int64
    ).reshape(-1, 2)
    if not len(bounds):
        return ends_k2, np.zeros(len(ends_k2), np.bool_)
    low_km = np.maximum(ends_k2[:, :1], bounds[:, 0])
    high_km = np.minimum(ends_k2[:, 1:], bounds[:, 1])
    best_k = np.argmax(high_km - low_km, axis=1)
    rows = np.arange(len(ends_k2))
    clipped_k2 = np.stack([low_km[rows, best_k], high_km[rows, best_k]], axis=1)
    return clipped_k2, clipped_k2[:, 1] > clipped_k2[:, 0]


def draw_box(sequence: TokenSequence, num_spans: int, rng: np.random.Generator) -> SpanList:
    """Draw a random box of codes in one of the query document's pictures, as spans.

    Returns no spans without a picture or room. Height and width are uniform, then the position. A box has all codes of
    its places. It takes one span per row (one span in total if it is as wide as the picture), like the holes of an
    inpainted box, so its height is at most `num_spans`. A picture that is a sequence has no places: a run of its codes,
    the end included, is one row of them.
    """
    pictures = [
        span
        for span in sequence.segments[sequence.query_segment :]
        if span.grid is not None or (span.modality == "image" and len(span))
    ]
    if not pictures or num_spans == 0:
        return []
    picture = pictures[int(rng.integers(len(pictures)))]
    rows, columns = picture.grid or (1, len(picture))
    places = columns // picture.depth
    height, width = (
        int(rng.integers(1, min(rows, num_spans) + 1)),
        int(rng.integers(1, places + 1)),
    )
    top, left = int(rng.integers(rows - height + 1)), int(rng.integers(places - width + 1))
    width, left = width * picture.depth, left * picture.depth
    first = picture.start + top * columns + left
    if width == columns:
        return [(first, first + height * columns)]
    return [(first + row * columns, first + row * columns + width) for row in range(height)]
