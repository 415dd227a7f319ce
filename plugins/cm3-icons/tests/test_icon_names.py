"""Names of icons taken apart, the style vocabulary, and the fixed splits."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3icons.data.comparison import NEAR, close_pairs, neighbours, shrink
from cm3icons.data.sets import PERMITTED_LICENCES, all_sets
from cm3icons.data.splits import SPLITS, assign_splits, parts, read_name
from messages import tells


@pytest.mark.parametrize(
    ("set_name", "name", "thing", "style"),
    [
        ("material-symbols", "bell-outline-rounded", "bell", "outline rounded"),
        ("material-symbols", "bell", "bell", "filled"),
        ("ph", "bell-slash-duotone", "bell-slash", "outline duotone rounded"),
        ("solar", "bell-off-line-duotone", "bell-off", "outline duotone rounded"),
        ("ic", "twotone-lock", "lock", "duotone"),
        ("ic", "round-lock-open", "lock-open", "filled rounded"),
        ("fluent", "alert-off-24-regular", "alert-off", "outline rounded"),
        ("octicon", "bell-fill-24", "bell", "filled"),
        ("octicon", "bell-24", "bell", "outline"),
        ("heroicons", "bell-solid", "bell", "filled rounded"),
        ("hugeicons", "user-01", "user-1", "outline rounded"),
        ("icon-park", "lock-one", "lock-one", "colour"),
    ],
)
def test_a_name_is_taken_apart(set_name: str, name: str, thing: str, style: str) -> None:
    parsed = read_name(name, all_sets()[set_name])
    assert parsed is not None
    assert parsed.thing == thing
    assert " ".join(parsed.style) == style


@pytest.mark.parametrize(
    ("set_name", "name"),
    [
        ("tabler", "brand-github"),
        ("ph", "github-logo-fill"),
        ("lucide", "facebook"),
        ("teenyicons", "google-drive-outline"),
        ("fluent", "alert-20-regular"),
        ("octicon", "bell-16"),
        ("heroicons", "bell-20-solid"),
        ("fluent-emoji-high-contrast", "waving-hand-medium-dark"),
    ],
)
def test_logos_sizes_and_skin_tones_are_left_out(set_name: str, name: str) -> None:
    assert read_name(name, all_sets()[set_name]) is None


def test_every_set_has_a_permitted_licence_and_known_style_words() -> None:
    for icon_set in all_sets().values():
        icon_set.check()
        assert icon_set.licence in PERMITTED_LICENCES
        assert len(icon_set.sha256) == 64


def test_an_unknown_style_word_and_licence_are_named() -> None:
    icon_set = all_sets()["lucide"]
    with pytest.raises(DataError) as error:
        dataclasses.replace(icon_set, default="outlined").check()
    assert tells(error.value, "icon set lucide: the style word 'outlined' ... 'outline'")
    with pytest.raises(DataError, match=r"its licence is CC-BY-SA-4\.0, which is not permitted"):
        dataclasses.replace(icon_set, licence="CC-BY-SA-4.0").check()


def test_parts_leave_out_what_only_tells_variants_apart() -> None:
    assert parts(("arrows", "up", "2")) == {"arrow", "up"}
    assert parts(("user", "one")) == parts(("users",)) == {"user"}


NAMES = st.lists(
    st.lists(
        st.sampled_from(["bell", "lock", "user", "file", "off", "plus", "star", "cloud"]),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=60,
)


@given(NAMES, st.data())
def test_splits_hold_out_what_they_say(names: list[list[str]], data: st.DataObject) -> None:
    words = [tuple(name) for name in names]
    ids = [f"set/{index}" for index in range(len(words))]
    linked = data.draw(
        st.lists(st.tuples(*(st.integers(0, len(words) - 1),) * 2), max_size=5), label="near"
    )
    near = neighbours([(i, j, 0.0) for i, j in linked if i != j])
    splits = assign_splits(ids, words, near)
    assert set(splits) <= {*SPLITS, None}
    of_split = {
        split: {parts(name) for name, its in zip(words, splits, strict=True) if its == split}
        for split in SPLITS
    }
    assert not of_split["unseen"] & (of_split["train"] | of_split["comp"] | of_split["compose"])
    seen_pairs = {pair for thing in of_split["train"] for pair in combinations(sorted(thing), 2)}
    for thing in of_split["compose"]:
        assert not set(combinations(sorted(thing), 2)) <= seen_pairs
    for i, others in near.items():
        for j in others:
            if splits[i] in ("unseen", "compose"):
                assert splits[j] in (splits[i], None) or parts(words[i]) == parts(words[j])


def test_adding_a_drawing_moves_no_other() -> None:
    words = [(first, second) for first in "abcdefgh" for second in "ijklmnop"]
    words = [(f"{a}-thing", f"{b}-other") for a, b in words] * 3
    ids = [f"set/{index}" for index in range(len(words))]
    before = assign_splits(ids, words, {})
    after = assign_splits([*ids, "new/1"], [*words, ("something", "else")], {})
    assert after[:-1] == before


def test_near_duplicates_are_pairs_of_almost_equal_pictures() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 64, 64), dtype=np.uint8)
    pictures = np.kron(
        rng.integers(0, 2, (40, 8, 8), dtype=np.uint8) * 255, np.ones((8, 8), np.uint8)
    )
    pictures[7] = pictures[3]
    pictures[7, :2, :2] = 128
    pairs = close_pairs(shrink(pictures))
    assert [(i, j) for i, j, _ in pairs] == [(3, 7)]
    assert 0 < pairs[0][2] < NEAR
    small = shrink(pictures)
    expected = np.square(small[3] - small[7]).sum()
    assert pairs[0][2] == pytest.approx(float(expected), rel=1e-5)
