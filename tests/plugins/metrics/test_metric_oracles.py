"""The bundled metrics beside the libraries that published figures come from, on seeded features,
pictures and captions. Their networks are built with random weights; nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3plugins.metrics.captions import PUNCTUATION, bleu, caption_words, cider_d, rouge_l
from cm3plugins.metrics.fidelity import ssim
from cm3plugins.metrics.frechet import GaussianSums, frechet_distance
from cm3plugins.metrics.kid import mmd2
from cm3plugins.metrics.manifold import manifold_scores
from cm3plugins.metrics.vqa import CONTRACTIONS, normalised, vqa_accuracy

FIXTURES = Path(__file__).parents[2] / "fixtures"
OFFICIAL = json.loads((FIXTURES / "vqa_official.json").read_text(encoding="utf-8"))
COCO_WORDS = json.loads((FIXTURES / "coco_words.json").read_text(encoding="utf-8"))
CAPTIONS = """a man riding a wave on top of a surfboard.
A man's dog (brown) can't sit, at 3.5 m!
two dogs, one cat and 1,000 birds
a black-and-white photo of a stop sign
The U.S. flag is on Mr. Smith's house
"hello" says the woman; she isn't happy
a clock showing 12:30 on a wall - very old
people at the table... eating pizza & fries
a kid wearing a t-shirt that says #1
a train/bus station near St. Mary's church
he'll cannot fly they've gone
a bowl of fruit: apples, bananas and oranges?
it's a 10% discount on the menu ($5)
the dogs' toys are on the floor
a 3-D picture of a car with no. 7 on it
a man (in red) [smiling] {here}
cannot wanna gonna gimme lemme gotta d'you 'tis 'twas
she'd've y'all rock'n'roll o'clock the '90s
a 50/50 mix 5'10" tall 1st 2nd 3rd a.m. p.m. e.g. i.e. etc.
half-eaten mid-air 12-year-old state-of-the-art -- yes
what?! no!!! wait.. hmm.... ok
$5.99 €3 £4 50% #tag @home a&b a & b * x ~ y = z + w
he said "it's 'fine'" and left
AT&T and D.C. and Ph.D. and U.S.A.
one , two . three
caf\u00e9 na\u00efve \u201cquoted\u201d it\u2019s
a_b under_score file.txt www.example.com
20,000.50 3.14 1:30pm 7am 1/2 cup
Mt. Rainier vs. Dr. Who Jr. Sr. Inc. Co. Ltd. No. 5 St. Louis Ave. Blvd.
the end.Then more
mother-in-law's hat; dogs' bowls""".splitlines()


def features(num: int, size: int, seed: int, shift: float = 0.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(size, size)) / size**0.5
    return (np.abs(rng.normal(size=(num, size)) @ mixing) + shift).astype(np.float32)


@pytest.mark.parametrize(("num", "size"), [(400, 64), (40, 64), (300, 192)])
def test_fid_equals_pytorch_fid(num: int, size: int) -> None:
    """To 1e-3 relative also where the covariance is singular (40 pictures, 64 features)."""
    score = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is the oracle")
    one, other = features(num, size, 0), features(num, size, 1, 0.1)
    gaussians = []
    for rows in (one, other):
        sums = GaussianSums()
        for part in np.array_split(rows, 7):
            sums.add(part)
        gaussians.append(sums.gaussian())
        assert np.allclose(gaussians[-1][0], rows.mean(0), rtol=1e-6)
        assert np.allclose(gaussians[-1][1], np.cov(rows.astype(float), rowvar=False), atol=1e-12)
    expected = score.calculate_frechet_distance(*gaussians[0], *gaussians[1])
    assert frechet_distance(*gaussians[0], *gaussians[1]) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(*gaussians[0], *gaussians[0]) == pytest.approx(0, abs=1e-5)


def test_kid_equals_torchmetrics_and_torch_fidelity() -> None:
    one, other = features(120, 32, 0), features(120, 32, 1, 0.1)
    theirs = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is the oracle")
    wanted = theirs.poly_mmd(torch.from_numpy(one).double(), torch.from_numpy(other).double())
    assert mmd2(one, other) == pytest.approx(float(wanted), rel=1e-9)
    more = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is the oracle")
    keys = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    wanted = more.kernel_mmd(
        one.astype(float), other.astype(float), **keys, kid_kernel_poly_coef0=1
    )
    assert mmd2(one, other) == pytest.approx(float(wanted), rel=1e-9)


def test_precision_and_recall_equal_torch_fidelity() -> None:
    """And all four a calculation by N x N distances, straight from the definitions."""
    made, real = features(90, 16, 0).astype(float), features(110, 16, 1, 0.1).astype(float)
    found = manifold_scores(made, real, 3)

    def distances(a: Any, b: Any) -> Any:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    real_radius = np.sort(distances(real, real), 1)[:, 3]
    made_radius = np.sort(distances(made, made), 1)[:, 3]
    between = distances(real, made)
    assert found == pytest.approx(
        {
            "precision": (between < real_radius[:, None]).any(0).mean(),
            "recall": (between < made_radius[None]).any(1).mean(),
            "density": (between < real_radius[:, None]).sum(0).mean() / 3,
            "coverage": (between.min(1) < real_radius).mean(),
        }
    )
    theirs = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is the oracle")
    answer = theirs.prc_features_to_metric(
        torch.from_numpy(made),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=50,
        save_cpu_ram=False,
        verbose=False,
    )
    assert answer["precision"] == pytest.approx(found["precision"])
    assert answer["recall"] == pytest.approx(found["recall"])


def words_of(num: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    few = [
        "a",
        "the",
        "red",
        "dog",
        "cat",
        "on",
        "in",
        "table",
        "man",
        "sits",
        "stands",
        "with",
        "two",
    ]
    return [" ".join(rng.choice(few, int(rng.integers(3, 12)))) for _ in range(num)]


def test_captions_equal_pycocoevalcap() -> None:
    """Of captions that are words already."""
    theirs = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is the oracle")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    made, real = words_of(30, 0), [words_of(5, 1 + k) for k in range(30)]
    references, answers = dict(enumerate(real)), {k: [text] for k, text in enumerate(made)}
    samples = [(a.split(), [one.split() for one in b]) for a, b in zip(made, real, strict=True)]
    wanted, _ = theirs.Bleu(4).compute_score(references, answers, verbose=0)
    assert bleu(samples) == pytest.approx(wanted, rel=1e-9)
    _, each = Cider().compute_score(references, answers)
    assert cider_d(samples) == pytest.approx(each.tolist(), rel=1e-9)
    _, each = Rouge().compute_score(references, answers)
    assert [rouge_l(*sample) for sample in samples] == pytest.approx(each.tolist(), rel=1e-9)


def test_words_are_those_of_stanfords_tokenizer() -> None:
    """Its answers, stored: dashes, fractions, emoji, contractions by themselves, and random mixtures of what is
    hard, of which one in 200 may differ."""
    assert {text: caption_words(text) for text, _ in COCO_WORDS["named"]} == dict(
        COCO_WORDS["named"]
    )
    wrong = [text for text, words in COCO_WORDS["random"] if caption_words(text) != words]
    assert len(wrong) <= len(COCO_WORDS["random"]) / 200, wrong


@given(st.text())
def test_words_of_any_text(text: str) -> None:
    """No text is refused, words have no spaces and no capitals, and what is split stays split."""
    words = caption_words(text)
    assert all(word == word.lower() and word.split() == [word] for word in words)
    assert not PUNCTUATION & set(words)


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokenizer needs Java")
def test_words_equal_stanfords_tokenizer() -> None:
    theirs = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer", reason="pycocoevalcap is the oracle"
    )
    wanted = theirs.PTBTokenizer().tokenize(
        {k: [{"caption": text}] for k, text in enumerate(CAPTIONS)}
    )
    assert [" ".join(caption_words(text)) for text in CAPTIONS] == [
        wanted[k][0] for k in range(len(CAPTIONS))
    ]


def test_vqa_equals_the_official_script() -> None:
    for text, wanted in OFFICIAL["normalised"].items():
        assert normalised(text) == wanted, text
    for answer, people, wanted in OFFICIAL["accuracy"]:
        assert 100 * vqa_accuracy(answer, people) == pytest.approx(wanted), (answer, people)
    assert set(CONTRACTIONS) <= set(OFFICIAL["normalised"])


def test_ssim_equals_torchmetrics() -> None:
    theirs = pytest.importorskip(
        "torchmetrics.functional.image", reason="torchmetrics is the oracle"
    )
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (40, 31, 3), np.uint8)
    other = np.clip(one + rng.normal(0, 20, one.shape), 0, 255).astype(np.uint8)
    tensors = [torch.from_numpy(x.astype(float)).permute(2, 0, 1)[None] for x in (one, other)]
    wanted = theirs.structural_similarity_index_measure(*tensors, data_range=255.0)
    # torchmetrics also counts places at the border, which it pads
    inside = pytest.importorskip("skimage.metrics", reason="scikit-image is the oracle")
    exact = inside.structural_similarity(
        one,
        other,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert ssim(one, other) == pytest.approx(exact, abs=1e-4)
    assert ssim(one, other) == pytest.approx(float(wanted), abs=0.02)
