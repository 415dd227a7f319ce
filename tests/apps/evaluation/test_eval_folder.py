"""`cm3 eval MODEL FOLDER`: the protocol is the folder's, copies stand beside the model, and what is refused."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.leakage import _codes
from cm3apps.evaluation.own_folder import folder_protocol
from cm3apps.evaluation.shipped import find_protocol, shortened
from cm3apps.evaluation.tasks import open_task
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3apps.evaluation.tasks.documents import _copied, apart
from cm3core.document import content_keys
from cm3core.errors import DataError
from cm3core.images import fit, open_image, save_png
from cm3core.plugins import load_registry
from cm3plugins.datasets.folder import FolderSourceConfig
from cm3plugins.datasets.tuxpaint import TuxPaintSourceConfig
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
from cm3run.evaluation.protocol import protocol_of
from toy_model import toy_model

REGISTRY = load_registry()
NUM = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def picture(place: int) -> np.ndarray:
    """Two bars whose places and lengths depend on the number: each of 60 looks different."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[1 + place % 7 : 3 + place % 7, 1 : 3 + place % 13] = 0
    pixels[9 : 12 + place % 4, 2 + place % 11 : 5 + place % 11] = 60
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of `NUM` pictures; picture 7's caption shares its words with picture 8's alone."""
    folder = tmp_path / "My Pictures"
    for place in range(NUM):
        save_png(folder / f"{place:02d}.png", picture(place), {})
        text = f"special thing {place}" if place in (7, 8) else f"bar{place} {place}"
        (folder / f"{place:02d}.txt").write_text(text)
    return folder


def trained_on(path: str | Path, **keys: Any) -> Any:
    """A model that states its data set, as far as a protocol asks."""
    config = FolderSourceConfig(path=str(path), **keys)
    recipe = SimpleNamespace(dataset=config, component_names={"dataset": "folder"})
    return SimpleNamespace(recipe=recipe, image_size=(8, 8))


def test_the_protocol_is_that_of_what_is_held_out(folder: Path) -> None:
    """By the model's own split if it was trained on the folder, however its path is written; else by the default."""
    own = folder_protocol(folder, REGISTRY, trained_on("My Pictures/../My Pictures", valid=0.5))
    held = len(FolderSourceConfig(path=str(folder), split="valid", valid=0.5).build())
    assert 20 < held < 40
    assert (own.name, own.size) == (f"my-pictures-valid-{held}", 8)
    assert (own.task["dataset"]["valid"], own.task["num"]) == (0.5, held)
    assert [score["metric"]["name"] for score in own.scores] == [
        "nats",
        "copy_of_training",
        "judge",
    ]
    few = folder_protocol(folder, REGISTRY, trained_on(folder, valid=0.5), num=4)
    assert few.task["num"] == 4
    assert few.sha256 != own.sha256
    other = folder_protocol(folder, REGISTRY, trained_on("elsewhere", valid=0.5))
    assert other.task["dataset"] == {"name": "folder", "path": str(folder)}
    assert other.values == folder_protocol(folder, REGISTRY, other_kind()).values
    # from its file it is the same
    assert protocol_of({**own.values, "sha256": own.sha256}, "x").values == own.values


def other_kind() -> Any:
    """A model of a data set that has no path."""
    recipe = SimpleNamespace(
        dataset=TuxPaintSourceConfig(), component_names={"dataset": "tuxpaint"}
    )
    return SimpleNamespace(recipe=recipe, image_size=(8, 8))


def test_copies_stand_beside_the_model(folder: Path, tmp_path: Path) -> None:
    """What copies has the nearness of a copy; the copied picture is that of the nearest caption."""
    protocol = folder_protocol(folder, REGISTRY, trained_on(folder, valid=0.3), num=8)
    model = toy_model()
    task = open_task(
        protocol.task, size=8, data=None, model=model, registry=REGISTRY, writer=protocol.writer
    )
    scores = Evaluation(
        protocol, task, REGISTRY, tmp_path / "out", model=model, options={"num_retrieved": 0}
    ).run()
    found = {one["name"]: one for one in scores["scores"]}
    [judge] = [name for name in found if name.startswith("judge_r5-")]
    assert {"image_nats", "training_copies", "training_nearness"} <= {*found}
    for name in ("nearest caption copied", "random copied"):
        assert found["training_copies"]["beside"][name] == 100.0
        assert found["training_nearness"]["beside"][name] == 1.0
    assert found["training_nearness"]["beside"]["real"] < 1.0
    assert found[judge]["beside"]["real"] == 100.0
    assert found["training_nearness"]["measurement"]["training"]


def test_the_nearest_caption(folder: Path) -> None:
    """Of two documents that share words alone, the one in the training split, wherever the split puts them."""
    for valid in (0.2, 0.4, 0.6, 0.8):
        config = FolderSourceConfig(path=str(folder), valid=valid, split="valid")
        held = config.build()
        own = [index for index in range(len(held)) if held.id(index) in ("07.png", "08.png")]
        if len(own) == 1:
            copied = _copied(held, config, 16)(own[0])["nearest caption copied"]()
            np.testing.assert_array_equal(copied, picture(15 - int(held.id(own[0])[:2])))
            return
    raise AssertionError("no split parts the two")


def test_a_picture_of_the_training_data_is_not_held_out(folder: Path) -> None:
    """Neither its bytes again nor its look, at another size."""
    config = FolderSourceConfig(path=str(folder), valid=0.5)
    train, held = config.build(), replace(config, split="valid").build()
    names = {path.name for path in folder.glob("*.png")}
    trained = [train.id(index) for index in range(len(train))]
    first, second = sorted(names - set(trained))[:2]
    shutil.copy(folder / trained[0], folder / first)
    large = np.asarray(open_image(folder / trained[1])).repeat(4, 0).repeat(4, 1)
    save_png(folder / second, large, {})
    held = replace(config, split="valid").build()
    left = {held.id(index) for index in apart(held, config.build())}
    assert left == names - {*trained, first, second}
    # the data's own look-alikes are left out too, so that a memory of the training split has no leak
    task = folder_protocol(folder, REGISTRY, trained_on(folder, valid=0.5)).task
    assert task["num"] == len(left)


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError) as caught:
        folder_protocol(folder, REGISTRY, trained_on(folder, valid=0.0))
    assert str(caught.value) == (
        f"{folder}: holds out no picture: all are in the split train (60)\n"
        "  next: add pictures, or train with a larger dataset.valid, the share that is held out"
    )
    (folder / "none.yaml").write_text("extends: [tiny]\ndataset: null\n")
    assert main(["eval", "bundled:emoji64", str(folder / "none.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}/none.yaml: has no section 'dataset'\n  next: name a recipe with a data set\n"
    )
    for name in ("manifest.json", "train-000000.tar"):
        (folder / name).touch()
    with pytest.raises(DataError) as caught:
        folder_protocol(folder, REGISTRY, trained_on(folder))
    assert str(caught.value) == (
        f"{folder}: holds token shards, which have no pictures to compare with\n"
        "  next: name the folder of the pictures that were encoded, or the recipe with which they were"
    )


def tars(folder: Path) -> Path:
    """The folder's records in two tars."""
    out = folder.parent / "tars"
    out.mkdir()
    for place, parity in enumerate((0, 1)):
        with tarfile.open(out / f"{place:05d}.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                if int(path.stem) % 2 == parity:
                    tar.add(path, path.name)
    return out


def test_a_folder_of_tars_and_a_recipe(folder: Path, tmp_path: Path) -> None:
    """Both name the same pictures; the recipe says how many are held out."""
    path = tars(folder)
    held = WebDatasetSourceConfig(path=str(path), split="valid").build()
    of_tars = folder_protocol(path, REGISTRY, None)
    assert of_tars.task["dataset"] == {"name": "webdataset", "path": str(path)}
    assert (of_tars.name, of_tars.task["num"]) == (f"tars-valid-{len(held)}", len(held))
    recipe = tmp_path / "Mine.yaml"
    recipe.write_text(
        "extends: [tiny]\ndataset: {name: webdataset, path: tars, valid: 0.5, split: train}\n"
    )
    of_recipe = folder_protocol(recipe, REGISTRY, None, num=50)
    number = len(WebDatasetSourceConfig(path=str(path), split="valid", valid=0.5).build())
    assert 20 < number < 40
    assert (of_recipe.name, of_recipe.task["num"]) == (f"mine-valid-{number}", number)
    assert of_recipe.title.endswith("of the recipe Mine.yaml")
    stated = of_recipe.task["dataset"]
    assert (stated["path"], stated["valid"], "split" in stated) == ("tars", 0.5, False)


def test_the_first_samples_of_a_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of the whole protocol; name and hash are others."""
    whole = find_protocol("emoji-comp-v1")
    few = shortened(whole, 3)
    assert (few.name, few.task["num"]) == ("emoji-comp-v1-first-3", 3)
    assert few.sha256 != whole.sha256
    keys = [
        [
            sample.key
            for sample in open_task(
                one.task, size=64, data=None, model=None, registry=REGISTRY, writer=one.writer
            ).samples
        ]
        for one in (few, whole)
    ]
    assert keys[0] == keys[1][:3]
    for name, num, said in (
        ("coco5k-v1", 5000, "coco5k-v1 has 5,000 samples\n  next: use fewer, or leave it out"),
        ("geneval-v1", 3, "geneval-v1 has a fixed set of prompts\n  next: leave it out"),
    ):
        assert main(["eval", "bundled:emoji64", name, "--num", str(num)]) == 2
        assert capsys.readouterr().err == f"error: --num: {said}\n"


def test_references_of_another_size_than_the_model(folder: Path) -> None:
    """A bank holds codes: the references are encoded at the model's size to find them there."""
    model, own = toy_model(), open_image(folder / "03.png")
    task = Task("coco", "pictures", [Sample("3", picture=lambda: np.asarray(own))], {})
    assert model.image_size != np.asarray(own).shape[:2]
    coded = model.encode([fit(np.asarray(own), model.image_size)])
    assert _codes(model, task) == dict.fromkeys(content_keys((coded[0],)), "3")
