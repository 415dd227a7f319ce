"""Metrics of scenes: facts, edits, captions and boxes by hand, and the kit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.boxes import text_of_boxes
from cm3core.errors import DataError
from cm3core.interfaces.metric import MetricBatch
from cm3kits.metric import MetricContract
from cm3plugins.scenes.composing import RASTERS, Corner, Item, Scene, plain
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.judging import (
    METRICS,
    SceneBoxesConfig,
    SceneCaptionConfig,
    SceneDocumentsConfig,
    SceneEditConfig,
    SceneMetricConfig,
    ScenesMetricConfig,
)
from cm3plugins.scenes.keys import Form, Relation, SizeName
from cm3plugins.scenes.measures import (
    Box,
    descriptions,
    edited,
    facts,
    is_caption,
    is_right,
    kept,
    located,
    objects,
    pasted,
)
from cm3plugins.scenes.reader import Found, Reading, SceneReader
from cm3plugins.scenes.source import SceneSource
from cm3plugins.scenes.wording import Words
from messages import tells

FINE = RASTERS["fine"]
KEYS: dict[str, Any] = {"raster": "coarse", "concepts": "quickstart", "styles": ["noto"]}


def item(
    concept: str, *corners: Corner, size: SizeName = "large", place: str = "", style: str = "noto"
) -> Item:
    return Item(concept, style, size, corners, place)


def read(*items: Item, background: str = "white", is_whole: bool = True) -> Reading:
    """The reading of a picture that shows these."""
    found = [Found(i.concept, i.style, i.size, c, 0.0) for i in items for c in i.corners]
    return Reading(tuple(found), background, is_whole)


def shown(scene: Scene) -> Reading:
    return read(*scene.items, background=scene.background)


FOX = item("fox", (1, 1), place="top left")
OWL = item("owl", (11, 6), size="small", place="right")
CARS = item("red-car", (1, 9), (9, 9))
ONE, TWO = Scene((FOX,), "mint"), Scene((FOX, OWL), "white")
SEVERAL = Scene((CARS,), "white")
#: A fox left of an owl, both without a place.
LEFT = Scene((item("fox", (1, 1)), item("owl", (11, 6), size="small")), "white", "left of")

# ---- facts


@pytest.mark.parametrize(
    ("scene", "reading", "right", "wrong"),
    [
        (ONE, shown(ONE), "single_object position colours styles", ""),
        (ONE, read(background="mint"), "colours", "single_object position styles"),
        (ONE, shown(replace(ONE, background="sand")), "single_object position styles", "colours"),
        # twice is no matter of the kind of object, but of its place
        (
            ONE,
            read(FOX, item("fox", (9, 9)), background="mint"),
            "single_object colours styles",
            "position",
        ),
        (
            ONE,
            read(replace(FOX, style="fluent"), background="mint"),
            "single_object position colours",
            "styles",
        ),
        (
            ONE,
            read(item("fox", (1, 2)), background="mint"),
            "single_object colours styles",
            "position",
        ),
        (TWO, shown(TWO), "two_objects position colours styles", ""),
        (TWO, read(FOX), "colours", "two_objects position styles"),
        # the two at each other's place
        (
            TWO,
            read(item("owl", (1, 1), size="small"), item("fox", (9, 5))),
            "two_objects colours styles",
            "position",
        ),
        (SEVERAL, shown(SEVERAL), "single_object counting colours styles", ""),
        (SEVERAL, read(item("red-car", (1, 1))), "single_object colours styles", "counting"),
        (
            SEVERAL,
            read(item("red-car", (1, 1), (5, 9), (9, 1))),
            "single_object colours styles",
            "counting",
        ),
        # equal objects may be anywhere
        (
            SEVERAL,
            read(item("red-car", (1, 1), (5, 9))),
            "single_object counting colours styles",
            "",
        ),
        (LEFT, shown(LEFT), "two_objects position colours styles", ""),
        (
            LEFT,
            read(item("fox", (9, 1)), item("owl", (1, 6))),
            "two_objects colours styles",
            "position",
        ),
        (LEFT, read(item("owl", (1, 6))), "colours", "two_objects position styles"),
    ],
)
def test_facts_by_hand(scene: Scene, reading: Reading, right: str, wrong: str) -> None:
    wanted = dict.fromkeys(right.split(), True) | dict.fromkeys(wrong.split(), False)
    assert facts(reading, scene, FINE) == wanted


@pytest.mark.parametrize(
    ("first", "second", "holds"),
    [
        ([(1, 1)], [(9, 1)], {"left of"}),
        ([(9, 9)], [(1, 9)], {"right of"}),
        ([(5, 1)], [(5, 9)], {"above"}),
        ([(5, 9)], [(5, 1)], {"below"}),
        ([(1, 1)], [(9, 9)], {"left of", "above"}),
        ([(9, 1)], [(1, 9)], {"right of", "above"}),
        # touching: large objects are six units wide
        ([(1, 1)], [(7, 1)], {"left of"}),
        ([(1, 1)], [(6, 7)], {"above"}),
        # all of several objects
        ([(1, 1), (1, 9)], [(9, 5)], {"left of"}),
        ([(1, 1), (9, 9)], [(9, 1)], set()),
    ],
)
def test_each_relation_by_hand(
    first: list[Corner], second: list[Corner], holds: set[Relation]
) -> None:
    items = item("fox", *first), item("owl", *second)
    relations: tuple[Relation, ...] = ("left of", "right of", "above", "below")
    found = {
        relation
        for relation in relations
        if facts(read(*items), Scene(items, "white", relation), FINE)["position"]
    }
    assert found == holds


@pytest.mark.parametrize(
    "reading",
    [
        shown(replace(TWO, background="sand")),
        read(FOX, OWL, is_whole=False),
        read(FOX, OWL, item("red-car", (9, 11))),  # one more
        read(FOX, replace(OWL, size="large")),  # another size
        read(FOX, item("owl", (11, 6), (1, 11), size="small")),  # twice
        read(FOX),
        read(),
    ],
)
def test_right_is_all_and_nothing_else(reading: Reading) -> None:
    assert is_right(shown(TWO), TWO, FINE)
    assert not is_right(reading, TWO, FINE)


# ---- edits


@cache
def edits() -> tuple[SceneSource, SceneReader]:
    source = ScenesConfig(
        form="edit", raster="fine", styles=["noto", "fluent"], concepts="quickstart", num_scenes=60
    ).build()
    return source, SceneReader(source.sprites, source.raster)


def disturbed(before: Scene, after: Scene) -> Scene:
    """The scene after an edit, with a change of what should be kept."""
    both = objects(before) & objects(after)
    for place, one in enumerate(after.items):
        if (one.concept, one.style, one.size, one.corners[0]) in both:
            return replace(after, items=after.items[:place] + after.items[place + 1 :])
    assert before.background == after.background
    return replace(after, background="sand" if after.background != "sand" else "mint")


@pytest.mark.parametrize("kind", ["replace", "remove", "add", "move", "background", "style"])
def test_edits_of_every_kind(kind: str) -> None:
    """The picture before keeps everything and changes nothing; the one after does both."""
    source, reader = edits()
    own = [one for one in map(source.change, range(60)) if one.kind == kind]
    assert len(own) >= 5
    for one in own[:6]:
        before, after = (reader.read(source.pixels(scene)) for scene in (one.before, one.after))
        assert kept(one.before, one.after, before)
        assert not edited(one.before, one.after, before)
        assert kept(one.before, one.after, after)
        assert edited(one.before, one.after, after)
        spoiled = reader.read(source.pixels(disturbed(one.before, one.after)))
        assert not kept(one.before, one.after, spoiled)


def test_half_an_edit_is_none() -> None:
    """A fox moved to the right: a second fox there, or none at all, is not what was asked."""
    moved = item("fox", (9, 5), place="right")
    before, after = Scene((FOX,), "white"), Scene((moved,), "white")
    assert edited(before, after, shown(after))
    assert not edited(before, after, read(FOX, moved))
    assert not edited(before, after, read())
    assert not edited(before, after, read(moved, is_whole=False))
    assert not kept(before, after, read(moved, background="sand"))


def test_a_copy_of_a_document_is_no_composition() -> None:
    middle = plain(FINE, ("fox", "noto"), "large")
    assert pasted(shown(middle), TWO, FINE)
    assert not pasted(shown(TWO), TWO, FINE)
    assert not pasted(read(*middle.items, OWL), TWO, FINE)
    assert not pasted(read(item("red-car", (5, 5))), TWO, FINE)  # not of this prompt
    assert not pasted(read(), TWO, FINE)


# ---- captions

WORDS = Words({"fox": "fox", "owl": "owl", "red-car": "red car"}, False, True)
STYLED = Words({"fox": "fox", "owl": "owl", "red-car": "red car"}, True, True)


@pytest.mark.parametrize(
    ("scene", "text", "is_true"),
    [
        (TWO, "a fox at the top left and a small owl at the right", True),
        (TWO, "A small owl at the right and a fox at the top left.", True),
        (TWO, "a fox placed at the top left  and a small owl placed at the right, on white", True),
        # the relation in place of the places, from both sides
        (TWO, "a fox left of a small owl", True),
        (TWO, "a small owl right of a fox, white background", True),
        (TWO, "a fox right of a small owl", False),
        (TWO, "a fox above a small owl", False),  # 1 + 6 > 6: they share a row
        (TWO, "a fox at the top right and a small owl at the right", False),
        (TWO, "a fox at the top left and an owl at the right", False),  # the size
        (TWO, "a fox at the top left", False),
        (TWO, "two foxes at the top left and a small owl at the right", False),
        (TWO, "a fox at the top left and a small owl at the right, on mint", False),
        (TWO, "a small owl at the top left and a fox at the right", False),
        (TWO, "", False),
        (LEFT, "a fox left of a small owl", True),
        (LEFT, "a fox at the top left and a small owl at the right", True),
        (LEFT, "a fox below a small owl", False),
        (ONE, "a fox at the top left, on mint", True),
        (ONE, "a fox, at the top left on a mint background", True),
        (ONE, "a fox at the top left", False),  # not on white
        (SEVERAL, "two red cars", True),
        (SEVERAL, "three red cars", False),
        (SEVERAL, "a red car", False),
        (SEVERAL, "two red cars on a white background", True),
    ],
)
def test_captions_by_hand(scene: Scene, text: str, is_true: bool) -> None:
    assert is_caption(text, scene, FINE, WORDS) == is_true


def test_captions_name_the_style_where_there_are_several() -> None:
    assert is_caption(
        "a fox at the top left, in noto style", replace(ONE, background="white"), FINE, STYLED
    )
    for text in ("a fox at the top left", "a fox at the top left, in fluent style"):
        assert not is_caption(text, replace(ONE, background="white"), FINE, STYLED)


def test_descriptions_are_true_of_the_scene() -> None:
    source, _ = edits()
    for number in range(20):
        scene = source.scene(number)
        for one in descriptions(scene, FINE):
            assert is_right(shown(scene), one, FINE)
            assert objects(one) == objects(scene)


# ---- boxes

LEFT_BOX, RIGHT_BOX = "fox at (0, 0) -> (10, 10)", "fox at (20, 0) -> (30, 10)"
FOXES: list[tuple[str, Box]] = [("fox", (0, 0, 10, 10)), ("fox", (20, 0, 30, 10))]


@pytest.mark.parametrize(
    ("text", "overlap", "found"),
    [
        (f"{LEFT_BOX}, {RIGHT_BOX}", 1, True),
        (f" FOX{RIGHT_BOX[3:]},  {LEFT_BOX}.", 1, True),
        (f"fox at (0, 0) -> (10, 5), {RIGHT_BOX}", 3 / 4, True),  # 50 of 100, and all
        (f"fox at (5, 0) -> (15, 10), {RIGHT_BOX}", 2 / 3, False),  # 50 of 150, and all
        (LEFT_BOX, 1 / 2, False),
        (f"{LEFT_BOX}, {RIGHT_BOX}, {LEFT_BOX}", 2 / 3, False),
        (f"{LEFT_BOX}, {LEFT_BOX}", 1 / 2, False),
        (f"{LEFT_BOX}, owl{RIGHT_BOX[3:]}", 1 / 2, False),
        # the first lies a third over both; the second may only be the left one
        (f"fox at (0, 0) -> (30, 10), {LEFT_BOX}", (1 / 3 + 1) / 2, False),
        (f"{LEFT_BOX}, fox at (20, 0) -> (30", 1 / 2, False),  # what is no box is one too many
        (f"{LEFT_BOX}, {RIGHT_BOX}, and a", 2 / 3, False),
    ],
)
def test_boxes_by_hand(text: str, overlap: float, found: bool) -> None:
    share, is_found = located(text, FOXES)
    assert share == pytest.approx(overlap)
    assert is_found == found


def test_all_are_found_though_others_overlap_more() -> None:
    """A box over half of each of two, and one that is the first."""
    wanted: list[tuple[str, Box]] = [("fox", (0, 0, 10, 10)), ("fox", (10, 0, 20, 10))]
    for text in (
        f"fox at (0, 0) -> (20, 10), {LEFT_BOX}",
        f"{LEFT_BOX}, fox at (0, 0) -> (20, 10)",
    ):
        assert located(text, wanted) == (0.75, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "fox",
        "at (0, 0) -> (10, 10)",
        "fox at (0, 0) -> (10",
        "fox at 0, 0, 10, 10",
        "fox at (10, 10) -> (0, 0)",
        "fox at (-10, 0) -> (-5, 10)",
        f"fox at (0, 0) -> ({'9' * 5000}, 10)",
        "in the middle\n\0",
    ],
)
def test_texts_that_are_no_boxes_score_nothing(text: str) -> None:
    assert located(text, FOXES[:1]) == (0, False)


def box() -> st.SearchStrategy[Box]:
    ends = st.tuples(st.integers(0, 127), st.integers(1, 128))
    return st.builds(lambda x, y: (x[0], y[0], x[0] + x[1], y[0] + y[1]), ends, ends)


@given(st.lists(box(), min_size=1, max_size=4), st.lists(box(), max_size=6), st.randoms())
def test_the_order_of_boxes_does_not_matter(
    wanted: list[Box], answered: list[Box], rng: Any
) -> None:
    """Perfect boxes have all; any others, from none to all."""
    true: list[tuple[str, Box]] = [("red car", one) for one in wanted]
    mixed = rng.sample(true, len(true))
    assert located(text_of_boxes(mixed), true) == (1, True)
    own: list[tuple[str, Box]] = [("red car", one) for one in answered]
    overlap, found = located(text_of_boxes(own), true)
    assert 0 <= overlap <= 1
    assert not found or overlap >= 0.5
    again, is_found = located(text_of_boxes(rng.sample(own, len(own))), mixed)
    assert again == pytest.approx(overlap)
    assert is_found == found
    assert located(f"{text_of_boxes([*own, *true])}", true)[0] <= len(true) / len([*own, *true])


@given(st.text())
def test_any_text_has_a_score(text: str) -> None:
    assert located(text, FOXES) == (0, False)
    assert 0 <= located(f"{LEFT_BOX}, {text}", FOXES)[0] <= 1 / 2


# ---- the metrics


@cache
def source_of(form: Form = "scene", style: str = "noto") -> SceneSource:
    return ScenesConfig(
        form=form, num_scenes=400, image_size=32, **{**KEYS, "styles": [style]}
    ).build()


@cache
def chosen(form: Form) -> Sequence[int]:
    """Numbers of samples, in turn of one item with a place, and of two with a number: together they have every fact."""
    source = source_of(form)
    every = range(len(source))
    if form != "scene":
        return every
    items = [source.scene(number).items for number in every]
    single = [i for i in every if len(items[i]) == 1 and items[i][0].place]
    count = [i for i in every if len(items[i]) == 2 and any(len(o.corners) > 1 for o in items[i])]
    return [number for pair in zip(single, count, strict=False) for number in pair]


class SceneContract(MetricContract):
    """Samples of small sources: of every four pictures, one is another scene's and one is blank."""

    max_examples = 3
    form: Form = "scene"

    def column(self, name: str, num: int, rng: np.random.Generator) -> Sequence[Any]:
        source, numbers = source_of(self.form), chosen(self.form)
        own = [numbers[place] for place in range(num)]
        if name == "targets":
            return [dict(source.truth(index)) for index in own]
        if name == "texts":
            return [
                source.words.caption(source.scene(own[place - place % 3 // 2]), rng)
                for place in range(num)
            ]
        if name == "documents":
            return [
                [source.pixels(self.document(index, turn)) for turn in range(place % 3)]
                for place, index in enumerate(own)
            ]
        pictures = [source.pixels(source.scene(index)) for index in own]
        return [
            np.full_like(one, 255) if place % 4 == 3 else pictures[place - (place % 4 == 2)]
            for place, one in enumerate(pictures)
        ]

    def document(self, index: int, turn: int) -> Scene:
        source = source_of(self.form)
        items = source.scene(index).items
        one = items[turn % len(items)]
        return plain(source.raster, (one.concept, one.style), one.size)


def picture(*items: Item, background: str = "white") -> Any:
    return source_of().pixels(Scene(items, background))


def batch(scenes: Sequence[Scene], **columns: Sequence[Any]) -> MetricBatch:
    return MetricBatch(range(len(scenes)), {"targets": [one.truth for one in scenes], **columns})


SKULL, GHOST = item("skull", (0, 0), place="top left"), item("ghost", (4, 4), place="bottom right")
BEARS = item("bear", (0, 0), (4, 0))


class TestScenesMetric(SceneContract):
    config = ScenesMetricConfig(**KEYS)

    def known_answers(self) -> Any:
        scenes = [Scene((SKULL,), "mint"), Scene((SKULL, GHOST), "white"), Scene((BEARS,), "white")]
        pictures = [
            picture(SKULL, background="mint"),
            picture(item("skull", (0, 4)), item("ghost", (4, 4)), background="sand"),
            picture(item("bear", (0, 0))),
        ]
        wanted = {
            "scenes": 100 / 3,
            "scenes_single_object": 100.0,  # of two samples
            "scenes_two_objects": 100.0,
            "scenes_counting": 0.0,
            "scenes_position": 50.0,
            "scenes_colours": 200 / 3,
            "scenes_styles": 100.0,
        }
        return [([batch(scenes, pictures=pictures)], wanted)]


class TestSceneDocuments(SceneContract):
    config = SceneDocumentsConfig(**KEYS)

    def known_answers(self) -> Any:
        scenes = [Scene((SKULL, GHOST), "white")] * 3
        raster = RASTERS["coarse"]
        skull, ghost, bear = (
            source_of().pixels(plain(raster, (name, "noto"), "large"))
            for name in ("skull", "ghost", "bear")
        )
        # both documents and a composition; one of two, and a copy of it; none, and nothing of the prompt
        columns = {
            "pictures": [picture(SKULL, GHOST), skull, picture(BEARS)],
            "documents": [[skull, ghost], [bear, skull], []],
        }
        wanted = {
            "scene_documents": 100 / 3,
            "scene_documents_objects": 50.0,
            "scene_composed": 50.0,  # of two samples
        }
        return [([batch(scenes, **columns)], wanted)]


class TestSceneEdit(SceneContract):
    config = SceneEditConfig(**KEYS)
    form: Form = "edit"

    def known_answers(self) -> Any:
        before, after = Scene((SKULL, GHOST), "white"), Scene((SKULL,), "white")
        truth = {**after.truth, "before": before.truth}
        # as asked; unchanged; the ghost is gone, and so is the white
        pictures = [picture(SKULL), picture(SKULL, GHOST), picture(SKULL, background="sand")]
        wanted = {"scene_edit": 100 / 3, "scene_edit_changed": 200 / 3, "scene_edit_kept": 200 / 3}
        return [([MetricBatch(range(3), {"targets": [truth] * 3, "pictures": pictures})], wanted)]


class TestSceneCaption(SceneContract):
    config = SceneCaptionConfig(**KEYS)

    def known_answers(self) -> Any:
        texts = ["A ghost at the bottom right and a skull at the top left.", "a skull and a ghost"]
        scenes = [Scene((SKULL, GHOST), "white")] * 2
        return [([batch(scenes, texts=texts)], {"scene_caption": 50.0})]


class TestSceneBoxes(SceneContract):
    config = SceneBoxesConfig(**KEYS)
    form: Form = "grounding"

    def column(self, name: str, num: int, rng: np.random.Generator) -> Sequence[Any]:
        """Of every three answers, one is another picture's."""
        if name != "texts":
            return super().column(name, num, rng)
        records = [source_of(self.form).record(place - place % 3 // 2) for place in range(num)]
        return [one["objects"].text for one in records]

    def known_answers(self) -> Any:
        truth = {**Scene((BEARS, SKULL), "white").truth, "phrase": "bear"}
        first, second = "(0, 0) -> (128, 128)", "(128, 0) -> (255, 128)"
        texts = [
            f"bear at {second}, bear at {first}",
            "bear at (0, 0) -> (128, 64)",  # half of one of two
            f"skull at {first}",
        ]
        wanted = {"scene_boxes": 125 / 3, "scene_boxes_found": 100 / 3}
        return [([MetricBatch(range(3), {"targets": [truth] * 3, "texts": texts})], wanted)]


def _sample(**columns: Any) -> Callable[[SceneMetricConfig], None]:
    return lambda config: config.build().update(
        MetricBatch([0], {name: [one] for name, one in columns.items()})
    )


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ({"caption": "a skull"}, "the sample's target ... has no scene ... data set scenes"),
        (
            Scene((replace(SKULL, style="fluent"),), "white").truth,
            "the sample's 'skull' in style 'fluent' ... is no drawing ... styles",
        ),
        (
            Scene((item("skull", (1, 1), size="small"),), "white").truth,
            "the sample's 'skull' in style 'noto' ... is at no place ... raster",
        ),
        (
            Scene((item("skull", (5, 5), place="middle"),), "white").truth,
            "the sample's 'skull' in style 'noto' ... is at no place ... raster",
        ),
    ],
)
def test_targets_of_other_data_are_named(name: str, target: Any, cause: str) -> None:
    config = METRICS[name](**KEYS)
    assert isinstance(config, SceneMetricConfig)
    if "items" in target:
        target = {**target, "before": target}
    give = _sample(targets=target, pictures=picture(SKULL), documents=[], texts="a skull")
    with pytest.raises(DataError) as caught:
        give(config)
    assert tells(caught.value, cause)


def test_an_edit_needs_the_scene_before() -> None:
    give = _sample(targets=Scene((SKULL,), "white").truth, pictures=picture(SKULL))
    with pytest.raises(DataError) as caught:
        give(SceneEditConfig(**KEYS))
    assert tells(caught.value, "the sample's target ... has no scene")


@pytest.mark.parametrize("more", [{}, {"phrase": "ghost"}])
def test_boxes_need_the_phrase(more: dict[str, str]) -> None:
    give = _sample(targets={**Scene((SKULL,), "white").truth, **more}, texts="skull at ...")
    with pytest.raises(DataError) as caught:
        give(SceneBoxesConfig(**KEYS))
    assert tells(
        caught.value, "the sample's target: has no phrase of its scene ... form grounding ..."
    )


@pytest.mark.parametrize("raster", sorted(RASTERS))
def test_the_records_own_boxes_are_all(raster: str) -> None:
    keys: dict[str, Any] = {**KEYS, "raster": raster}
    source = ScenesConfig(form="grounding", num_scenes=12, image_size=48, **keys).build()
    rows = range(len(source))
    columns = {
        "targets": [source.truth(row) for row in rows],
        "texts": [source.record(row)["objects"].text for row in rows],
    }
    metric = SceneBoxesConfig(**keys).build()
    metric.update(MetricBatch(rows, columns))
    assert [one.value for one in metric.result()] == [100, 100]
