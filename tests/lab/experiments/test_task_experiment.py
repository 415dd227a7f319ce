"""`cm3 experiment tasks`: what it measures by hand, end to end with a tiny model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cm3run.model
from cm3apps.cli.main import main
from cm3apps.evaluation.icons import style_classifier
from cm3apps.evaluation.task_report import table
from cm3core.errors import DataError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3lab.experiments.tasks import TASKS, TaskSettings, asking, told
from cm3lab.experiments.tasks.drawn import edge_f1, frame_of, ink, ink_ious, iou
from cm3lab.experiments.tasks.experiment import TaskExperiment, tasks_of
from cm3lab.experiments.tasks.told import kind_of, names, styles
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3run.build import build
from cm3run.model import Model
from cm3run.tasks import TunedTasks
from messages import tells

RECIPE = """
extends: [icons]
dataset:
  name: mixture
  parts: {draw: {name: icons, things_share: 0.005, image_size: 32}}
  memory: draw
"""
TINY = [
    "data.max_text_tokens=300",
    "image_tokenizer=patches",
    "text_tokenizer.vocab_size=300",
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    registry = load_registry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM3_CACHE", str(tmp_path_factory.mktemp("cache")))
        (folder := tmp_path_factory.mktemp("recipe")).joinpath("tiny.yaml").write_text(RECIPE)
        recipe = compose(str(folder / "tiny.yaml"), TINY, registry=registry)
        components = build(recipe, registry, stage="train")
        components.decoder.module.eval()
        configs = {
            name: registry.config_class("task", name, place="test")()
            for name in (
                "edit",
                "structure",
                "object_to_image",
                "grounding",
                "vqa",
                "chat",
                "caption",
                "super_resolution",
            )
        }
        return Model(recipe, components, name="tiny", step=7, tasks=TunedTasks(configs, plain=True))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    for name, value in {"NUM_TRAINED": 64, "NUM_HELD_OUT": 8, "EPOCHS": 1}.items():
        monkeypatch.setattr(style_classifier, name, value)
    monkeypatch.setattr(told, "_COUNTED", 50)
    monkeypatch.setattr(cm3run.model, "load", lambda *_, **__: model)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_all_tasks_and_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "tasks", "tiny", "--num", "2", "--splits", "unseen"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert list(figures["found"]) == list(TASKS)
    found = {task: own["unseen"]["figures"] for task, own in figures["found"].items()}
    assert found["edit"]["real"]["R@1"] == found["edit"]["real"]["R@5"] == 1.0
    assert set(found["edit"]) == {"real", "reconstructed", "copied", "drawn"}
    assert found["edges"]["real"]["edge F1"] == 1.0
    for task in ("boxes", "place"):
        assert found[task]["real"]["IoU"] == 1.0
        assert found[task]["real"]["R@5"] > 0.8, "icons are found in their boxes"
    assert found["find"]["another"]["IoU"] < 1.0
    assert set(found["answer"]) == {"questions", "most frequent", "white", "told"}
    assert sum(found["answer"]["questions"].values()) == 2 * found["answer"]["questions"]["all"]
    assert found["enlarge"]["real"]["R@1"] == 1.0
    assert set(found["enlarge"]) == {"real", "reconstructed", "enlarged", "edsr", "drawn"}
    assert found["enlarge"]["enlarged"]["PSNR"] > found["enlarge"]["drawn"]["PSNR"] > 0
    report = (tmp_path / "out" / "report.md").read_text()
    for task in TASKS:
        assert (tmp_path / "out" / f"{task}-unseen.png").stat().st_size > 0
        assert f"({task}-unseen.png)" in report

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    resumed = [*command, "--tasks", "edit", "find", "-o", str(tmp_path / "resumed")]
    with monkeypatch.context() as patch:
        patch.setattr(asking, "written", stopped)
        assert main(resumed) == 130
    assert "resume with: cm3 experiment tasks tiny" in capsys.readouterr().err
    assert main(resumed) == 0
    again = json.loads((tmp_path / "resumed" / "figures.json").read_text())["found"]
    assert again == {task: figures["found"][task] for task in ("edit", "find")}


def test_a_model_that_was_not_tuned_is_refused(model: Model, tmp_path: Path) -> None:
    plain = Model(model.recipe, model.components, name="plain", step=1, tasks=TunedTasks())
    settings = TaskSettings(2, ("unseen",), ("caption",))
    with pytest.raises(DataError) as error:
        TaskExperiment(plain, tmp_path / "out", settings, "cm3")
    assert tells(error.value, "model 'plain': was not tuned ... 'caption' ... 'caption'")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError) as error:
        tasks_of(plain)
    assert tells(error.value, "model 'plain': was not tuned for any task")
    configs = {name: model.tasks.configs[name] for name in ("super_resolution", "structure")}
    own = Model(model.recipe, model.components, tasks=TunedTasks(configs))
    assert tasks_of(own) == ("edges", "boxes", "enlarge")
    other: Any = type(
        "Other", (), {"recipe": compose("tiny", registry=load_registry()), "name": "o"}
    )()
    with pytest.raises(DataError, match="its data set is 'emoji', but this experiment measures"):
        TaskExperiment(other, tmp_path / "out", settings, "cm3")


def test_edges_by_hand() -> None:
    line, near, far = (np.zeros((9, 9), bool) for _ in range(3))
    line[:, 4], near[:, 5], far[:, 8] = True, True, True
    assert edge_f1(line, line) == edge_f1(near, line) == 1.0
    assert edge_f1(far, line) == 0.0
    half = line.copy()
    half[4:] = False  # all right; of the wanted 9, those of rows 0 to 4 are near
    assert edge_f1(half, line) == pytest.approx(2 * (5 / 9) / (1 + 5 / 9))
    nothing = np.zeros((9, 9), bool)
    assert (edge_f1(nothing, nothing), edge_f1(nothing, line)) == (1.0, 0.0)


BOX = st.tuples(*(st.integers(0, 9),) * 4).map(
    lambda one: (min(one[0], one[1]), min(one[2], one[3]), max(one[:2]) + 1, max(one[2:]) + 1)
)


@given(BOX, BOX)
def test_iou_counts_pixels(one: Any, other: Any) -> None:
    masks = []
    for x0, y0, x1, y1 in (one, other):
        mask = np.zeros((12, 12), bool)
        mask[y0:y1, x0:x1] = True
        masks.append(mask)
        assert frame_of(mask) == (x0, y0, x1, y1)
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert iou(one, other) == pytest.approx(expected)


def test_ink_in_the_quarters_of_a_scene() -> None:
    true, drawn = (np.full((64, 64, 3), 255, np.uint8) for _ in range(2))
    true[4:20, 4:20] = drawn[4:20, 4:20] = 0
    true[40:48, 40:48] = 0
    drawn[40:48, 40:44] = (255, 0, 0)  # half of it, in a colour
    frames = [(2, 2, 24, 24), (36, 36, 60, 60)]
    assert ink_ious(drawn, true, frames) == [1.0, 0.5]
    assert ink_ious(np.full_like(true, 255), true, frames) == [0.0, 0.0]
    assert ink(drawn).sum() == 16 * 16 + 8 * 4


def test_names_and_styles_of_captions() -> None:
    bell = IconEntry("a/bell-off", "bell off", "outline rounded", (), "train")
    for text in (
        "bell off, outline rounded, lucide",
        "outline rounded bell off",
        "lucide, bell off",
    ):
        assert names(bell, text)
    for text in ("bell, outline rounded", "off bell", "bell off-centre", "doorbell off"):
        assert not names(bell, text)
    assert styles("outline rounded bell off, lucide") == bell.style
    assert styles("bell off") == ""


def test_kinds_of_questions() -> None:
    assert kind_of("Is it crossed out?") == "slash"
    assert kind_of("Is it outline?") == "is it"
    assert kind_of("What is it? Assistant: a bell User: How many things are there?") == "how many"


def test_a_table_has_one_column_for_a_kind_in_all_splits() -> None:
    def split(number: int, told: float) -> dict[str, Any]:
        figures = {"questions": {"all": 9, "what": number}, "told": {"all": 0.5, "what": told}}
        return {"num": 9, "figures": figures}

    assert table({"comp": split(4, 0.25), "unseen": split(5, 0.6)}) == [
        "| split | records | | all | what |",
        "| --- | --- | --- | --- | --- |",
        "| comp | 9 | number of questions | 9 | 4 |",
        "| comp | 9 | **told** | 0.50 | 0.25 |",
        "| unseen | 9 | number of questions | 9 | 5 |",
        "| unseen | 9 | **told** | 0.50 | 0.60 |",
    ]
