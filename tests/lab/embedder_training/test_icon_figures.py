"""Figures on icons: each by hand, and against a search by loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cm3core.document import PixelArray
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3lab.embedder_training.figures import (
    NUM_CHOICES,
    TOP,
    Ground,
    among,
    bm25_figures,
    icon_figures,
    parts_of,
    version_figures,
)
from cm3plugins.datasets.icons.captions import caption
from cm3plugins.datasets.icons.corpus import IconEntry


def entry(name: str, words: str, style: str = "outline", split: str = "train") -> IconEntry:
    return IconEntry(name, words, style, (), split)


ENTRIES = [
    entry("lucide/bell", "bell"),
    entry("lucide/bell-filled", "bell", "filled"),
    entry("mdi/bell", "bell"),
    entry("mdi/bells", "bells"),
    entry("mdi/lock", "lock"),
    entry("bi/bell", "bell", split="comp"),
    entry("mdi/bell-2", "bell", "filled", split="comp"),
    entry("bi/key", "key", split="comp"),
]


def ground_of(entries: Sequence[IconEntry]) -> Ground:
    return Ground(
        entries, [caption(one) for one in entries], lambda row: np.full((2, 2, 3), row, np.uint8)
    )


class Words(Embedder):
    """A text is its letters' counts; a picture says nothing: the same small number everywhere."""

    dimension = 26
    fingerprint = "words"

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        counts = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return normalise(np.array(counts, np.float32))

    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return normalise(np.ones((len(images), 26), np.float32))


def test_shares_by_hand():
    """Queries: `bell` of lucide finds lucide's other one first; `bell` of mdi finds `bells`, then lucide's."""
    ground = ground_of(ENTRIES)
    assert ground.memory == [0, 1, 2, 3, 4]
    nearest = np.array([[1, 2], [3, 0]])
    assert version_figures("q", [0, 2], nearest, ground, by_set=True) == {
        "q -> versions": {"R@1": 0.5, "R@5": 1.0},
        # mdi has no other bell
        "q -> versions of its set, where there are": {"R@1": 1.0, "R@5": 1.0},
        "q -> versions, or other order, plural or number": {"R@1": 1.0, "R@5": 1.0},
        "q of lucide -> versions": {"R@1": 1.0, "R@5": 1.0},
        "q of mdi -> versions": {"R@1": 0.0, "R@5": 1.0},
    }


def test_a_held_out_query_may_have_a_version_of_its_set():
    """mdi/bell-2 is not in the memory, mdi/bell is; the first found is another set's."""
    found = version_figures("q", [6], np.array([[0, 2]]), ground_of(ENTRIES))
    assert found["q -> versions"]["R@1"] == 1
    assert found["q -> versions of its set, where there are"] == {"R@1": 0.0, "R@5": 1.0}


def test_nothing_found_counts_as_wrong():
    found = version_figures("q", [0], np.full((1, TOP), -1), ground_of(ENTRIES))
    assert found["q -> versions"] == {"R@1": 0.0, "R@5": 0.0}


def test_what_is_one_thing():
    assert parts_of("arrow left 2") == parts_of("left arrows")
    assert parts_of("123") != parts_of("456")  # numbers that are all there is


def test_queries_never_find_themselves_and_need_a_version():
    """`key` and `lock` have no version; every tenth row of the memory asks: lucide/bell."""
    measured = icon_figures(Words(), ground_of(ENTRIES))
    assert measured["train: caption -> versions"]["R@1"] == 1
    # its own document is the nearest by far, and is left out
    assert measured["train: caption -> versions of its set, where there are"]["R@1"] == 1
    assert measured["comp: words alone -> versions"]["R@1"] == 1
    assert measured["comp: words turned -> versions"] == measured["comp: caption -> versions"]
    assert [name for name in measured if name.startswith("train: caption of")] == [
        "train: caption of lucide -> versions"
    ]


def test_pictures_search_all_pictures_but_their_own():
    """A picture's look is its row modulo 5: bells 5 and 6 find 0 and 1, both bells; `key` has no version."""

    class Looks(Words):
        looks_fingerprint = "looks"

        def _embed_looks(self, images: Sequence[PixelArray]) -> VectorArray:
            return np.eye(26, dtype=np.float32)[[int(image[0, 0, 0]) % 5 for image in images]]

    measured = icon_figures(Looks(), ground_of(ENTRIES))
    assert measured["comp: picture -> versions among all pictures"]["R@1"] == 1
    assert "unseen: picture -> versions among all pictures" not in measured


def test_bm25_answers_the_same_questions():
    ground = ground_of(ENTRIES)
    measured = bm25_figures(ground)
    assert measured["comp: caption, by bm25 -> versions"]["R@1"] == 1
    assert measured["train: caption, by bm25 of lucide -> versions"]["R@1"] == 1


@pytest.mark.parametrize(("sign", "share"), [(1, 1.0), (-1, 0.0)])
def test_a_picture_among_others(sign: int, share: float):
    """Each picture's vector is its caption's, or the opposite; two styles, one of them too small."""
    number = NUM_CHOICES + 5
    entries = [entry(f"mdi/{row}", f"thing {row}") for row in range(number)]
    entries += [entry("mdi/lock", "lock", "filled")]
    rng = np.random.default_rng(0)
    captions = normalise(rng.normal(size=(number + 1, 8)).astype(np.float32))
    assert among(captions, sign * captions, entries)["R@1"] == share
    same = np.ones_like(captions)
    assert among(same, same, entries)["R@5"] == 0  # what can't be told apart is not found


def test_no_style_has_enough():
    assert among(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), ENTRIES[:1]) == {}
