"""The judge and the style classifier in an evaluation: candidates, and what a score is read against."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.evaluation.copy_metric import CopyConfig, TrainingCopyConfig
from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.made import Made
from cm3apps.evaluation.measured import bounding_pictures
from cm3apps.evaluation.reading import lines
from cm3apps.evaluation.shipped import find_protocol, shipped
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3core.errors import DataError
from cm3core.interfaces.metric import MetricBatch
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3icons.evaluation import icon_style_metric, style_classifier, usable_metric
from cm3icons.evaluation.icon_style_metric import HandConfig, IconStyleConfig
from cm3icons.evaluation.usable import Verdict
from cm3kits.metric import MetricContract
from cm3run.build import build
from cm3run.evaluation.protocol import protocol_of
from cm3run.model import Model
from cm3run.nearness import NEARLY_A_COPY
from messages import tells
from toy_model import Colours, toy_model

REGISTRY = load_registry()
NUM = 12
BLURRED = {"name": "pixels", "side": 8, "blur": True}


def reference(place: int) -> Any:
    return np.random.default_rng(place).integers(0, 256, (8, 8, 3), np.uint8)


def candidates(place: int) -> Any:
    order = [place, *(other for other in range(NUM) if other != place)]
    return [(f"thing/{one}", partial(reference, one)) for one in order]


TASK = Task(
    "documents",
    "pictures",
    [
        Sample(
            f"thing/{i}",
            f"red {i}",
            partial(reference, i),
            f"image:own{i}",
            candidates=partial(candidates, i),
        )
        for i in range(NUM)
    ],
    {},
)


def evaluate(out: Path, task: Task = TASK, **changed: Any) -> dict[str, Any]:
    values = {
        "format": "cm3 protocol 1",
        "name": "toy-v1",
        "title": "a toy",
        "size": 8,
        "task": {"name": "x"},
        "scores": [{"metric": {"name": "judge"}, "extractor": BLURRED}],
    }
    toy = toy_model()
    toy.components.memory = Colours()
    given: dict[str, Any] = {"model": toy, "label": "toy", "options": {"num_retrieved": 1}}
    protocol = protocol_of(values, "toy")
    return Evaluation(protocol, task, REGISTRY, out, **(given | changed)).run()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


def test_a_score_stands_beside_the_real_pictures_and_copies(tmp_path: Path) -> None:
    first, fifth = evaluate(tmp_path / "a")["scores"]
    assert (first["name"], fifth["name"]) == ("judge_r1-blurred8", "judge_r5-blurred8")
    assert first["beside"]["real"] == fifth["beside"]["real"] == 100
    # the document is the same black picture before all: each of the twelve is somewhere in its ranking
    assert first["beside"]["copied"] == pytest.approx(100 / NUM)
    assert fifth["beside"]["copied"] == pytest.approx(500 / NUM)
    assert 0 <= first["beside"]["reconstructed"] <= 100
    assert ", real 100, reconstructed " in lines({"protocol": {"name": "x"}, "scores": [first]})[0]
    assert first["measurement"]["candidates_sha256"] == TASK.candidates_sha256


def test_nothing_prepended_is_nothing_copied(tmp_path: Path) -> None:
    [first, _] = evaluate(tmp_path / "a", options={"num_retrieved": 0})["scores"]
    assert set(first["beside"]) == {"real", "reconstructed"}
    theirs = evaluate(tmp_path / "b", model=None, pictures=tmp_path / "a" / "pictures", label="x")
    assert set(theirs["scores"][0]["beside"]) == {"real"}
    assert theirs["scores"][0]["value"] == first["value"]
    assert theirs["scores"][0]["hash"] == first["hash"]


def test_what_could_be_copied_is_scored_beside_in_a_table(tmp_path: Path) -> None:
    samples = [
        replace(one, baselines=partial(dict, right=one.picture, wrong=partial(reference, 0)))
        for one in TASK.samples
    ]
    task = Task("documents", "pictures", samples, {})
    scores = evaluate(tmp_path / "a", task)
    first = scores["scores"][0]
    names = {"real", "right", "wrong", "reconstructed", "copied"}
    assert set(first["beside"]) == set(first["beside_spread"]) == names
    assert first["beside"]["right"] == 100
    assert first["beside"]["wrong"] == pytest.approx(100 / NUM)
    # one of twelve is right: 100 * sqrt(1/12 * 11/12 / 11)
    assert first["beside_spread"]["wrong"] == pytest.approx(100 / NUM)
    assert first["hash"] == evaluate(tmp_path / "b")["scores"][0]["hash"]
    printed = lines(scores)
    assert "real" not in printed[0]
    assert printed[3].split() == ["judge_r1-blurred8", "judge_r5-blurred8"]
    assert printed[6].startswith("right")
    assert "100 ± 0" in printed[6]


def test_other_candidates_are_another_measurement(tmp_path: Path) -> None:
    fewer = Task(
        "documents",
        "pictures",
        [
            replace(one, candidates=lambda one=one: one.candidates()[:11])  # type: ignore[misc]  # it has both
            for one in TASK.samples
        ],
        {},
    )
    rows = [
        evaluate(tmp_path / name, task)["scores"][0] for name, task in (("a", TASK), ("b", fewer))
    ]
    assert rows[0]["hash"] != rows[1]["hash"]


def test_a_task_without_candidates_is_refused(tmp_path: Path) -> None:
    bare = Task(
        "documents", "pictures", [replace(one, candidates=None) for one in TASK.samples], {}
    )
    with pytest.raises(DataError) as caught:
        evaluate(tmp_path / "a", bare)
    assert tells(caught.value, "task 'documents': has no other real pictures for a ranking")
    blank = Task("documents", "pictures", [Sample("a")], {})
    with pytest.raises(DataError, match="sample 'a': has no real picture"):
        list(bounding_pictures(Made(tmp_path, blank), 8, None))


def test_candidates_of_emoji_show_other_things() -> None:
    protocol = find_protocol("emoji-comp-v1")
    task = open_task(protocol.task, size=16, data=None, model=None, registry=REGISTRY)
    assert len(task.candidates) == 15
    for sample, own in zip(task.samples, task.candidates, strict=True):
        names = [name for name, _ in own]
        assert names[0] == sample.key
        assert len(set(names)) == len(names) == 40  # the things of the split, this one of `comp`
        assert np.array_equal(own[0][1](), sample.picture())  # type: ignore[misc]  # it has both
    again = open_task(protocol.task, size=16, data=None, model=None, registry=REGISTRY)
    assert again.candidates_sha256 == task.candidates_sha256


@pytest.mark.slow
def test_candidates_of_icons_are_of_the_same_set_and_style() -> None:
    values = {
        "name": "documents",
        "dataset": {"name": "icons", "sets": ["lucide"]},
        "split": "comp",
        "num": 2,
    }
    task = open_task(values, size=16, data=None, model=None, registry=REGISTRY)
    for sample, own in zip(task.samples, task.candidates, strict=True):
        assert sample.target["set"] == "lucide"
        assert len(own) == 100
        assert all(name.startswith("lucide/") for name, _ in own)
        assert np.array_equal(own[0][1](), sample.picture())  # type: ignore[misc]  # it has both


def test_protocols_of_icons_rank_and_classify() -> None:
    for name in shipped():
        if name.startswith("icons-"):
            metrics = [score["metric"]["name"] for score in find_protocol(name).scores]
            assert metrics.count("judge") == 2
            closed = "usable" if name.endswith("-v2") else "hand"
            assert (closed if "-closed-" in name else "icon_style") in metrics


def tiny_model_of_icons() -> Model:
    tiny = [
        "dataset.things_share=0.005",
        "image_tokenizer=patches",
        "image_tokenizer.resolution=64",
        "text_tokenizer.vocab_size=300",
        "decoder.num_layers=1",
        "decoder.d_model=32",
        "decoder.num_heads=1",
        "decoder.context_length=1024",  # for a document
    ]
    recipe = compose("icons", tiny, registry=REGISTRY)
    components = build(recipe, REGISTRY, stage="train")
    components.decoder.module.eval()
    return Model(recipe, components, name="tiny", step=7)


@pytest.mark.slow
def test_a_model_of_icons_is_ranked_and_classified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol icons-comp-v1, of few icons, by a tiny model that was not trained."""
    for name, value in {"NUM_TRAINED": 64, "NUM_HELD_OUT": 8, "EPOCHS": 1}.items():
        monkeypatch.setattr(style_classifier, name, value)
    values = find_protocol("icons-comp-v1").values
    kept = [one for one in values["scores"] if one["metric"]["name"] in ("judge", "icon_style")]
    values |= {
        "name": "few",
        "task": values["task"] | {"num": 2},
        "scores": [kept[0], kept[-1], COPY],
    }
    protocol, model = protocol_of(values, "few"), tiny_model_of_icons()
    task = open_task(protocol.task, size=64, data=None, model=model, registry=REGISTRY)
    options = {"num_retrieved": 1}
    rows = Evaluation(protocol, task, REGISTRY, tmp_path / "a", model=model, options=options).run()[
        "scores"
    ]
    assert [row["name"] for row in rows] == [
        "judge_r1-blurred32",
        "judge_r5-blurred32",
        "icon_set_and_style",
        "icon_style",
        "icon_finish",
        "copies",
        "nearness",
    ]
    assert all({"real", "reconstructed", "copied"} <= set(row["beside"]) for row in rows)
    assert rows[5]["beside"]["copied"] == 100
    assert rows[6]["beside"]["copied"] == 1
    assert rows[0]["beside"]["real"] == rows[1]["beside"]["real"] == 100
    assert (
        rows[2]["measurement"]["metric"]["classifier"] == IconStyleConfig().protocol()["classifier"]
    )


@pytest.mark.slow
def test_a_model_without_documents_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol icons-variant-closed-v2, of few icons; the judge is a pretended one, which reads nothing."""
    monkeypatch.setattr(usable_metric, "_judge", lambda sets: FakeJudge())
    model = tiny_model_of_icons()
    values = find_protocol("icons-variant-closed-v2").values
    values |= {"name": "few", "task": values["task"] | {"num": 2}, "scores": values["scores"][:1]}
    protocol = protocol_of(values, "few")
    task = open_task(protocol.task, size=64, data=None, model=model, registry=REGISTRY)
    options = {"num_retrieved": 0}
    scores = Evaluation(
        protocol, task, REGISTRY, tmp_path / "a", model=model, options=options
    ).run()
    names = [row["name"] for row in scores["scores"]]
    assert names[0] == "usable"
    copies = {"thing copied", "hand copied", "random of the hand"}
    assert set(scores["scores"][0]["beside"]) == {"real", "reconstructed"} | copies
    assert (tmp_path / "a" / "verdicts.png").is_file()
    assert lines(scores)[-1].startswith("reconstructed")
    theirs = Evaluation(
        protocol, task, REGISTRY, tmp_path / "b", pictures=tmp_path / "a" / "pictures", label="x"
    ).run()
    assert theirs["scores"][0]["skipped"] == "needs the model itself"


COPY = {"metric": {"name": "copy"}}


class FakeJudge:
    """Finds every drawing usable."""

    fingerprint = "fake"

    def judge(self, pictures: Any, asked: Any, documents: Any) -> list[Verdict]:
        return [Verdict(1, "it", True, 0.0, "", True)] * len(pictures)


class Classifier:
    """Takes a picture's first pixel for its style."""

    def classify(self, pictures: Any) -> list[tuple[str, str]]:
        styles = ("outline rounded", "filled", "outline")
        return [("lucide", styles[int(picture[0, 0, 0]) % 3]) for picture in pictures]


class TestIconStyle(MetricContract):
    config = IconStyleConfig()

    @pytest.fixture(autouse=True)
    def _classifier(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(icon_style_metric, "_classifier", lambda *_: Classifier())

    def column(self, name: str, num: int, rng: np.random.Generator) -> Any:
        if name == "targets":
            sets, styles = (
                rng.choice(["lucide", "tabler"], num),
                rng.choice(["filled", "outline"], num),
            )
            return [{"set": str(a), "style": str(b)} for a, b in zip(sets, styles, strict=True)]
        return super().column(name, num, rng)

    def known_answers(self) -> Any:
        pictures = [np.full((4, 4, 3), place, np.uint8) for place in range(3)]
        asked = [("lucide", "outline rounded"), ("tabler", "filled"), ("lucide", "outline rounded")]
        targets = [{"set": name, "style": style} for name, style in asked]
        sample = MetricBatch(range(3), {"pictures": pictures, "targets": targets})
        found = {"icon_set_and_style": 100 / 3, "icon_style": 200 / 3, "icon_finish": 100.0}
        return [([sample], found)]


class TestHand(TestIconStyle):
    config = HandConfig()

    def known_answers(self) -> Any:
        [(samples, found)] = super().known_answers()
        return [(samples, {"hand": found["icon_set_and_style"]})]


class TestCopy(MetricContract):
    config = CopyConfig()

    def known_answers(self) -> Any:
        white = np.full((16, 16, 3), 255, np.uint8)
        square, moved, line = white.copy(), white.copy(), white.copy()
        square[2:8, 2:8], moved[8:14, 8:14], line[7:9] = 0, 0, 0
        columns = {
            "pictures": [square, square, line, line],
            "documents": [[line, moved], [], [line, white], [white]],
        }
        sample = MetricBatch(range(4), columns)
        return [([sample], {"copies": 50.0, "nearness": 0.5})]

    def test_its_default_is_that_of_what_is_told_elsewhere(self) -> None:
        assert CopyConfig().least == NEARLY_A_COPY


class TestTrainingCopy(MetricContract):
    config = TrainingCopyConfig()

    def known_answers(self) -> Any:
        square = np.full((16, 16, 3), 255, np.uint8)
        white = square.copy()
        square[4:10, 5:11] = 0
        pictures = [square, square, square, white]
        columns = {"pictures": pictures, "training_nearness": [0.9, 0.8, 0.7, 1.0]}
        told = {"training_copies": 50.0, "training_nearness": 0.6, "blank": 25.0}
        return [([MetricBatch(range(4), columns)], told)]


def test_style_needs_a_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icon_style_metric, "_classifier", lambda *_: Classifier())
    batch = MetricBatch([0], {"pictures": [reference(0)], "targets": [{"set": "lucide"}]})
    with pytest.raises(DataError) as caught:
        IconStyleConfig().build().update(batch)
    assert tells(caught.value, "a sample: states no set and style of ... icon_style")
