"""Every bundled metric obeys the laws, and gives what can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error, DataError
from cm3core.interfaces.metric import MetricBatch
from cm3kits.metric import MetricContract
from cm3plugins import metrics
from cm3plugins.metrics.matching import bare
from messages import tells

EYE = np.eye(3, dtype=np.float32)
#: Two sets with means (0, 0) and (3, 0) and equal covariance.
SQUARE = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)


def batch(**columns: Any) -> MetricBatch:
    return MetricBatch(range(len(next(iter(columns.values())))), columns)


class TestFID(MetricContract):
    config = metrics.FIDConfig(minimum=3)

    def known_answers(self) -> Any:
        moved = [batch(features=SQUARE), batch(reference_features=SQUARE + np.float32([3, 0]))]
        # (2 - 1)^2 * 4/3 in each of two directions: roots of the variances 16/3 and 4/3
        larger = [batch(features=2 * SQUARE), batch(reference_features=SQUARE)]
        return [(moved, {"fid": 9.0}), (larger, {"fid": 8 / 3})]


def test_fid_of_no_more_pictures_than_features_says_that_it_is_mostly_bias() -> None:
    """The covariance of N samples has rank N - 1 at most."""
    rng = np.random.default_rng(0)
    for num, note in (
        (3, "mostly bias: 3 pictures with 3 features; kid is unbiased"),
        (4, ""),
    ):
        metric = metrics.FIDConfig().build()
        metric.update(batch(features=rng.normal(size=(num, 3))))
        metric.update(batch(reference_features=rng.normal(size=(9, 3))))
        assert [score.note for score in metric.result()] == [note]


class TestKID(MetricContract):
    config = metrics.KIDConfig(num_subsets=3, subset_size=2)

    def known_answers(self) -> Any:
        ones = np.ones((2, 1), np.float32)
        return [([batch(features=ones), batch(reference_features=2 * ones)], {"kid": 79.0})]


class TestPRDC(MetricContract):
    config = metrics.PRDCConfig(k=1)

    def known_answers(self) -> Any:
        # radii: real 1, 1, 4; pictures 0.5, 0.5, 89.5
        real = np.array([[0], [1], [5]], np.float32)
        made = np.array([[0.5], [0], [90]], np.float32)
        found = {"precision": 2 / 3, "recall": 1.0, "density": 1.0, "coverage": 2 / 3}
        return [([batch(features=made), batch(reference_features=real)], found)]


class TestCLIPScore(MetricContract):
    config = metrics.CLIPScoreConfig(weight=2.5, clip_below_zero=True)

    def known_answers(self) -> Any:
        texts = np.array([[3, 0, 0], [0, -1, 0], [0, 1, 1]], np.float32)
        found = {"clip_score": 2.5 * (1 + 0 + 0.5**0.5) / 3}
        return [([batch(features=EYE, text_features=texts)], found)]


class TestRPrecision(MetricContract):
    config = metrics.RPrecisionConfig(num_others=2)

    def known_answers(self) -> Any:
        swapped = EYE[[1, 0, 2]]
        return [
            ([batch(features=EYE, text_features=EYE)], {"r_precision": 1.0}),
            ([batch(features=EYE, text_features=swapped)], {"r_precision": 1 / 3}),
            ([batch(features=EYE, text_features=EYE[[0, 0, 0]])], {"r_precision": 0.0}),
        ]


def real_ones(first: float) -> Any:
    """Features of ten candidates on a line, the right one first."""
    return np.array([[first], *([float(place)] for place in range(1, 10))], np.float32)


class TestJudge(MetricContract):
    config = metrics.JudgeConfig()

    def known_answers(self) -> Any:
        # the nearest; behind 2, 3, 4 and 5; one of ten equal ones
        sample = batch(
            features=np.array([[0.2], [3.4], [5.0]], np.float32),
            candidate_features=[real_ones(0), real_ones(1.5), np.ones((10, 1), np.float32)],
        )
        return [
            ([sample], {"judge_r1": 100 * (1 + 0 + 0.1) / 3, "judge_r5": 100 * (1 + 1 + 0.5) / 3})
        ]


class TestCentredJudge(MetricContract):
    config = metrics.JudgeConfig(centred=True)

    def known_answers(self) -> Any:
        # directions from the mean: that of the first is the picture's, however far away both are
        real = np.full((11, 2), 1.0, np.float32)
        real[0] = [1, 2]
        sample = batch(features=np.array([[1, 90]], np.float32), candidate_features=[real])
        return [([sample], {"judge_r1": 100.0})]


class TestBLEU(MetricContract):
    config = metrics.BLEUConfig(n=2)

    def known_answers(self) -> Any:
        # 3 of 4 words, 1 of 3 pairs; lengths are equal
        sample = batch(texts=["a dog sat down"], references=[["a dog went down."]])
        return [([sample], {"bleu_1": 75.0, "bleu_2": 50.0})]


class TestCIDEr(MetricContract):
    config = metrics.CIDErConfig()

    def known_answers(self) -> Any:
        texts = ["a red dog sat", "two green cats slept"]
        exact = batch(texts=texts, references=[[text] for text in texts])
        return [([exact], {"cider_d": 1000.0})]


class TestROUGE(MetricContract):
    config = metrics.ROUGEConfig(beta=1.0)

    def known_answers(self) -> Any:
        sample = batch(texts=["a dog sat"], references=[["a big dog sat down", "cats"]])
        return [([sample], {"rouge_l": 75.0})]  # precision 1, recall 3 / 5


class TestVQA(MetricContract):
    config = metrics.VQAConfig()

    def known_answers(self) -> Any:
        sample = batch(texts=["Two", "no"], references=[["2"] * 3 + ["3"] * 7, ["No"] * 10])
        return [([sample], {"vqa_accuracy": 45.0})]  # the second is not normalised: all ten agree


class TestExactMatch(MetricContract):
    config = metrics.ExactMatchConfig()

    def known_answers(self) -> Any:
        sample = batch(
            texts=["The red Fox. ", "two", "at the top  left", "?"],
            references=[["a fox", "red fox"], ["2"], ["At top left!"], ["no"]],
        )
        return [([sample], {"exact_match": 50.0})]  # the first and the third


@given(st.text(), st.text(alphabet=".,!? \n"), st.sampled_from(["", "a ", "The ", "an  "]))
def test_what_does_not_count_in_a_match(text: str, end: str, article: str) -> None:
    """Punctuation around a text, articles and letter case; and what is left has none of them."""
    word = f"x{text}y"
    assert bare(f"{end}{article}{word.upper()}{end}") == bare(word.upper())
    assert bare(bare(word)) == bare(word)


@pytest.mark.parametrize(
    ("text", "left"),
    [("A", "a"), ("the", "the"), ("...", ""), ("", ""), ("the cat's.", "cat's"), ("-3.5!", "3.5")],
)
def test_bare_texts_by_hand(text: str, left: str) -> None:
    assert bare(text) == left


class TestChoice(MetricContract):
    config = metrics.ChoiceConfig()

    def known_answers(self) -> Any:
        sample = batch(choices=[[1.0, 2.0], [5.0, 1.0], [3.0, 3.0]], answers=[0, 0, 1])
        found = {"choice_accuracy": 50.0, "choice_mrr": 100 * (1 / 2 + 1 + 3 / 4) / 3}
        return [([sample], found)]


class TestNats(MetricContract):
    config = metrics.NatsConfig(modality="text")

    def known_answers(self) -> Any:
        return [([batch(text_nats=[2.0, 4.0], text_tokens=[1, 3])], {"text_nats": 1.5})]


class TestHeldOutLoss(MetricContract):
    """The mean over documents of their losses per token, 2 / 1 and 3 / 3; not 5 / 4."""

    config = metrics.HeldOutLossConfig()

    def known_answers(self) -> Any:
        given = batch(retrieved_image_nats=[2.0, 3.0], image_tokens=[1, 3])
        return [([given], {"image_loss": 1.5})]


class TestCodebook(MetricContract):
    config = metrics.CodebookConfig(codebook_size=16)

    def known_answers(self) -> Any:
        found = {"codebook_usage": 0.25, "codebook_perplexity": 4.0}
        return [([batch(codes=[[0, 1], [2, 15]])], found)]


class TestPSNR(MetricContract):
    config = metrics.PSNRConfig()

    def known_answers(self) -> Any:
        black = np.zeros((2, 4, 4, 3), np.uint8)
        one = batch(pictures=black, reference_pictures=black + 255)
        return [
            ([one], {"psnr": 0.0}),
            ([batch(pictures=black, reference_pictures=black)], {"psnr": 100.0}),
        ]


class TestSSIM(MetricContract):
    config = metrics.SSIMConfig()

    def known_answers(self) -> Any:
        flat = np.full((1, 16, 16, 3), 100, np.uint8)
        c1 = (0.01 * 255) ** 2
        found = {"ssim": (2 * 100 * 200 + c1) / (100**2 + 200**2 + c1)}
        return [([batch(pictures=flat, reference_pictures=2 * flat)], found)]


def pair(one: Any, other: Any) -> Any:
    return {"pictures": [one], "reference_pictures": [other]}


def black(height: int, width: int) -> Any:
    return np.zeros((height, width, 3), np.uint8)


WRONG = [
    (
        metrics.FIDConfig,
        {"features": np.ones((2, 3))},
        {"features": np.ones((1, 2))},
        "have 2 numbers per picture",
    ),
    (
        metrics.KIDConfig,
        {"features": np.ones((2, 3))},
        {"features": np.ones((1, 2))},
        "use one extractor",
    ),
    (metrics.BLEUConfig, None, {"texts": ["a"], "references": [[]]}, "has no reference captions"),
    (
        metrics.VQAConfig,
        None,
        {"texts": ["a"], "references": [["a"]]},
        "are 1, but the formula compares",
    ),
    (metrics.ChoiceConfig, None, {"choices": [[1.0]], "answers": [1]}, "is 1 of 1 choices"),
    (metrics.NatsConfig, None, {"image_nats": [1.0], "image_tokens": [0]}, "has no image tokens"),
    (
        metrics.HeldOutLossConfig,
        None,
        {"retrieved_image_nats": [1.0], "image_tokens": [0]},
        "has no image tokens",
    ),
    (
        metrics.CodebookConfig,
        None,
        {"codes": [[8192]]},
        "are 8192 to 8192, but the codebook has 8192",
    ),
    (metrics.PSNRConfig, None, pair(black(2, 2), black(2, 3)), r"are \[2, 2, 3\] and \[2, 3, 3\]"),
    (
        metrics.SSIMConfig,
        None,
        pair(black(8, 9), black(8, 9)),
        r"is \[8, 9\], smaller than SSIM's window 11 x 11",
    ),
]


@pytest.mark.parametrize(
    ("config", "first", "then", "message"), WRONG, ids=lambda one: getattr(one, "__name__", "")
)
def test_what_is_refused(config: Any, first: Any, then: Any, message: str) -> None:
    metric = config().build()
    if first is not None:
        metric.update(batch(**first))
    size = len(next(iter(then.values())))
    with pytest.raises(DataError, match=message):
        metric.update(MetricBatch(range(10, 10 + size), then))


@pytest.mark.parametrize(
    "wrong",
    [metrics.FIDConfig(minimum=1), metrics.KIDConfig(subset_size=1), metrics.PRDCConfig(k=0)],
)
def test_values_out_of_range(wrong: Any) -> None:
    with pytest.raises(CM3Error, match="must be at least"):
        wrong.build()


def test_few_candidates_are_refused() -> None:
    few = batch(features=EYE[:1], candidate_features=[EYE])
    with pytest.raises(DataError) as caught:
        metrics.JudgeConfig().build().update(few)
    assert tells(caught.value, "a sample: has 3 candidates ... needs 10")
