"""Records for tuning made of the icons: pairs by name, scenes, questions; what is held out stays out."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from cm3core.document import Image
from cm3core.errors import DataError, RecipeError
from cm3core.images import fit
from cm3core.interfaces import TaskSource
from cm3icons.data.corpus import IconEntry
from cm3icons.tasks import FORMS, IconTasksConfig
from cm3icons.tasks.source import (
    BADGES,
    Pair,
    Placed,
    about_icon,
    about_scene,
    blurred,
    boxes,
    draw,
    halved,
    kind_of,
    pairs_of,
    scene,
    style_change,
)
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.tasks.bundled import TASKS
from icon_corpora import write_corpus
from messages import tells

#: Form -> the task that takes its records.
TASK_OF = {
    "edit": "edit",
    "structure": "structure",
    "scene": "object_to_image",
    "grounding": "grounding",
    "question": "vqa",
    "chat": "chat",
    "super_resolution": "super_resolution",
}


def records(form: str, split: str = "train", share: float = 0.02):
    return IconTasksConfig(form=form, split=split, things_share=share, num_scenes=30).build()


def entry(name: str, words: str, style: str) -> IconEntry:
    return IconEntry(name, words, style, (), "train")


def test_pairs_by_hand() -> None:
    corpus = [
        entry("a/bell", "bell", "outline"),
        entry("a/bell-filled", "bell", "filled"),
        entry("a/bell-off", "bell off", "outline"),
        entry("b/bell", "bell", "filled"),  # another set
        entry("a/bell-2", "bell", "outline"),  # told apart from the first by nothing
    ]
    assert pairs_of(corpus) == [
        Pair(0, 1, "make it filled"),
        Pair(1, 0, "make it outline"),
        Pair(0, 2, "cross it out"),
        Pair(2, 0, "remove the slash"),
    ]
    assert style_change("outline thin rounded", "outline rounded") == "make it not thin"
    assert all(len(both) == 2 for both in BADGES.values())


@pytest.mark.parametrize("split", ["train", "restyle", "compose", "unseen"])
def test_what_is_held_out_stays_out(split: str) -> None:
    """Targets are of the split; what is given for them is of it or of train."""
    for form in ("edit", "structure"):
        source = records(form, split, 0.5)
        targets = {source.entries[pair.target].split for pair in source.pairs}
        given = {source.entries[pair.source].split for pair in source.pairs}
        assert targets == {split}
        assert given <= {split, "train"}
    source = records("scene", split, 0.2)
    placed = [one for number in range(20) for one in source.placed(number)]
    assert {source.entries[one.icon].split for one in placed} == {split}


def test_scenes() -> None:
    pool = [(index, name) for index, name in enumerate(["bell", "key", "lock", "star", "heart"])]
    sizes = Counter()
    for number in range(200):
        placed = scene("train", number, pool, 64)
        assert placed == scene("train", number, pool, 64)
        sizes[len(placed)] += 1
        whole = np.zeros((64, 64), int)
        for one in placed:
            x0, y0, x1, y1 = one.box
            whole[y0:y1, x0:x1] += 1
        assert whole.max() == 1  # no two meet
        assert boxes(placed, 64).seen()
    assert set(sizes) == {1, 2, 3, 4}  # one where the same name was drawn twice
    assert scene("train", 0, pool, 64) != scene("comp", 0, pool, 64)


def test_forms_share_their_scenes_and_no_others() -> None:
    """A process makes each once; another split, share of things or size has its own."""
    scenes, found = records("scene"), records("grounding")
    assert scenes.placed(3) is found.placed(3)
    assert scenes.placed(3) == scene("train", 3, scenes.pool, scenes.config.image_size)
    assert records("scene", share=0.03).placed(3) != scenes.placed(3)
    assert records("scene", "variant").placed(3) != scenes.placed(3)


def test_a_scene_is_drawn_at_its_boxes() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    placed = (Placed(0, "a", (2, 3, 22, 23)), Placed(1, "b", (40, 33, 60, 53)))
    whole = draw(placed, [black, black], 64)
    inside = np.zeros((64, 64), bool)
    inside[3:23, 2:22] = inside[33:53, 40:60] = True
    assert np.array_equal(whole[..., 0] == 0, inside)


def test_questions() -> None:
    rng = np.random.default_rng(0)
    crossed = entry("a/bell-off", "bell off", "outline rounded")
    asked = {about_icon(crossed, rng) for _ in range(300)}
    assert {
        ("What is it?", "bell off"),
        ("Is it crossed out?", "yes"),
        ("In what style is it drawn?", "outline rounded"),
        ("Is it rounded?", "yes"),
        ("Is it filled?", "no"),
    } <= asked
    placed = (Placed(0, "a", (2, 3, 22, 23)), Placed(1, "b", (40, 33, 60, 53)))
    answers = [about_scene(placed, 64, lambda: "c", rng) for _ in range(300)]
    assert set(answers) == {
        ("How many things are there?", "two"),
        ("Is there a a?", "yes"),
        ("Is there a b?", "yes"),
        ("Is there a c?", "no"),
        ("Where is the a?", "upper left"),
        ("Where is the b?", "lower right"),
    }
    there = Counter(answer for question, answer in answers if question.startswith("Is there"))
    assert 0.35 < there["yes"] / sum(there.values()) < 0.65


def test_a_chat_by_hand() -> None:
    """As the data set `conversations` writes turns: the first has nothing before it."""
    source = records("chat")
    record = source.record(3, np.random.default_rng(5))
    found = re.fullmatch(r"(.+[?]) Assistant: (.+) User: (.+[?])", record["conversation"])
    assert found is not None
    entry = source.entries[source.icons_in_split[3]]
    same = np.random.default_rng(5)
    assert found.group(1, 2) == about_icon(entry, same)
    assert (found[3], record["answer"]) == about_icon(entry, same)


def test_super_resolution_by_hand() -> None:
    """What is given is what a model sees of a file of 32 x 32 pixels of the same icon."""
    source = records("super_resolution", share=0.01)
    for index in (0, 7):
        record = source.record(index)
        target = record["target"].load()
        assert np.array_equal(target, source.picture(source.icons_in_split[index]).load())
        file = Pillow.fromarray(target).resize((32, 32), Pillow.Resampling.LANCZOS)
        assert np.array_equal(record["source"].load(), fit(np.asarray(file), (64, 64)))
        assert record["source"].key != record["target"].key
        assert source.group(index) == source.entries[source.icons_in_split[index]].words
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(halved(flat), flat[:4, :4])
    assert np.array_equal(blurred(flat), flat)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_tasks_take_all_records(form: str) -> None:
    source = records(form)
    task = TASKS[TASK_OF[form]]().build()
    tuned = TaskSource(source, task)
    assert len(tuned) == len(source) > 20
    assert not tuned.skipped
    rng = np.random.default_rng(1)
    for index in np.linspace(0, len(source) - 1, 7).astype(int).tolist():
        for segment in tuned.document(index, rng):
            if isinstance(segment, Image):
                assert segment.load().shape == (64, 64, 3)


@cache
def small_corpus() -> str:
    return str(write_corpus(Path(tempfile.mkdtemp())))


class OfASmallCorpus(DocumentSourceContract):
    form = "scene"

    def make(self):
        return IconTasksConfig(form=self.form, path=small_corpus(), num_scenes=5).build()


class TestScenes(OfASmallCorpus):
    max_examples = 4


class TestGrounding(OfASmallCorpus):
    form, max_examples = "grounding", 4


class TestChat(OfASmallCorpus):
    form, max_examples = "chat", 4


class TestSuperResolution(OfASmallCorpus):
    form, max_examples = "super_resolution", 4


class TestQuestions(OfASmallCorpus):
    form, max_examples = "question", 4


def test_a_form_without_records() -> None:
    with pytest.raises(DataError) as error:
        IconTasksConfig(form="edit", path=small_corpus()).build()
    assert tells(error.value, "dataset: no record of ... 'edit' ... 'train'")


def test_changes_choose_among_the_pairs() -> None:
    shares = {
        changes: IconTasksConfig(form="edit", changes=changes, things_share=0.05).build()
        for changes in ("all", "style", "badge")
    }
    both = shares["style"].pairs, shares["badge"].pairs
    assert shares["all"].pairs == [*both[0], *both[1]]
    assert {pair.instruction for pair in both[1]} <= {
        word for two in BADGES.values() for word in two
    }
    assert all(kind_of(pair) == "style" for pair in both[0])
    assert len({source.fingerprint for source in shares.values()}) == 3


def test_changes_of_another_form() -> None:
    with pytest.raises(RecipeError) as error:
        IconTasksConfig(form="scene", changes="badge").check()
    assert tells(error.value, "dataset.changes: is 'badge' ... 'edit' ... 'scene'")


def test_where_alone_is_asked_about_the_same_scenes() -> None:
    settings = {"form": "question", "things_share": 0.02, "num_scenes": 8}
    every, source = (IconTasksConfig(**settings, asks=asks).build() for asks in ("all", "where"))
    assert len(source) == 8
    for index in range(8):
        asked, same = source.record(index), every.record(len(every) - 8 + index)
        assert asked["image"].key == same["image"].key
        assert asked["question"].startswith("Where is the ")
        assert asked["answer"] in {
            f"{y} {x}" for y in ("upper", "lower") for x in ("left", "right")
        }
        assert source.content_keys(index) == every.content_keys(len(every) - 8 + index)
    assert source.fingerprint != every.fingerprint


def test_asks_of_another_form() -> None:
    with pytest.raises(RecipeError) as error:
        IconTasksConfig(form="chat", asks="where").check()
    assert tells(error.value, "dataset.asks: is 'where' ... 'question' ... 'chat'")


def test_unknown_splits() -> None:
    with pytest.raises(RecipeError) as error:
        IconTasksConfig(split="all").check()
    assert tells(error.value, "dataset.split: is 'all'")
