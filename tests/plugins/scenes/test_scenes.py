"""Data set `scenes`: the kit, what its pictures and texts say, and that the splits keep apart what they claim to."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.boxes import Boxes
from cm3core.document import Image, Text
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.scenes.composing import RASTERS, Item, Scene, apart, box_of, draw, scene_in
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.held_out import HeldOut
from cm3plugins.scenes.keys import BACKGROUNDS, FORMS, STEPS, Form
from cm3plugins.scenes.measures import objects
from cm3plugins.scenes.source import SceneSource
from cm3plugins.scenes.wording import Words
from messages import tells
from profiles import examples

SMALL = {"raster": "coarse", "image_size": 32, "styles": ["noto"], "concepts": "quickstart"}


def small(**keys: object) -> SceneSource:
    return ScenesConfig(**{"num_scenes": 40, **SMALL, **keys}).build()  # type: ignore[arg-type]


class TestScenes(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return small()


class TestEdits(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return small(form="edit", raster="fine", image_size=64, styles=["noto", "fluent"])


class TestQuestions(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return small(form="question", split="unseen", concepts="all")


class TestPlain(DocumentSourceContract):
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return small(form="plain", raster="fine", image_size=48)


def test_a_scene_is_drawn_as_it_says() -> None:
    """By hand: a sprite of one colour, half transparent at its left, at the top right of the coarse raster."""
    sprite = np.zeros((4, 4, 4), np.uint8)
    sprite[:, :] = (200, 0, 0, 255)
    sprite[:, 0, 3] = 102
    item = Item("box", "flat", "large", ((4, 0),), "top right")
    picture = draw(Scene((item,), "mint"), RASTERS["coarse"], {("box", "flat", "large"): sprite}, 1)
    wanted = np.empty((8, 8, 3), np.uint8)
    wanted[:] = BACKGROUNDS["mint"]
    wanted[:4, 5:] = (200, 0, 0)
    # 0.4 * 200 + 0.6 * 206, 0.6 * 238, 0.6 * 204
    wanted[:4, 4] = (204, 143, 122)
    assert picture.tolist() == wanted.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_fields_that_its_config_states(form: Form) -> None:
    source = small(form=form)
    assert set(source.record(3)) == set(source.config.record_fields())


@given(st.integers(0, 9_999_999), st.sampled_from(sorted(RASTERS)))
def test_a_scene_is_a_function_of_its_number(number: int, raster: str) -> None:
    size = RASTERS[raster].side  # type: ignore[index]
    first, second = (small(raster=raster, image_size=size, num_scenes=10_000_000) for _ in range(2))
    scene = first.scene(number)
    assert scene == second.scene(number) == scene_in(scene.truth)
    assert first.record(number) == second.record(number)
    objects = [(item.size, corner) for item in scene.items for corner in item.corners]
    assert apart(first.raster, objects)
    for item in scene.items:
        for corner in item.corners:
            x0, y0, x1, y1 = box_of(first.raster, item.size, corner, 1)
            assert x0 >= 0 <= y0
            assert max(x1, y1) <= size
        if item.place:
            assert item.corners == (first.raster.corner(item.size, item.place),)
    if scene.relation:
        columns, rows = STEPS[scene.relation]
        a, b = scene.items
        for (left, top), (right, bottom) in product(a.corners, b.corners):
            assert (right - left) * columns + (bottom - top) * rows > 0


def shown(split: str, form: Form, number: int = 200, **keys: object) -> list[Scene]:
    """The scenes of a split, also those that an edit begins with."""
    source = ScenesConfig(
        split=split,
        form=form,
        num_scenes=number,
        styles=["noto", "fluent", "twemoji"],
        **keys,  # type: ignore[arg-type]
    ).build()
    scenes = [source.scene(index) for index in range(len(source))]
    if form == "edit" and split in ("train", "valid", "unseen"):
        scenes += [source.change(index).before for index in range(len(source))]
    return scenes


def combinations(scenes: list[Scene]) -> dict[str, set[tuple[str, ...]]]:
    items = [(scene, place, item) for scene in scenes for place, item in enumerate(scene.items)]
    return {
        "concepts": {(item.concept,) for _, _, item in items},
        "styles": {(item.concept, item.style) for _, _, item in items},
        "relations": {
            (item.concept, scene.relation)
            for scene, place, item in items
            if scene.relation and not place
        },
        "counts": {
            (item.concept, str(len(item.corners))) for _, _, item in items if len(item.corners) > 1
        },
    }


@pytest.mark.slow
def test_splits_hold_out_what_they_claim_to() -> None:
    """Nothing that a split asks for is in any picture or document of training."""
    trained = combinations(
        [
            scene
            for form in FORMS
            for split in ("train", "valid")
            for scene in shown(split, form, 600 if form == "scene" else 150)
        ]
    )
    unseen = combinations([one for form in FORMS for one in shown("unseen", form)])
    assert not unseen["concepts"] & trained["concepts"]
    for scene in shown("comp", "scene"):
        own = combinations([scene])
        assert own["concepts"] <= trained["concepts"] | own["concepts"]
        assert (own["styles"] - trained["styles"]) or (own["relations"] - trained["relations"])
    for scene in shown("counts", "scene"):
        assert combinations([scene])["counts"] - trained["counts"]
    # the documents of both have known concepts only, and every one of them
    known = combinations(shown("train", "plain"))["concepts"]
    for split in ("comp", "counts"):
        assert combinations(shown(split, "plain"))["concepts"] == known
    every = combinations(shown("all", "plain"))["concepts"]
    left = combinations(shown("unseen", "plain"))["concepts"]
    assert known | left == every
    assert not known & left
    assert 0.15 < len(left) / len(every) < 0.25


def test_no_scene_is_a_document() -> None:
    documents = small(form="plain", raster="fine", image_size=64, split="all")
    keys = {documents.record(index)["image"].key for index in range(len(documents))}
    scenes = small(raster="fine", image_size=64, num_scenes=2000)
    assert not keys & {scenes.record(index)["image"].key for index in range(len(scenes))}


def test_equal_pictures_have_equal_keys() -> None:
    source = small(num_scenes=600)
    by_key: dict[str, bytes] = {}
    for index in range(len(source)):
        picture = source.record(index)["image"]
        pixels = picture.load().tobytes()
        assert by_key.setdefault(picture.key, pixels) == pixels
    assert len(by_key) == len(set(by_key.values()))


def test_captions_by_hand() -> None:
    words = Words({"lobster": "lobster", "red-car": "red car"}, True, True)
    lobster = Item("lobster", "twemoji", "large", ((1, 1),), "top left")
    cars = Item("red-car", "twemoji", "small", ((1, 11), (6, 11)))
    assert words.caption(Scene((lobster,), "white")) == "a lobster at the top left, twemoji style"
    scene = Scene((lobster, cars), "azure", "above")
    assert words.caption(scene) == "a lobster above two small red cars, on azure, twemoji style"
    mixed = Scene((lobster, Item("red-car", "noto", "small", ((6, 6),), "middle")), "white")
    assert words.caption(mixed) == (
        "a lobster in twemoji style at the top left and a small red car in noto style in the middle"
    )
    rng = np.random.default_rng(0)
    every = set(words.captions(scene))
    assert {words.caption(scene, rng) for _ in range(60)} <= every
    assert len({words.caption(scene, rng) for _ in range(60)}) > 5


def test_every_kind_of_edit_and_question_occurs_and_is_right() -> None:
    edits = small(
        form="edit", raster="fine", image_size=64, styles=["noto", "fluent"], num_scenes=120
    )
    kinds = Counter(edits.change(index).kind for index in range(120))
    assert set(kinds) == {"replace", "remove", "add", "move", "background", "style"}
    for index in range(120):
        one = edits.change(index)
        before, after = Counter(one.before.items), Counter(one.after.items)
        gone, new = list((before - after).elements()), list((after - before).elements())
        assert one.before != one.after
        wanted = {
            "replace": (1, 1),
            "remove": (1, 0),
            "add": (0, 1),
            "move": (1, 1),
            "background": (0, 0),
        }
        if one.kind != "style":
            assert (len(gone), len(new)) == wanted[one.kind]
        for item in new:
            label = edits.words.labels[item.concept]
            assert one.kind == "style" or label in one.instruction
    questions = small(form="question", num_scenes=300)
    asked = [(questions.scene(index), questions.question(index)) for index in range(300)]
    assert {one.kind for _, one in asked} == {"what", "how many", "where", "colour", "yes or no"}
    answers = Counter(one.answer for _, one in asked if one.kind == "yes or no")
    assert 0.3 < answers["yes"] / answers.total() < 0.7
    for scene, one in asked:
        labels = [questions.words.labels[item.concept] for item in scene.items]
        if one.kind == "colour":
            assert one.answer == scene.background
        if one.question == "How many things are there?":
            assert (
                one.answer
                == ("one", "two", "three", "four")[sum(len(i.corners) for i in scene.items) - 1]
            )
        if one.question.startswith("Is there"):
            assert (one.answer == "yes") == any(
                one.question.endswith(f" {name}?") for name in labels
            )


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_scene_has_at_most_so_many_concepts(form: Form, most: int) -> None:
    source = small(form=form, max_concepts=most)
    found = {len(source.scene(index).items) for index in range(len(source))}
    assert found <= set(range(1, most + 1))


def test_a_part_is_an_object_of_its_scene() -> None:
    """Without it, the rest is the scene before; of several equal objects, one is left out."""
    source, several = small(form="part"), 0
    for index in range(40):
        scene, (item, rest) = source.scene(index), source.hidden(index)
        truth = dict(source.truth(index))
        assert scene_in(truth.pop("before")) == rest
        assert truth == scene.truth
        assert objects(rest) + objects(Scene((item,), "")) == objects(scene)
        assert (rest.background, rest.relation) == (scene.background, None)
        several += len(rest.items) == len(scene.items)
        [corner] = item.corners
        label = source.words.labels[item.concept]
        own = (label, box_of(source.raster, item.size, corner, source.unit))
        assert source.record(index)["part"] == Boxes((own,), (32, 32))
    assert 0 < several < 40


def test_a_phrase_is_in_the_truth() -> None:
    source = small(form="grounding")
    for index in range(20):
        truth, record = dict(source.truth(index)), source.record(index)
        concept = truth.pop("phrase")
        assert record["phrase"] == source.words.labels[concept]
        [item] = [one for one in source.scene(index).items if one.concept == concept]
        assert len(record["objects"].objects) == len(item.corners)
        assert truth == source.scene(index).truth


def test_documents_are_a_text_and_its_picture() -> None:
    text, picture = small().document(0)
    assert isinstance(text, Text)
    assert isinstance(picture, Image)
    assert picture.load().shape == (32, 32, 3)


def test_provenance_names_all_licences() -> None:
    source = small(styles=["noto", "fluent"], num_scenes=200)
    found = source.provenance(3)
    assert " AND " in found.licence
    assert "MIT" in found.licence
    assert "Apache-2.0" in found.licence


@pytest.mark.parametrize(
    ("keys", "place", "cause"),
    [
        ({"split": "test"}, "dataset.split", "dataset.split ... 'test'"),
        ({"image_size": 33}, "dataset.image_size", "dataset.image_size ... 33"),
        ({"styles": ["nota"]}, "dataset.styles", "dataset.styles ... did you mean 'noto'"),
    ],
)
def test_wrong_keys_are_named(keys: dict[str, object], place: str, cause: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small(**keys)
    assert caught.value.place == place
    assert tells(caught.value, cause)


def test_a_split_without_records_is_refused() -> None:
    """One style and edits, which name no relation: nothing can be held out by combination."""
    source = small(split="comp", form="edit")
    with pytest.raises(DataError) as caught:
        source.record(0)
    assert "comp" in caught.value.place
    assert tells(caught.value, "dataset, split 'comp' ... none belongs to it")


def test_one_style_holds_no_style_out() -> None:
    source = small()
    held = HeldOut(source.sprites)
    assert not held.several_styles
    assert not any(held.is_apart(*name) for name in source.sprites.by_name)
