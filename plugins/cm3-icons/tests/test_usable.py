"""The judge of icons: the asked thing, in the asked hand, and no copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.shipped import find_protocol
from cm3core.errors import DataError
from cm3core.interfaces.metric import Case, MetricBatch
from cm3icons.data.closed import JUDGED
from cm3icons.data.corpus import IconCorpus, IconEntries, IconEntry
from cm3icons.evaluation import copied, real_drawings, usable, usable_metric
from cm3icons.evaluation.copied import HAND, RANDOM, THING, Copied
from cm3icons.evaluation.hand_judge import HandJudge
from cm3icons.evaluation.usable import NUM_NAMES, Asked, IconJudge, Verdict
from cm3icons.evaluation.usable_metric import ThingConfig, UsableConfig
from cm3icons.evaluation.verdict_sheet import said, verdict_sheet
from cm3kits.metric import MetricContract
from messages import tells

THINGS = (
    "bell off",
    "bell",
    *(f"thing{letter}{other}" for letter in "abcdefghijk" for other in "abcdefghijk"),
)
HANDS = (("lucide", "outline"), ("mdi", "filled"), ("bold", "filled"))
#: Dimension of the pretended readings.
WIDTH = 64


def drawing(thing: str, hand: int) -> Any:
    """A pretended drawing: squares that depend on the thing, thinner or thicker with the hand."""
    rng = np.random.default_rng([*thing.encode(), 1])
    picture = np.full((64, 64, 3), 255, np.uint8)
    for row, column in np.argwhere(rng.random((6, 6)) < 0.4).tolist():
        top, left = 8 + 8 * row, 8 + 8 * column
        picture[top : top + 3 + 2 * hand, left : left + 3 + 2 * hand] = 0
    return picture


def vector(text: str) -> Any:
    rng = np.random.default_rng([*text.encode(), 2])
    own = rng.normal(size=WIDTH)
    return (own / np.linalg.norm(own)).astype(np.float32)


class Names:
    """Words have random vectors, and names those of their words."""

    def __call__(self, names: Any) -> Any:
        found = [sum(vector(word) for word in name.split()) for name in names]
        return np.stack([own / np.linalg.norm(own) for own in found]).astype(np.float32)


class Pretended:
    """Reads a drawing as what it was drawn for."""

    fingerprint = "pretended"

    def __init__(self, of_hands: bool) -> None:
        self._of_hands = of_hands
        self._known = {
            drawing(thing, hand).tobytes(): (thing, hand)
            for thing in THINGS
            for hand in range(len(HANDS))
        }

    def read(self, pictures: Any) -> Any:
        found = [self._known.get(one.tobytes(), ("nothing", -1)) for one in pictures]
        if not self._of_hands:
            return Names()([thing for thing, _ in found])
        rows = np.full((len(found), len(HANDS) + 1), 0.1, np.float32)
        rows[range(len(found)), [hand for _, hand in found]] = 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def corpus() -> Any:
    """Three sets that draw the same things; `bell off` is held out, and the last set is held out whole."""
    entries = []
    for place, (set_name, style) in enumerate(HANDS):
        for thing in THINGS:
            split = "unseen" if thing == "bell off" else "strangers" if place == 2 else "train"
            entries.append(IconEntry(f"{set_name}/{thing}", thing, style, ("tag",), split))
    ids = {entry.id: index for index, entry in enumerate(entries)}
    return SimpleNamespace(
        entries=IconEntries.of(entries),
        manifest=SimpleNamespace(source=lambda name: ("", "", f"https://{name}")),
        copies={},
        data_sha256="0",
        index=ids.__getitem__,
        is_rendered=lambda size: False,
        render=lambda index, size: drawing(entries[index].words, index // len(THINGS)),
    )


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> IconJudge:
    monkeypatch.setattr(usable, "ThingReader", lambda: Pretended(False))
    monkeypatch.setattr(usable, "HandReader", lambda: Pretended(True))
    monkeypatch.setattr(usable, "Names", Names)
    known = corpus()
    return IconJudge(known, range(len(known.entries)))


ASKED = Asked("bell off", "lucide", "outline", "lucide/bell off")


def test_the_right_thing_in_the_hand_is_usable(judge: IconJudge) -> None:
    [verdict] = judge.judge([drawing("bell off", 0)], [ASKED], [[drawing("bell", 0)]])
    assert (verdict.rank, verdict.read_as, verdict.hand) == (1, "bell off", True)
    assert verdict.usable
    assert not verdict.copy
    assert verdict.neighbours


@pytest.mark.parametrize(
    ("what", "picture", "documents", "reason"),
    [
        ("a copied document", drawing("bell off", 0), [drawing("bell off", 0)], "copy"),
        ("the thing in another hand", drawing("bell off", 1), [], "hand"),
        ("a random drawing of the hand", drawing("thingab", 0), [], "thing"),
        ("what the thing is a variant of", drawing("bell", 0), [], "thing"),
        ("a blank picture", np.full((64, 64, 3), 255, np.uint8), [], "thing"),
    ],
)
def test_what_is_wrong_is_not_usable(
    judge: IconJudge, what: str, picture: Any, documents: Any, reason: str
) -> None:
    [verdict] = judge.judge([picture], [ASKED], [documents])
    assert not verdict.usable, what
    right = {"thing": verdict.thing, "hand": verdict.hand, "copy": not verdict.copy}
    assert not right[reason], what


def test_a_drawing_of_the_memory_is_a_copy_wherever_it_is_drawn(judge: IconJudge) -> None:
    moved = np.roll(drawing("bell", 0), (3, -4), (0, 1))
    asked = replace(ASKED, thing="bell", id="")
    [verdict] = judge.judge([moved], [asked], [[]])
    assert verdict.copy
    assert verdict.nearest == "lucide/bell"
    assert verdict.nearness == pytest.approx(1)


def test_the_drawing_that_is_asked_for_is_never_compared_with(judge: IconJudge) -> None:
    held_out = Asked("thingab", "bold", "filled", "bold/thingab")
    [verdict] = judge.judge([drawing("thingab", 2)], [held_out], [[]])
    assert verdict.nearest != "bold/thingab"
    [other] = judge.judge([drawing("thingac", 2)], [held_out], [[]])
    assert (
        other.nearest == "bold/thingac"
    )  # of a set that is held out whole, the rest is the memory
    among = judge.real.foreign_to("bold", judge.real.row("bold/thingab"))
    assert not among[judge.real.row("bold/thingac")]


def test_names_are_of_the_hand_without_synonyms_and_with_parts(
    judge: IconJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = judge.names(ASKED)
    assert len(names) == len(set(names)) == NUM_NAMES
    assert names[:2] == ["bell off", "bell"]  # a part is always among them
    assert names == judge.names(ASKED)
    assert names != judge.names(replace(ASKED, id="mdi/bell off"))
    synonym = next(name for name in names if name not in ("bell off", "bell"))
    monkeypatch.setattr(usable, "SYNONYM", -1.0)
    with pytest.raises(DataError, match="has 2 names besides synonyms"):
        judge._choose(ASKED)  # everything is a synonym but what shares a word
    monkeypatch.setattr(usable, "SYNONYM", 0.6)
    assert judge.names(replace(ASKED, instead=(synonym,)))[1] == synonym


def test_hands_by_hand(judge: IconJudge) -> None:
    """Two hands at right angles: a drawing between them is left out where nine in ten are nearer."""
    real, hands = judge.real, HandJudge(judge.real)
    own = real.hands_ME[0]
    assert hands.is_in(own, HANDS[0])
    assert not hands.is_in(own, HANDS[1])
    assert hands.is_in(own, ("lucide", "new"))  # an unknown style of a set: all its drawings
    assert not hands.is_in(own, ("mdi", "new"))
    assert hands.is_in(real.hands.read([drawing("bell", 2)])[0], HANDS[2], but=None)
    pictures = [drawing(thing, 1) for thing in THINGS[:5]]
    assert hands.is_like(real.hands_ME[len(THINGS)], pictures)
    assert not hands.is_like(own, pictures)
    with pytest.raises(DataError) as caught:
        hands.is_like(own, pictures[:4])
    assert tells(caught.value, "the hand: has 4 drawings ... at least 5")
    with pytest.raises(DataError) as caught:
        hands.is_in(own, ("nobody", "outline"))
    assert tells(caught.value, "set 'nobody': has 0 real drawings")


def test_a_users_own_set_is_read_once(judge: IconJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [drawing(thing, 2) for thing in THINGS[2:12]]
    asked = Asked("bell off", drawings=own, names=THINGS)
    numbers = []
    read = Pretended.read

    def counted(self: Pretended, pictures: Any) -> Any:
        numbers.append(len(pictures))
        return read(self, pictures)

    _ = judge.real.hands_ME
    monkeypatch.setattr(Pretended, "read", counted)
    found = judge.judge([drawing("bell off", 2), drawing("bell off", 0)], [asked] * 2, [own, own])
    assert [one.usable for one in found] == [True, False]
    assert numbers.count(len(own)) == 1


def test_real_drawings_are_read_once(
    judge: IconJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = corpus()
    monkeypatch.setattr(
        known,
        "pictures",
        lambda size: [known.render(i, 64) for i in range(len(known.entries))],
        raising=False,
    )
    made = [
        real_drawings.RealDrawings(known, Pretended(False), Pretended(True), None, tmp_path)
        for _ in range(3)
    ]
    first = made[0].things_MD
    monkeypatch.setattr(Pretended, "read", None)
    assert np.array_equal(made[1].things_MD, first)
    [path] = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    with pytest.raises(TypeError):
        _ = made[2].things_MD  # it reads them again


def test_some_real_drawings_are_read_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept by which they are; and taken from the readings of all, if these are kept."""
    known = corpus()
    pictures = [known.render(index, 64) for index in range(len(known.entries))]
    monkeypatch.setattr(known, "pictures", lambda size: pictures, raising=False)
    monkeypatch.setattr(known, "is_rendered", lambda size: True, raising=False)

    def real(indices: list[int] | None) -> real_drawings.RealDrawings:
        pretended = Pretended(False), Pretended(True)
        return real_drawings.RealDrawings(known, *pretended, indices, tmp_path)

    some, others = [7, 2, 9], [1, 3]
    first = real(some).things_MD
    with monkeypatch.context() as patch:
        patch.setattr(Pretended, "read", None)
        assert np.array_equal(real(some).things_MD, first)
        with pytest.raises(TypeError):
            _ = real(others).things_MD
    everything = real(None)
    rows = [everything.indices.index(index) for index in others]
    expected = everything.things_MD[rows], everything.hands_ME[rows]
    monkeypatch.setattr(Pretended, "read", None)
    part = real(others)
    assert np.array_equal(part.things_MD, expected[0])
    assert np.array_equal(part.hands_ME, expected[1])


def test_what_could_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "Names", Names)
    known = corpus()
    entry = known.entries[known.index("lucide/bell off")]
    found = {name: known.entries[place] for name, place in Copied(known).of(entry).items()}
    assert list(found) == [THING, HAND, RANDOM]
    assert found[THING].id == found[HAND].id == "lucide/bell"
    assert found[RANDOM].set_name == "lucide"
    assert all(one.split == "train" for one in found.values())
    stranger = known.entries[known.index("bold/thingab")]
    found = {name: known.entries[place] for name, place in Copied(known).of(stranger).items()}
    assert found[THING].id == "mdi/thingab"  # the nearer of the two hands in `train`
    assert found[HAND].set_name == found[RANDOM].set_name == "bold"
    assert "thingab" not in (found[HAND].words, found[RANDOM].words)
    with pytest.raises(DataError, match="has no drawing in its hand"):
        Copied(known).of(entry._replace(id="new/bell off", style="thin"))


def test_the_sheet_shows_all_cases() -> None:
    good = Verdict(1, "bell", True, 0.2, "lucide/bell", True)
    bad = Verdict(3, "car", False, 0.9, "document", False)
    assert said(good) == "usable"
    assert said(bad) == "reads as car; other hand; copies document"
    picture = drawing("bell", 0)
    cases = [
        Case("bell, outline, lucide", picture, [picture] * number, picture) for number in range(4)
    ]
    one = verdict_sheet(cases[:1], {0: good})
    four = verdict_sheet(cases, dict.fromkeys(range(4), bad))
    eight = verdict_sheet(cases * 2, dict.fromkeys(range(8), bad))
    assert four.shape[1] > one.shape[1]
    assert eight.shape[1] == four.shape[1]
    assert eight.shape[0] > four.shape[0]


@pytest.mark.parametrize("split", JUDGED)
def test_each_closed_split_has_a_protocol_with_the_judge(split: str) -> None:
    protocol = find_protocol(f"icons-{split}-closed-v2")
    assert protocol.scores[0] == {"metric": {"name": "usable"}}
    assert protocol.task["baselines"] is True
    assert protocol.task["dataset"]["styles"] == ["-colour"]
    assert protocol.task["split"] == split


class FakeJudge:
    """Takes a picture's first pixel for its rank, the second for the hand, the third for its nearness."""

    fingerprint = "fake"

    def judge(self, pictures: Any, asked: Any, documents: Any) -> list[Verdict]:
        return [
            Verdict(
                1 + int(p[0, 0, 0]) % 3,
                "x",
                bool(p[0, 1, 0] % 2),
                int(p[0, 2, 0] % 2),
                "",
                bool(p[0, 3, 0] % 2),
            )
            for p in pictures
        ]

    def things(self, pictures: Any, asked: Any) -> list[tuple[int, str]]:
        return [(one.rank, "x") for one in self.judge(pictures, asked, asked)]

    def neighbours(self, picture: Any, asked: Any) -> bool:
        return bool(picture[0, 3, 0] % 2)


#: Rank less one, hand, copy, neighbour.
CASES = [(0, 1, 0, 1), (0, 1, 1, 1), (0, 0, 0, 0), (2, 1, 0, 1)]


class TestThing(MetricContract):
    config = ThingConfig()

    @pytest.fixture(autouse=True)
    def _judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(usable_metric, "_judge", lambda sets: FakeJudge())

    def column(self, name: str, num: int, rng: np.random.Generator) -> Any:
        if name == "targets":
            return [
                {"group": "bell", "set": "lucide", "style": "", "id": str(i)} for i in range(num)
            ]
        return super().column(name, num, rng)

    def samples(self) -> MetricBatch:
        pictures = [np.zeros((4, 4, 3), np.uint8) for _ in CASES]
        for picture, case in zip(pictures, CASES, strict=True):
            picture[0, :, 0] = case
        columns = {
            "pictures": pictures,
            "targets": self.column("targets", 4, np.random.default_rng()),
        }
        return MetricBatch(range(4), {**columns, "documents": [[]] * 4})

    def known_answers(self) -> Any:
        return [([self.samples()], {"thing": 75.0, "name_rank": 1.5, "neighbours": 75.0})]

    def test_a_sample_without_a_name_is_refused(self) -> None:
        columns = {
            "pictures": [np.zeros((4, 4, 3), np.uint8)],
            "targets": [{"group": "bell"}],
            "documents": [[]],
        }
        batch = MetricBatch([0], columns)
        with pytest.raises(DataError) as caught:
            self.config.build().update(batch)
        assert tells(caught.value, "a sample: states no name, set and style")


class TestUsable(TestThing):
    config = UsableConfig()

    def known_answers(self) -> Any:
        answers = {
            "usable": 25.0,
            "thing": 75.0,
            "in_hand": 75.0,
            "copied": 25.0,
            "thing_in_hand": 50.0,
            "thing_top5": 100.0,
            "name_rank": 1.5,
        }
        return [([self.samples()], answers)]


@pytest.mark.slow
def test_the_shipped_judge_knows_real_icons() -> None:
    """A few hundred real drawings of things that it never learned: each is read, copies and other hands are refused."""
    known = IconCorpus(held_out="closed")
    entries = known.entries
    chosen = [
        i
        for i, own in enumerate(entries.ids)
        if own.startswith(("lucide/", "solar/", "teenyicons/"))
    ]
    judge = IconJudge(known, chosen)
    cases = [i for i in chosen if entries.splits[i] == "strangers"][:60]
    pictures = [known.render(i, 64) for i in cases]
    asked = [
        Asked(entries.words[i], entries[i].set_name, entries.styles[i], entries.ids[i])
        for i in cases
    ]
    found = judge.judge(pictures, asked, [[]] * len(cases))
    assert np.mean([one.thing for one in found]) > 0.2  # chance: 0.01
    assert np.mean([one.hand for one in found]) > 0.7
    others = [replace(one, set_name="solar", style="filled") for one in asked]
    assert np.mean([one.hand for one in judge.judge(pictures, others, [[]] * len(cases))]) < 0.2
    copies = judge.judge(pictures, asked, [[one] for one in pictures])
    assert not any(one.usable for one in copies)
