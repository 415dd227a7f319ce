"""The quickstart, end to end on a few pictures: stages run, leave files, are not done twice, and
are refused early when wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cm3apps.cli.main import main
from cm3apps.evaluation.icons.drawing import AskedPicture
from cm3apps.markdown_text import plain
from cm3apps.quickstart import report, showing
from cm3apps.quickstart.pictures import TILE, write_table
from cm3apps.quickstart.pipeline import Quickstart
from cm3apps.quickstart.showing import IconSubjects, OtherSubjects, subjects_of
from cm3core.document import Image as ImageSegment
from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3core.images import save_png
from cm3core.plugins import load_registry
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


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quickstart of a few icons, with its own cache folder."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    few = {"train": 3, "comp": 2, "compose": 0, "unseen": 1, "valid": 2}
    monkeypatch.setattr(showing, "NUM_DRAWN", few)
    monkeypatch.setattr(showing, "NUM_CAPTIONS", 2)
    monkeypatch.setattr(showing, "NUM_INPAINTED", 2)
    return [*SMALL, *ICONS]


def untrained(out: Path, overrides: list[str]) -> Model:
    """The model of a quickstart before its first step."""
    registry = load_registry()
    recipe = Quickstart(registry, out, minutes=1, overrides=overrides).recipe()
    return Model(recipe, build(recipe, registry, stage="train"))


def test_all_stages_and_again(
    overrides: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib", reason="needs pip install 'cm3leon[plots]'")
    out = tmp_path / "out"
    arguments = ["quickstart", "-o", str(out), *overrides]
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "matplotlib", None)
        missing.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert main(arguments) == 0
    report = (out / "report.md").read_text()
    without = "ithout the curves of the losses, because the package 'matplotlib' is not installed: "
    assert f"W{without}`pip install 'cm3leon[plots]'`" in report
    assert "losses.png" not in report
    assert "tensorboard --logdir" not in report
    told = capsys.readouterr().err
    note = (
        "note: the report will not have the curves of the losses, because the package 'matplotlib'"
    )
    assert told.index(note) < told.index("[1/4]")
    before = [(out / name).stat().st_mtime_ns for name in ("pictures-train.png", "training.json")]
    assert main(arguments) == 0, "the same command again only writes the report"
    after = [(out / name).stat().st_mtime_ns for name in ("pictures-train.png", "training.json")]
    assert before == after
    report = (out / "report.md").read_text()
    pictures = [
        f"{kind}-{split}.png"
        for kind in ("pictures", "captions", "inpainted")
        for split in ("comp", "train")
    ]
    for name in (*pictures, "pictures-unseen.png", "losses.png", "recipe.yaml"):
        assert (out / name).stat().st_size > 0
        assert f"({name})" in report
    drawn = json.loads((out / "drawn.json").read_text())
    assert sorted(drawn["splits"]) == ["comp", "train", "unseen"]
    for split, num in (("comp", 2), ("unseen", 1), ("train", 3)):
        own = drawn["splits"][split]
        assert own["num"] == num
        assert own["real"] == {"r1": 1.0, "r5": 1.0, "among": 100.0}, "a real picture is nearest"
        assert set(own["drawn"]) == {"none", "version"}
        gain = own["nats"]["none"]["mean"] - own["nats"]["version"]["mean"]
        assert own["gain"]["mean"] == pytest.approx(gain)
    assert {name: len(captions) for name, captions in drawn["captions"].items()} == {
        "comp": 2,
        "train": 2,
    }
    assert drawn["repairs"]["train"]["real"]["r5"] == 1.0
    assert "| what it was trained on (`train`) | 2 | 0 | 0 |" in report
    assert f"done: open {out / 'report.md'}" in capsys.readouterr().out


def test_an_icon_is_asked_for_after_another_version(overrides: list[str], tmp_path: Path) -> None:
    subjects = subjects_of(untrained(tmp_path, overrides))
    assert isinstance(subjects, IconSubjects)
    asked = subjects.of("comp", 2)
    assert len(asked) == 2
    for one in asked:
        [front] = one.front("version")
        own, other = (
            next(segment for segment in document if isinstance(segment, ImageSegment))
            for document in (one.document, front)
        )
        assert own.key != other.key
        assert (
            next(segment.text for segment in front if isinstance(segment, Text)).split(",")[0]
            == (one.text.split(",")[0])
        )


def test_other_data_sets_are_ranked_among_their_own(tmp_path: Path) -> None:
    """Four pictures of one colour each: a copy is nearest, black is nearest to the darkest."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "grey": (40, 40, 40), "white": (255,) * 3}
    (tmp_path / "data").mkdir()
    for name, colour in colours.items():
        save_png(tmp_path / "data" / f"{name}.png", np.full((64, 64, 3), colour, np.uint8))
        (tmp_path / "data" / f"{name}.txt").write_text(f"a {name} square")
    model = untrained(
        tmp_path / "out",
        [*SMALL, "dataset=folder", f"dataset.path={tmp_path / 'data'}", "dataset.split=all"],
    )
    subjects = subjects_of(model)
    assert isinstance(subjects, OtherSubjects)
    asked = subjects.of("train", 4)
    assert sorted(one.text for one in asked) == sorted(f"a {name} square" for name in colours)
    for one in asked:
        front = one.front("retrieved")
        assert len(front) == model.recipe.retriever.num_retrieved
        assert one.document not in front, "all share words, and none is its own document"
    real = [one.pixels((64, 64)) for one in asked]
    assert subjects.ranks(asked, real) == {"r1": 1.0, "r5": 1.0, "among": 4}
    black = [np.zeros((64, 64, 3), np.uint8)] * 4
    assert subjects.ranks(asked, black)["r1"] == 0.25, "nearest to grey, whatever was asked for"
    assert subjects.of("compose", 4) == []


def test_training_takes_most_of_the_time() -> None:
    registry = load_registry()
    assert Quickstart(registry, Path("x"), minutes=18).training_minutes == 15
    assert Quickstart(registry, Path("x"), minutes=5).training_minutes == pytest.approx(4.15)


def test_no_minutes_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Quickstart(load_registry(), Path("x"), minutes=0)
    assert tells(caught.value, "--minutes: must be more than 0 ... as 18")


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
    drawn = {"documents": None, "captions": {"train": captions}, "repairs": {}}
    row = next(line for line in report._captions(drawn).splitlines() if "| a plain one" in line)
    assert row == f"| {plain(attack)} | a plain one |"
    assert not set("<>[]`") & set(row)
    assert row.count("|") == 3
    metrics = {"validation/<b>/image_loss": 1.0, "train/image_loss": 2.0}
    losses = report._losses({"metrics": metrics}, "")
    assert "<b>" not in losses
    assert "| train/image_loss | 2.000 |" in losses


def test_tables_by_hand() -> None:
    """One split of two pictures, with documents and without."""
    nats = {"none": {"mean": 1.25, "error": 0.1}, "version": {"mean": 1.0, "error": 0.1}}
    ranks = {"r1": 0.5, "r5": 1.0, "among": 100}
    own = {
        "num": 2,
        "nats": nats,
        "gain": {"mean": 0.25, "error": 0.02},
        "real": {**ranks, "r1": 1.0},
        "drawn": {"none": {**ranks, "r1": 0.0}, "version": ranks},
        "copied": {**ranks, "r5": 0.5},
    }
    row = report.picture_rows({"documents": "version", "splits": {"x": own}})[-1]
    assert row == (
        "| x | 2 | 1.250 | 1.000 | 0.250 ± 0.020 | 1.00 / 1.00 | 0.00 / 1.00 | **0.50 / 1.00** "
        "| 0.50 / 0.50 |"
    )
    row = report.picture_rows({"documents": None, "splits": {"x": own}})[-1]
    assert row == "| x | 2 | 1.250 | 1.00 / 1.00 | 0.00 / 1.00 |"
    repairs = {"x": {"num": 2, "real": ranks, "cut": ranks, "inpainted": {**ranks, "r1": 0.75}}}
    row = report.repair_rows({"documents": None, "repairs": repairs})[-1]
    assert row == "| x | 2 | 0.50 / 1.00 | 0.50 / 1.00 | 0.75 / 1.00 |"


@pytest.mark.slow
def test_a_model_that_only_continues_has_no_captions(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an objective that masks nothing; its model refuses to fill anything."""
    monkeypatch.setattr(showing, "NUM_DRAWN", dict.fromkeys(showing.NUM_DRAWN, 0) | {"train": 1})
    model = untrained(tmp_path, [*overrides, "objective=causal", "retriever=null"])
    drawn = showing.show(model, tmp_path)
    assert drawn["documents"] is None
    assert list(drawn["splits"]) == ["train"]
    assert set(drawn["splits"]["train"]["drawn"]) == {"none"}
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

    quickstart = Quickstart(load_registry(), tmp_path / "out", minutes=5, overrides=own)
    before = quickstart.recipe()
    assert before.train.minutes == pytest.approx(4.15)
    with monkeypatch.context() as patch:
        patch.setattr("cm3run.training.preparation.Preparation", Slow)
        patch.setattr("time.monotonic", lambda: clock[0])
        planned = quickstart._plan(before, 100.0)
        assert planned.train.minutes == pytest.approx(4.15 - 1.5)
        again = Quickstart(load_registry(), tmp_path / "out", minutes=5, overrides=own)
        assert again.recipe().hash == planned.hash
        assert again._plan(again.recipe(), 0.0).hash == planned.hash
        clock[0] = 100.0
        short = Quickstart(load_registry(), tmp_path / "short", minutes=0.3, overrides=own)
        assert short._plan(short.recipe(), 100.0).train.minutes == pytest.approx(0.03)
    longer = Quickstart(load_registry(), tmp_path / "out", minutes=10, overrides=own)
    assert longer.training_minutes == pytest.approx(8.3)


def test_a_short_run_shows_fewer_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the numbers reaches every split."""
    numbers: list[tuple[str, int]] = []

    class Nothing:
        splits, documents = ("comp", "train"), None

        def of(self, split: str, num: int) -> list[AskedPicture]:
            numbers.append((split, num))
            return []

    monkeypatch.setattr(showing, "subjects_of", lambda model: Nothing())
    monkeypatch.setattr(showing, "NUM_DRAWN", {"comp": 96, "train": 48})
    fake = SimpleNamespace(
        components=SimpleNamespace(
            image_tokenizer=SimpleNamespace(grid=(8, 8)), serializer=SimpleNamespace(max_spans=16)
        )
    )
    showing.show(fake, tmp_path, 0.25)  # type: ignore[arg-type]  # stands for a model
    showing.show(fake, tmp_path, 0.001)  # type: ignore[arg-type]  # stands for a model
    assert numbers == [("comp", 24), ("train", 12), ("comp", 2), ("train", 2)]
