"""The quickstart, end to end on a few pictures: stages run, leave files, are not done twice, and
are refused early when wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3apps.markdown_text import plain
from cm3apps.quickstart import report, showing
from cm3apps.quickstart.pictures import TILE, write_table
from cm3apps.quickstart.pipeline import Quickstart
from cm3core.cli.main import main
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry

SMALL = [
    "decoder.num_layers=1",
    "decoder.d_model=32",
    "decoder.num_heads=1",
    "dataset.styles=[noto,twemoji]",
    "train.num_threads=1",
    "train.minutes=null",
    "train.steps=3",
    "train.validation_documents=2",
]


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quickstart of four concepts, with its own cache folder."""
    concepts = tmp_path / "concepts.txt"
    concepts.write_text("red apple\npizza\npanda\nkey\n")
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(showing, "NUM_JUDGED", {"train": 3, "comp": 1, "unseen": 0, "valid": 0})
    monkeypatch.setattr(showing, "NUM_SHOWN", {"train": 3, "comp": 1, "unseen": 0, "valid": 0})
    monkeypatch.setattr(showing, "NUM_CAPTIONS", 2)
    monkeypatch.setattr(showing, "NUM_INFILLED", 2)
    return [*SMALL, f"dataset.concepts={concepts}"]


def test_all_stages_and_again(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["quickstart", "-o", str(out), *overrides]
    assert main(arguments) == 0
    report = (out / "report.md").read_text()
    for name in ("pictures-train.png", "captions.png", "infilled.png", "losses.png", "recipe.yaml"):
        assert (out / name).stat().st_size > 0
        assert f"({name})" in report
    drawn = json.loads((out / "drawn.json").read_text())
    assert drawn["splits"]["train"]["real_r5"] == 1.0, (
        "the judge knows every real picture among four texts"
    )
    assert {name: len(captions) for name, captions in drawn["captions"].items()} == {
        "held_out": 1,
        "trained": 2,
    }
    assert drawn["repairs"]["trained"]["real_r5"] == 1.0
    assert "training pictures: 0 of 2 captions name the right thing" in report
    assert "| training concepts" in report
    before = (
        (out / "pictures-train.png").stat().st_mtime_ns,
        (out / "training.json").stat().st_mtime_ns,
    )
    assert main(arguments) == 0, "the same command again only writes the report"
    assert before == (
        (out / "pictures-train.png").stat().st_mtime_ns,
        (out / "training.json").stat().st_mtime_ns,
    )
    assert f"done: open {out / 'report.md'}" in capsys.readouterr().out


def test_a_prompts_own_picture_is_never_in_front(overrides: list[str], tmp_path: Path) -> None:
    from cm3core.build import build
    from cm3core.model import Model

    recipe = Quickstart(load_registry(), tmp_path, minutes=1, overrides=overrides).recipe()
    registry = load_registry()
    asked = showing._asked(Model(recipe, build(recipe, registry, stage="train")), "train")
    assert asked
    for one in asked:
        keys = {
            segment.key
            for document in one.in_front
            for segment in document
            if hasattr(segment, "key")
        }
        assert keys
        assert one.picture.key not in keys


def test_training_takes_most_of_the_time() -> None:
    registry = load_registry()
    assert Quickstart(registry, Path("x"), minutes=18).training_minutes == 15
    assert Quickstart(registry, Path("x"), minutes=5).training_minutes == pytest.approx(4.15)


def test_no_minutes_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Quickstart(load_registry(), Path("x"), minutes=0)
    assert (
        str(caught.value)
        == "--minutes: must be more than 0\n  next: give the minutes that the whole may take, such as 18"
    )


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
    drawn = {"captions": {"trained": captions}, "repairs": {}}
    row = next(line for line in report._captions(drawn).splitlines() if "a plain one" in line)
    assert row == f"| {plain(attack)} | a plain one |"
    assert not set("<>[]`") & set(row)
    assert row.count("|") == 3
    metrics = {"validation/<b>/image_loss": 1.0, "train/image_loss": 2.0}
    losses = report._losses({"metrics": metrics})
    assert "<b>" not in losses
    assert "| train/image_loss | 2.000 |" in losses


def test_a_model_that_only_continues_has_no_captions(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an objective that masks nothing; its model refuses to fill anything."""
    from cm3core.build import build
    from cm3core.model import Model

    monkeypatch.setattr(showing, "NUM_JUDGED", {"train": 1, "comp": 0, "unseen": 0, "valid": 0})
    registry = load_registry()
    recipe = Quickstart(
        registry, tmp_path, minutes=1, overrides=[*overrides, "objective=causal", "retriever=null"]
    ).recipe()
    model = Model(recipe, build(recipe, registry, stage="train"))
    monkeypatch.setattr(showing, "_judge", lambda texts: None)
    drawn = showing.show(model, tmp_path)
    assert drawn["splits"]["train"]["num_prompts"] == 1
    assert not (tmp_path / "captions.png").exists()
    assert "None, and nothing inpainted" in report._captions(drawn)


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
        patch.setattr("cm3core.training.preparation.Preparation", Slow)
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


def test_a_short_run_shows_fewer_pictures(overrides: list[str], tmp_path: Path) -> None:
    from cm3core.build import build
    from cm3core.model import Model

    recipe = Quickstart(load_registry(), tmp_path, minutes=1, overrides=overrides).recipe()
    model = Model(recipe, build(recipe, load_registry(), stage="train"))
    assert len(showing._asked(model, "train")) == 3
    assert len(showing._asked(model, "train", 0.1)) == showing.LEAST
