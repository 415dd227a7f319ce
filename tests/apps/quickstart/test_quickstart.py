"""The quickstart, end to end on a few pictures: stages run, leave files, are not done twice, and
are refused early when wrong."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cm3apps.cli.main import main
from cm3apps.markdown_text import plain
from cm3apps.quickstart import judged, report, showing
from cm3apps.quickstart.pictures import TILE, write_table
from cm3apps.quickstart.pipeline import Quickstart
from cm3core.errors import RecipeError
from cm3core.images import save_png
from cm3core.interfaces.dataset import Judged
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3icons import data as icons
from cm3plugins.scenes.keys import HEADINGS
from cm3run.build import build
from cm3run.model import Model
from messages import tells

SMALL = [
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
    "train.num_threads=1",
    "train.minutes=null",
    "train.steps=3",
    "train.validation_documents=2",
]
ICONS = ["dataset.sets=[heroicons,basil]", "dataset.things_share=0.15"]
SCENES = ["dataset.num_scenes=60"]


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quickstart of a few icons, with its own cache folder."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(icons, "JUDGED_SPLITS", {"restyle": "restyled", "variant": "variants"})
    monkeypatch.setattr(showing, "NUM_ANSWERS", 2)
    monkeypatch.setattr(showing, "NUM_READ", 2)
    return [*SMALL, *ICONS]


def untrained(out: Path, overrides: list[str]) -> Model:
    """The model of a quickstart before its first step."""
    registry = load_registry()
    recipe = Quickstart(
        registry, out, minutes=1, recipe_name="quickstart", overrides=overrides
    ).recipe()
    return Model(recipe, build(recipe, registry, stage="train"))


def make_folder(folder: Path, number: int) -> list[str]:
    """Captioned pictures, each of one grey; return the overrides for them."""
    folder.mkdir()
    for grey in range(number):
        save_png(folder / f"{grey}.png", np.full((64, 64, 3), 19 * grey, np.uint8))
        (folder / f"{grey}.txt").write_text(f"grey {grey} square")
    return [*SMALL, "dataset=folder", f"dataset.path={folder}", "dataset.split=all"]


@pytest.mark.slow
def test_all_stages_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a user's pictures, none of which is held out: the judge by pixels compares them with each other."""
    pytest.importorskip("matplotlib", reason="needs pip install 'cm3leon[plots]'")
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    arguments = ["quickstart", "-o", str(out), "--recipe", "quickstart"]
    arguments += make_folder(tmp_path / "data", 13)
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "matplotlib", None)
        missing.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert main(arguments) == 0
    written = (out / "report.md").read_text()
    without = "ithout the curves of the losses, because the package 'matplotlib' is not installed: "
    assert f"W{without}`pip install 'cm3leon[plots]'`" in written
    assert "losses.png" not in written
    assert "tensorboard --logdir" not in written
    told = capsys.readouterr().err
    note = (
        "note: the report will not have the curves of the losses, because the package 'matplotlib'"
    )
    assert told.index(note) < told.index("[1/4]")
    before = [(out / name).stat().st_mtime_ns for name in ("answers.png", "training.json")]
    assert main(arguments) == 0, "the same command again only writes the report"
    assert before == [(out / name).stat().st_mtime_ns for name in ("answers.png", "training.json")]
    written = (out / "report.md").read_text()
    for name in ("answers.png", "evaluation/all/verdicts.png", "captions-all.png", "losses.png"):
        assert (out / name).stat().st_size > 0
        assert f"({name})" in written
    assert (out / "recipe.yaml").is_file()
    drawn = json.loads((out / "drawn.json").read_text())
    assert [one["prompt"].split()[0] for one in drawn["answers"]] == ["grey"] * 4
    assert {name: len(captions) for name, captions in drawn["captions"].items()} == {"all": 13}
    [scores] = drawn["scores"].values()
    beside = {one["name"]: one.get("beside", {}) for one in scores["scores"]}
    assert beside["judge_r1-blurred32"]["real"] == 100, "a real picture is nearest to itself"
    assert drawn["repairs"]["all"]["num"] == 13
    assert f"done: open {out / 'report.md'}" in capsys.readouterr().out


@pytest.mark.slow
def test_scenes_are_judged_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default recipe on few scenes; a model of three steps draws none of them, and the true pictures are right."""
    pytest.importorskip("matplotlib", reason="needs pip install 'cm3leon[plots]'")
    out = tmp_path / "out"
    monkeypatch.setattr(showing, "NUM_ANSWERS", 1)
    arguments = ["quickstart", "--minutes", "0.1", "-o", str(out), *SMALL, *SCENES]
    assert main(arguments) == 0
    drawn = json.loads((out / "drawn.json").read_text())
    assert list(drawn["scores"]) == ["unseen", "unseen-alone", "known", "captions"]
    for name, scores in drawn["scores"].items():
        found = {one["name"]: one for one in scores["scores"]}
        first = found["scene_caption" if name == "captions" else "scenes"]
        assert (first["value"], first["num"]) == (0, 2)
        assert (out / "evaluation" / name / "verdicts.png").is_file()
        if name != "captions":
            assert first["beside"]["real"] == 100
            assert "reconstructed" in first["beside"], "the reader's ceiling, of the same cases"
        assert ("scene_documents" in found) == (name in ("unseen", "known"))
        rows = (out / "evaluation" / name / "made.jsonl").read_text().splitlines()
        prepended = [json.loads(row)["documents"] for row in rows]
        assert any(prepended) == (name in ("unseen", "known"))
    assert drawn["captions"] == {}, "they are judged"
    written = (out / "report.md").read_text()
    places = ["evaluation/unseen/verdicts.png", "the ceiling |", "answers.png", "losses.png"]
    assert [written.index(one) for one in places] == sorted(written.index(one) for one in places)
    assert "| unseen objects, with documents | 2 | right | 0 ± 0 |" in written
    before = (out / "evaluation" / "unseen" / "scores.json").stat().st_mtime_ns
    assert main(arguments) == 0, "the same command again only writes the report"
    assert before == (out / "evaluation" / "unseen" / "scores.json").stat().st_mtime_ns


def test_what_a_model_cannot_do_is_not_judged() -> None:
    """Without retrieval, unseen objects have no documents; an objective that masks nothing writes no captions."""

    def judged_by(*overrides: str) -> list[str]:
        recipe = compose("scenes-small", [*overrides], registry=load_registry())
        assert recipe.dataset is not None
        serializer = SimpleNamespace(max_spans=int(recipe.component_names["objective"] == "cm3"))
        components = SimpleNamespace(serializer=serializer)
        model: Any = SimpleNamespace(recipe=recipe, components=components)
        return [one.name for one in judged.possible(model, judged.judged_of(recipe.dataset))]

    assert judged_by() == ["unseen", "unseen-alone", "known", "captions"]
    assert judged_by("retriever=none") == ["unseen-alone", "known", "captions"]
    assert judged_by("objective=causal") == ["unseen", "unseen-alone", "known"]
    assert judged_by("dataset.split=all") == [], "that would judge what was trained"
    assert judged_by("dataset.form=edit") == ["valid", "unseen", "comp", "counts"]


def test_a_verdict_in_words_by_hand() -> None:
    scores = {"scenes": 0.0, "scenes_two_objects": 100.0, "scenes_position": 0.0, "other": 0.0}
    assert judged.verdict_of(scores, HEADINGS) == "wrong: place"
    assert judged.verdict_of(scores | {"scenes_position": 100.0}, HEADINGS) == "wrong"
    assert judged.verdict_of({"scenes": 100.0, "scene_documents": 0.0}, HEADINGS) == "right"
    assert judged.verdict_of({"judge_r1": 0.0}, {}) == "", "nothing says what is right"


@pytest.mark.slow
def test_icons_are_judged_beside_copies_and_prompts_are_answered(
    overrides: list[str], tmp_path: Path
) -> None:
    """With 20 drawings of two sets; a model of three steps draws nothing usable, and real drawings are no copies."""
    out = tmp_path / "out"
    few = ["--minutes", "0.1", "--recipe", "quickstart"]
    assert main(["quickstart", *few, "-o", str(out), *overrides]) == 0
    drawn = json.loads((out / "drawn.json").read_text())
    assert list(drawn["scores"]) == ["restyle", "variant"]
    for split, scores in drawn["scores"].items():
        found = {one["name"]: one for one in scores["scores"]}
        assert found["usable"]["value"] == 0
        assert found["copied"]["beside"]["thing copied"] == 100
        assert found["in_hand"]["beside"]["real"] >= 50
        assert (out / "evaluation" / split / "verdicts.png").is_file()
    kinds = [one["kind"] for one in drawn["answers"]]
    assert kinds[:2] == ["found", "found"], "what was trained is in the memory"
    assert "found" not in kinds[2:]
    written = (out / "report.md").read_text()
    assert "this is its original" in written
    assert (
        written.index("answers.png") < written.index("verdicts.png") < written.index("## The run")
    )


def test_few_pictures_are_not_ranked(tmp_path: Path) -> None:
    """Fewer than ten others are too few for the judge by pixels."""
    beside = ["nats", "copy_of_training"]
    for number, metrics in ((10, beside), (13, [*beside, "judge"])):
        folder = tmp_path / f"{number}"
        model = untrained(tmp_path, make_folder(folder, number))
        protocol = judged.protocol_of(model, Judged("all", "all", "all"), 6)
        assert protocol is not None
        assert [one["metric"]["name"] for one in protocol.scores] == metrics
        assert protocol.task["num"] == 6
        assert judged.protocol_of(model, Judged("test", "test", "test"), 48) is None, "none there"


def test_icons_are_judged_where_the_judge_knows_them() -> None:
    def splits(*more: str) -> tuple[str, ...]:
        config = compose("quickstart", [*more], registry=load_registry()).dataset
        assert config is not None
        return judged.splits_of(config)

    assert splits() == tuple(icons.JUDGED_SPLITS)
    assert splits("dataset.styles=[]") != splits(), "colour is not judged"
    assert splits("dataset.held_out=by_name") == ("comp", "compose", "unseen")
    assert splits("dataset=emoji") == ("comp", "unseen")
    assert splits("dataset=folder", "dataset.path=x") == ("valid",)
    assert splits("dataset=folder", "dataset.path=x", "dataset.split=all") == ()


def test_training_takes_most_of_the_time() -> None:
    registry = load_registry()
    assert Quickstart(registry, Path("x"), minutes=10).training_minutes == pytest.approx(7)
    assert Quickstart(registry, Path("x"), minutes=25).training_minutes == 20


def test_no_minutes_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Quickstart(load_registry(), Path("x"), minutes=0)
    assert tells(caught.value, "--minutes: must be more than 0 ... as 25")


def test_a_wrong_override_is_found_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quickstart", "-o", str(tmp_path / "out"), "decoder.num_layer=2"]) == 2
    assert "num_layers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_table_places_pictures(tmp_path: Path) -> None:
    """A red and a blue picture are in their tiles, under a row's text; a missing one leaves
    white."""
    red, blue = (np.full((64, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    write_table(tmp_path / "table.png", ["a", "b", "c"], [("first", [red, None, blue])])
    pixels = np.asarray(Image.open(tmp_path / "table.png"))
    middle = 20 + 16 + TILE // 2
    assert pixels[middle, 6 + TILE // 2].tolist() == [255, 0, 0]
    assert pixels[middle, 6 + (TILE + 6) + TILE // 2].tolist() == [255, 255, 255]
    assert pixels[middle, 6 + 2 * (TILE + 6) + TILE // 2].tolist() == [0, 0, 255]


def test_captions_become_no_markup_in_the_report() -> None:
    attack = "<img src=x> ![](http://tracker.example/a.png) [here](javascript:alert(1)) | `"
    captions = [{"written": attack, "real": "a plain one"}]
    drawn = {"captions": {"train": captions}, "repairs": {}}
    row = next(line for line in report._captions(drawn).splitlines() if "| a plain one" in line)
    assert row == f"| {plain(attack)} | a plain one |"
    assert not set("<>[]`") & set(row)
    assert row.count("|") == 3
    metrics = {"validation/<b>/image_loss": 1.0, "train/image_loss": 2.0}
    losses = report._losses({"metrics": metrics}, "")
    assert "<b>" not in losses
    assert "| train/image_loss | 2.000 |" in losses
    answers = report._answers(Path("x"), {"answers": [{"prompt": attack, "told": attack}]})
    assert answers.splitlines()[-1] == f"| {plain(attack)} | {plain(attack)} |"


def test_tables_by_hand() -> None:
    """What was drawn, then what stands beside it."""

    def score(name: str, value: float, **beside: float) -> dict[str, object]:
        found = {"name": name, "value": value, "spread": 1.5, "num": 2}
        return {**found, "beside": beside, "beside_spread": dict.fromkeys(beside, 0.25)}

    scores = {
        "scores": [
            score("usable", 12.5, real=50.0, copied=0.0),
            score("name_rank", 3.0, real=1.0),
            score("copied", 0.0, real=2.0),
            {"name": "image_nats", "value": 1.25, "spread": 0.1, "num": 2},
            {"name": "fid", "skipped": "no weights"},
        ]
    }
    headings = {"usable": "usable %", "thing": "thing %", "copied": "copies %"}
    assert report.score_rows(scores, headings) == [
        "|  | usable % | copies % |",
        "| --- | --- | --- |",
        "| **this run** | 12.5 ± 1.5 | 0 ± 1.5 |",
        "| real | 50 ± 0.25 | 2 ± 0.25 |",
        "| first document, copied | 0 ± 0.25 |  |",
    ]
    other = {"scores": [{"name": "r1-pixels", "value": 25.0, "spread": None, "num": 4}]}
    assert report.score_rows(other, headings)[-1] == "| **this run** | 25 |"
    repairs = {"x": {"num": 2, "inpainted": 0.25, "white": 0.5}}
    assert report.repair_rows({"repairs": repairs})[-1] == "| `x` | 2 | 0.250 | 0.500 |"


def test_the_error_of_a_box_by_hand() -> None:
    """A black picture: white is wrong everywhere in the box, and outside of it nothing counts."""
    model = SimpleNamespace(image_size=(8, 8))
    black, made = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    made[2:6, 2:4] = 0
    found = showing._errors(model, {"real": [black], "inpainted": [made]})  # type: ignore[arg-type]  # stands for a model
    assert found == {"inpainted": 0.5, "white": 1.0}


def test_a_model_that_only_continues_has_no_captions(tmp_path: Path) -> None:
    """With an objective that masks nothing; its model refuses to fill anything."""
    overrides = make_folder(tmp_path / "data", 2)
    model = untrained(tmp_path, [*overrides, "objective=causal", "retriever=null"])
    drawn = showing.show(model, tmp_path)
    assert [one["kind"] for one in drawn["answers"]] == [None] * 2, "nothing is retrieved"
    assert drawn["captions"] == {}
    assert not list(tmp_path.glob("captions*.png"))
    assert "No captions and no inpainting" in report._captions(drawn)


@pytest.mark.slow
def test_drawing_and_encoding_count_as_minutes(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn and encoded before the training is taken off its length; a repeated command
    finds the same length, and so the same recipe."""
    clock = [100.0]
    own = [one for one in overrides if not one.startswith(("train.minutes=", "train.steps="))]

    class Slow:
        def __init__(self, components: object) -> None:
            clock[0] += 90

    run_of = partial(Quickstart, load_registry(), recipe_name="quickstart")
    quickstart = run_of(tmp_path / "out", minutes=5, overrides=own)
    before = quickstart.recipe()
    assert before.train.minutes == pytest.approx(3.5)
    with monkeypatch.context() as patch:
        patch.setattr("cm3run.training.preparation.Preparation", Slow)
        patch.setattr("time.monotonic", lambda: clock[0])
        planned = quickstart._plan(before, 100.0)
        assert planned.train.minutes == pytest.approx(3.5 - 1.5)
        again = run_of(tmp_path / "out", minutes=5, overrides=own)
        assert again.recipe().hash == planned.hash
        assert again._plan(again.recipe(), 0.0).hash == planned.hash
        clock[0] = 100.0
        short = run_of(tmp_path / "short", minutes=0.3, overrides=own)
        assert short._plan(short.recipe(), 100.0).train.minutes == pytest.approx(0.03)
    longer = run_of(tmp_path / "out", minutes=10, overrides=own)
    assert longer.training_minutes == pytest.approx(7.0)


def test_what_a_set_lacks_is_drawn_with_the_rest_of_it_in_the_memory() -> None:
    def with_memory(*, split: str) -> SimpleNamespace:
        return SimpleNamespace(split=split)

    remembering: Any = judged.remembering  # of any model
    config = compose("quickstart", [], registry=load_registry()).dataset
    assert config is not None
    recipe = SimpleNamespace(retriever=SimpleNamespace(retrieves=True))
    for split in (None, "all"):  # what generation retrieves from, by the recipe
        components = SimpleNamespace(memory_split=split)
        model: Any = SimpleNamespace(
            split="train", with_memory=with_memory, components=components, recipe=recipe
        )
        memory = {one.name: remembering(model, one).split for one in judged.judged_of(config)}
        assert memory.pop("missing") == "available"
        assert set(memory.values()) == {"train"}
