"""Truths of documents, and the task `records`: edits, captions, answers and filled parts of any data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.leakage import check_memory
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.base import OF_PICTURES, Sample, Task
from cm3core.boxes import Boxes
from cm3core.document import Codes, Image, Text
from cm3core.errors import DataError, PluginError
from cm3core.images import open_image, save_png
from cm3core.interfaces import DocumentSourceConfig
from cm3core.plugins import load_registry
from cm3kits.samples import ListSource
from cm3plugins.scenes.config import ScenesConfig
from cm3plugins.scenes.source import SceneSource
from cm3plugins.tasks.bundled import TASKS
from cm3run.evaluation.protocol import protocol_of
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import Colours, toy_model

REGISTRY = load_registry()
SCENES: dict[str, Any] = {
    "name": "scenes",
    "styles": ["noto"],
    "concepts": "quickstart",
    "raster": "coarse",
    "image_size": 32,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all tests: drawings are rendered once."""
    folder = tmp_path_factory.getbasetemp() / "records-cache"
    monkeypatch.setenv("CM3_CACHE", str(folder))


def scenes(form: str, split: str = "valid") -> SceneSource:
    keys = {key: value for key, value in SCENES.items() if key != "name"}
    return ScenesConfig(**{**keys, "form": form, "split": split}).build()


def open_(name: str, size: int | None = 32, *, model: Any = None, **keys: Any) -> Task:
    values = {"name": name, **keys}
    return open_task(values, size=size, data=None, model=model, registry=REGISTRY)


def of_scenes(form: str, size: int | None = 32, num: int = 3, **keys: Any) -> Task:
    return open_("records", size, dataset={**SCENES, "form": form}, num=num, **keys)


def protocol(*metrics: str, size: int | None = 32) -> Any:
    scores = [{"metric": {"name": name}} for name in metrics]
    values = {"format": "cm3 protocol 1", "name": "toy-v1", "title": "a toy", "size": size}
    return protocol_of({**values, "seed": 5, "task": {"name": "records"}, "scores": scores}, "toy")


def first(form: str, num: int) -> list[int]:
    """The numbers whose ids, "FORM/valid/NUMBER", have the smallest hashes."""
    names = [f"{form}/valid/{number}" for number in range(20_000)]
    hashes = [hashlib.sha256(name.encode()).digest() for name in names]
    return sorted(range(len(names)), key=hashes.__getitem__)[:num]


def test_a_document_states_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth of its scene. Of 20,000 scenes only the samples are composed, and no picture is drawn."""
    composed: list[int] = []
    scene = SceneSource._scene

    def noted(source: SceneSource, index: int) -> Any:
        composed.append(index)
        return scene(source, index)

    monkeypatch.setattr(SceneSource, "_scene", noted)
    monkeypatch.setattr(SceneSource, "pixels", lambda *_: pytest.fail("a picture is drawn"))
    task = open_("documents", dataset=SCENES, num=4)
    numbers = first("scene", 4)
    assert sorted(set(composed)) == sorted(numbers)
    source = scenes("scene")
    assert [one.key for one in task.samples] == [source.id(number) for number in numbers]
    assert [one.target for one in task.samples] == [
        {"group": "", **source.truth(number)} for number in numbers
    ]
    assert set(task.samples[0].target) == {"group", "items", "background", "relation"}
    assert json.loads(json.dumps(task.samples[0].target)) == task.samples[0].target


def test_truths_are_in_no_hash() -> None:
    """The data set's fingerprint and the ids determine them, and data sets without any keep their hashes."""
    data = {"name": "emoji", "concepts": "quickstart", "styles": ["noto"], "image_size": 16}
    for task in (open_("documents", 16, dataset=data, split="all", num=2), of_scenes("edit")):
        bare = [replace(one, target={}) for one in task.samples]
        assert replace(task, samples=bare).measurement == task.measurement
    task = open_("documents", 16, dataset=data, split="all", num=2)
    assert [set(one.target) for one in task.samples] == [{"group"}] * 2


@pytest.mark.parametrize(
    ("form", "makes", "name", "component"),
    [
        ("edit", "edits", "edit", None),
        ("scene", "captions", "caption", None),
        ("question", "answers", "vqa", None),
        ("grounding", "answers", "grounding", "grounding"),
    ],
)
def test_the_fields_tell_the_task(form: str, makes: str, name: str, component: str | None) -> None:
    """Samples are those of the records; a default task is left to the model, which may word it in its own way."""
    task, source = of_scenes(form), scenes(form)
    assert (task.makes, task.component, task.measurement["task"]) == (makes, component, name)
    assert of_scenes(form, task=name).measurement == task.measurement
    for number, sample in zip(first(form, 3), task.samples, strict=True):
        record, own = source.record(number), TASKS[name]().build()
        assert sample.key == f"{form}/valid/{number}"
        assert sample.target == source.truth(number)
        shown = record["source" if form == "edit" else "image"]
        assert sample.picture is not None
        assert np.array_equal(sample.picture(), shown.load())
        asked = {"edit": "instruction", "question": "question", "grounding": "phrase"}.get(form)
        assert sample.prompt == (record[asked] if asked else "")
        [response] = own.responses
        if form == "edit":
            assert sample.edited is not None
            assert np.array_equal(sample.edited(), record["target"].load())
            assert sample.picture_key == f"image:{record['target'].key}"
            assert sample.references == ()
            assert sample.reference is sample.edited
        else:
            value = record[response]
            assert sample.references == (getattr(value, "text", value),)
            assert sample.reference is sample.picture


def test_what_scores_depend_on() -> None:
    """More than the samples: the size of edited pictures, the split and the task."""
    hashes = [
        json.dumps(task.measurement, sort_keys=True)
        for task in (
            of_scenes("edit"),
            of_scenes("edit", 16),
            of_scenes("edit", num=2),
            of_scenes("edit", split="train"),
            of_scenes("scene"),
            of_scenes("scene", task="dense_caption"),
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert of_scenes("scene").measurement == of_scenes("scene", None).measurement
    assert of_scenes("edit", 16).samples[0].edited().shape == (16, 16, 3)  # type: ignore[misc]
    assert of_scenes("edit", None).samples[0].edited().shape == (32, 32, 3)  # type: ignore[misc]


class Listed(ListSource):
    """Documents with records of their own."""

    def __init__(self, *records: dict[str, Any]) -> None:
        super().__init__([(Text("a"),) for _ in records])
        self._records = records

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        return dict(self._records[index])


def grey(level: int) -> Image:
    return Image(f"grey{level}", lambda: np.full((8, 8, 3), level, np.uint8))


def of_model(*records: dict[str, Any], **keys: Any) -> Task:
    """The task of records of a model's own data set, whose config states no fields."""
    source = Listed(*records)
    components = SimpleNamespace(split=lambda _: source)
    recipe = SimpleNamespace(dataset=DocumentSourceConfig())
    model = SimpleNamespace(recipe=recipe, components=components)
    return open_("records", 8, model=model, **keys)


def test_records_of_the_models_own_data() -> None:
    """The task of most fields is taken, and boxes are texts."""
    boxes = Boxes((("bell", (0, 0, 4, 8)),), (8, 8))
    record = {"image": grey(9), "caption": "a bell", "phrase": " bell ", "objects": boxes}
    task = of_model(record)
    assert task.measurement["task"] == "grounding"
    [sample] = task.samples
    assert (sample.prompt, sample.references) == ("bell", ("bell at (0, 0) -> (128, 255)",))
    assert of_model(record, task="caption").samples[0].references == ("a bell",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "t2i"}, "protocol: task.task: is 't2i', which serves neither edits nor"),
        ({"task": "structure"}, "protocol: task.task: is 'structure' ... name one of ... vqa"),
        ({"task": 3}, "protocol: task.task: is 3\n  next: give a value of the type str"),
        ({"split": 3}, "protocol: task.split: is 3\n  next: give a value of the type str"),
        ({"num": 3}, "split 'valid': has 2 samples, but the protocol needs 3"),
        ({"num": 0}, "protocol: task.num: is 0\n  next: use 1 or more"),
        ({"task": "vqa"}, "record ... has no field 'question'"),
        ({"task": "edit"}, "record ... has no field 'source'"),
        ({"hides": 3}, "protocol: task.hides: is 3\n  next: give a value of the type str"),
        ({"hides": "caption"}, "record ... has no box in the field 'caption' ... task.hides"),
        ({"hides": "boxes"}, "record ... has no box in the field 'boxes' ... task.hides"),
        (
            {"hides": "boxes", "task": "edit"},
            "protocol: task.task: is 'edit', which doesn't draw from captions ... t2i",
        ),
        ({"tsak": "vqa"}, "protocol: task.tsak: the task 'records' has no such key"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    records = [{"image": grey(level), "caption": "grey"} for level in (1, 2)]
    with pytest.raises(DataError) as caught:
        of_model(*records, **keys)
    assert tells(caught.value, f"{message} ...")


def test_records_that_fit_no_task() -> None:
    codes = Codes(np.zeros(16, np.int32), (4, 4))
    for record, keys, message in (
        (
            {"image": grey(1)},
            {},
            "protocol: task.task: is null, and no task of ... has ... fields image",
        ),
        ({"image": codes, "caption": "x"}, {}, "record d0: has a field 'image' that is codes"),
        ({"image": grey(1), "caption": " "}, {}, "record d0: has an empty field 'caption'"),
        ({"image": grey(1), "caption": 3}, {}, "record d0: has a field 'caption' that is int"),
        (
            {"image": grey(1), "part": "x"},
            {"hides": "part"},
            "protocol: task.task: is null, and no task of drawing from captions has ... image, part",
        ),
        (
            {"image": codes, "caption": "x", "part": Boxes((("a", (0, 0, 1, 1)),), (8, 8))},
            {"hides": "part"},
            "record d0: has a field 'image' that is codes",
        ),
        (
            {"image": grey(1), "caption": "x", "part": Boxes((("a", (0, 0, 1, 8)),), (8, 16))},
            {"hides": "part"},
            "record d0: has no box in the field 'part'",  # it is outside of what the model sees
        ),
    ):
        with pytest.raises(DataError) as caught:
            of_model(record, **keys)
        assert tells(caught.value, f"{message} ...")
    with pytest.raises(DataError) as caught:
        of_model()
    assert tells(caught.value, "split 'valid': has 0 samples, but the protocol needs 1 ...")
    with pytest.raises(PluginError) as unknown:
        of_model({"image": grey(1), "caption": "x"}, task="captoin")
    assert tells(unknown.value, "task 'captoin': ... did you mean 'caption'?")


def tuned(*names: str) -> Any:
    model = toy_model(max_text_tokens=90)
    model.components.memory = Colours()
    model.tasks = TunedTasks({name: TASKS[name]() for name in names})
    return model


def evaluate(out: Path, task: Task, model: Any, *metrics: str, **more: Any) -> dict[str, Any]:
    own = protocol(*metrics, size=32 if task.makes in OF_PICTURES else None)
    return Evaluation(own, task, REGISTRY, out, model=model, **more).run()


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_edits_are_those_of_the_python_api(tmp_path: Path) -> None:
    """With its defaults; and scored against the picture that they should lead to."""
    task, model = of_scenes("edit", num=2), tuned("edit")
    scores = evaluate(tmp_path / "out", task, model, "psnr")
    assert (scores["model"]["num_retrieved"], scores["model"]["num_candidates"]) == (0, 1)
    sample = task.samples[1]
    assert sample.picture is not None
    assert sample.edited is not None
    [own] = model.edit(sample.picture(), sample.prompt, 1, seed=6)
    assert np.array_equal(open_image(tmp_path / "out" / "pictures" / "000001.png"), own.pixels)
    shown = np.repeat(np.repeat(own.pixels, 4, 0), 4, 1).astype(float)  # 8 x 8 -> 32 x 32
    error = ((shown - sample.edited()) ** 2).mean()
    value = rows_of(tmp_path / "out")[1]["scores"]["psnr"]
    assert value == pytest.approx(10 * np.log10(255**2 / error), abs=3), "fitting smooths"
    assert evaluate(tmp_path / "out", task, tuned("edit"), "psnr")["scores"] == scores["scores"]
    with pytest.raises(DataError, match="was not tuned for edits"):
        evaluate(tmp_path / "untuned", task, toy_model(), "psnr")


def test_what_is_hidden_is_covered() -> None:
    """The model sees all but the box, which codes around it can't tell either."""
    task, source = of_scenes("part", hides="part"), scenes("part")
    assert (task.makes, task.component) == ("fillings", None)
    assert {"task": "t2i", "hides": "part", "size": 32}.items() <= task.measurement.items()
    for number, sample in zip(first("part", 3), task.samples, strict=True):
        record = source.record(number)
        [(_, (x0, y0, x1, y1))] = record["part"].objects
        assert sample.hidden == ((x0, y0, x1, y1),)
        assert (sample.prompt, sample.references) == (record["caption"], ())
        assert sample.target == source.truth(number)
        assert sample.picture is not None
        assert sample.edited is not None
        assert sample.reference is sample.edited
        whole, covered = record["image"].load(), sample.picture()
        assert np.array_equal(sample.edited(), whole)
        assert np.unique(covered[y0:y1, x0:x1]).tolist() == [127]
        covered[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
        assert np.array_equal(covered, whole)
    # twice as large
    [double] = of_scenes("part", 64, 1, hides="part").samples
    assert double.hidden == (tuple(2 * one for one in task.samples[0].hidden[0]),)
    assert of_scenes("part").makes == "captions", "without `hides`"
    with pytest.raises(DataError) as caught:
        of_scenes("part", None, hides="part")
    assert tells(caught.value, "protocol: size: is null, but pictures are filled ...")


def test_boxes_of_any_picture_are_within_it() -> None:
    """Cropped to the middle square, and at least a pixel."""
    boxes = Boxes((("a", (0, 0, 12, 4)), ("b", (11.9, 7.9, 12, 8))), (8, 16))
    record = {"image": grey(9), "caption": "x", "part": boxes}
    [sample] = of_model(record, hides="part").samples
    assert sample.hidden == ((0, 0, 8, 4), (7, 7, 8, 8))


def test_fillings_are_those_of_the_python_api(tmp_path: Path) -> None:
    """The rest is as it was, and the result is scored against the whole picture."""
    task, model, out = of_scenes("part", num=2, hides="part"), toy_model(), tmp_path / "out"
    keys = {"raster": "coarse", "concepts": "quickstart", "styles": ["noto"]}
    values = [{"metric": {"name": name, **keys}} for name in ("scenes", "scene_edit")]
    values.append({"metric": {"name": "psnr"}})
    own = replace(protocol(size=32), scores=values)
    scores = Evaluation(own, task, REGISTRY, out, model=model, options={"num_retrieved": 0}).run()
    found = {row["name"]: row["value"] for row in scores["scores"]}
    assert (found["scene_edit_kept"], found["scene_edit"]) == (100, 0), "an untrained model"
    for place, sample in enumerate(task.samples):
        assert sample.picture is not None
        assert sample.edited is not None
        covered = sample.picture()
        filled = model.infill(
            covered, sample.hidden, sample.prompt, seed=5 + place, num_retrieved=0, truncate=True
        )
        shown = open_image(out / "pictures" / f"00000{place}.png")
        assert np.array_equal(shown, filled.pixels)
        ((x0, y0, x1, y1),) = sample.hidden
        assert (shown[y0:y1, x0:x1] != 127).any()
        shown[y0:y1, x0:x1] = sample.edited()[y0:y1, x0:x1]
        assert np.array_equal(shown, sample.edited())


def test_perfect_edits_made_elsewhere(tmp_path: Path) -> None:
    """Those of another program are scored, but not the expected pictures themselves."""
    task = of_scenes("edit", num=2)
    for place, sample in enumerate(task.samples):
        assert sample.edited is not None
        for name, pixels in (("same", sample.edited()), ("near", sample.edited() // 2)):
            save_png(tmp_path / name / f"{place:06d}.png", pixels)
    given: dict[str, Any] = {"label": "theirs"}
    own = Evaluation(
        protocol("psnr"), task, REGISTRY, tmp_path / "a", **given, pictures=tmp_path / "near"
    )
    assert own.run()["scores"][0]["num"] == 2
    same = Evaluation(
        protocol("psnr"), task, REGISTRY, tmp_path / "b", **given, pictures=tmp_path / "same"
    )
    with pytest.raises(DataError, match="has the reference pictures themselves"):
        same.run()


def test_texts_are_those_of_the_python_api(tmp_path: Path) -> None:
    """By the model's own task, or by the one that the records are of."""
    model = tuned("vqa", "grounding", "caption")
    calls: Sequence[tuple[str, Callable[[Any, int], Any]]] = (
        ("scene", lambda one, seed: model.caption(one.picture(), seed=seed)),
        ("question", lambda one, seed: model.ask(one.picture(), one.prompt, seed=seed)),
        (
            "grounding",
            lambda one, seed: model.ask(one.picture(), one.prompt, seed=seed, task="grounding"),
        ),
    )
    for form, call in calls:
        task = of_scenes(form, num=2)
        scores = evaluate(tmp_path / form, task, model, "exact_match")
        assert [row["name"] for row in scores["scores"]] == ["exact_match"]
        rows = rows_of(tmp_path / form)
        assert [row["text"] for row in rows] == [
            call(one, 5 + place).text for place, one in enumerate(task.samples)
        ]
        assert [row["references"] for row in rows] == [list(one.references) for one in task.samples]


def test_an_exact_answer_counts(tmp_path: Path) -> None:
    """A model that answers rightly but for an article and letter case has 100."""
    task, model = of_scenes("question", num=2), tuned("vqa")
    out = tmp_path / "out"
    evaluate(out, task, model, "exact_match")
    log = [json.loads(line) for line in (out / "made.jsonl").read_text().splitlines()]
    log = [{**row, "text": f"The {row['references'][0].upper()}."} for row in log]
    (out / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    assert evaluate(out, task, model, "exact_match")["scores"][0]["value"] == 100


def test_expected_pictures_in_the_memory() -> None:
    """The picture to edit may be there: it is given. The result may not."""
    pixels = [np.full((8, 8, 3), 40 * level, np.uint8) for level in range(3)]
    given, result = (Image(name, lambda: pixels[1]) for name in ("unlike", "green"))
    samples = [Sample("x", "make it so", given.load, "image:green", edited=result.load)]
    model = toy_model()
    model.components.memory = Colours()
    for task in (Task("records", "fillings", samples, {}), Task("records", "edits", samples, {})):
        with pytest.raises(DataError) as caught:
            check_memory(model, task, {"num_retrieved": 1}, allowed=False)
        assert tells(
            caught.value, "the model's memory: has 1 of the 1 reference pictures: green and x ..."
        )
    assert check_memory(model, task, {"num_retrieved": 0}, allowed=False) == {"retrieves": False}
    unknown = Task("edits", "edits", [replace(samples[0], edited=None)], {})
    checks = check_memory(model, unknown, {"num_retrieved": 1}, allowed=False)
    assert (checks["retrieves"], checks["leaks"]) == (True, [])
