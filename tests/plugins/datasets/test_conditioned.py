"""`conditioned`: records with a structure that is drawn from their picture or their boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.document import Image, Text
from cm3core.errors import DataError
from cm3core.interfaces import TaskSource
from cm3core.plugins import load_registry
from cm3core.recipe import recipe_from_yaml
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.conditions import AsItIsConfig, BoxesConfig, CannyConfig
from cm3plugins.datasets.coco import COCOConfig
from cm3plugins.datasets.conditioned import ConditionedConfig
from cm3plugins.datasets.folder import FolderSourceConfig
from cm3plugins.tasks.bundled import StructureConfig
from draw_formats import FORMATS
from messages import tells
from picture_files import picture, write


@pytest.fixture
def pictures(tmp_path: Path) -> FolderSourceConfig:
    files = {f"{n}.png": picture(n, size=(24, 20)) for n in range(6)}
    write(tmp_path, files | {f"{n}.txt": f"noise {n}" for n in range(6)})
    return FolderSourceConfig(path=str(tmp_path))


def conditioned(source: Any, **keys: Any) -> Any:
    return ConditionedConfig(
        **{"source": source, "condition": CannyConfig(), "split": "all", **keys}
    )


def test_a_record_has_what_the_task_takes(pictures: FolderSourceConfig) -> None:
    source = conditioned(pictures, vary=False).build()
    record = source.record(1)
    assert record["feature"] == "canny edge features"
    assert record["caption"] == "noise 1"
    expected = CannyConfig().build().draw(record["image"].load())
    assert np.array_equal(record["condition"].load(), expected)
    document = TaskSource(source, StructureConfig().build()).document(1)
    assert [type(part) for part in document] == [Text, Image, Text, Image]
    assert [getattr(part, "response", None) for part in document[1::2]] == [False, True]


def test_settings_vary_with_the_picture_and_the_seed_and_never_else(
    pictures: FolderSourceConfig,
) -> None:
    canny = CannyConfig(low=400, high=800)  # about what noise has
    first, again = (conditioned(pictures, condition=canny).build() for _ in range(2))
    other = conditioned(pictures, condition=canny, seed=1).build()
    still = conditioned(pictures, condition=canny, vary=False).build()

    def drawn(source: Any) -> list[bytes]:
        rng = np.random.default_rng(len(source))
        return [source.record(n, rng)["condition"].load().tobytes() for n in range(6)]

    assert drawn(first) == drawn(again)
    assert drawn(first) != drawn(other)
    assert drawn(first) != drawn(still)
    # codes are cached by key, so another picture has another one
    keys = [
        source.record(0)["condition"].key
        for source in (
            first,
            again,
            other,
            still,
            conditioned(pictures, condition=AsItIsConfig()).build(),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_boxes_are_drawn_from_objects() -> None:
    folder = FORMATS / "coco"
    source = COCOConfig(
        form="objects",
        path=str(folder / "annotations/instances_val2017.json"),
        pictures=str(folder / "val2017"),
    )
    built = conditioned(source, condition=BoxesConfig()).build()
    record = built.record(0)
    assert np.array_equal(record["condition"].load(), BoxesConfig().build().draw(record["objects"]))
    # the condition shows what the model sees of the picture: the box, stretched by the crop
    assert record["condition"].load()[100, 100].any()
    assert not record["condition"].load()[20, 20].any()
    assert built.provenance(0).licence == "CC-BY-2.0"


def test_a_record_without_what_is_drawn_from(pictures: FolderSourceConfig) -> None:
    source = conditioned(pictures, condition=BoxesConfig()).build()
    with pytest.raises(DataError) as error:
        source.record(0)
    assert tells(
        error.value, f"record {source.id(0)}: has no field 'objects' ... dataset.condition"
    )
    # with a task, such records are named and counted
    tuned = TaskSource(source, StructureConfig().build())
    assert len(tuned) == 0
    assert len(tuned.skipped) == 6


def test_splits_are_those_of_the_data_set_inside(pictures: FolderSourceConfig) -> None:
    pictures.valid = 0.5
    config = ConditionedConfig(source=pictures, condition=CannyConfig())
    assert config.splits == ("train", "valid", "all")
    sizes = [
        len(ConditionedConfig(source=pictures, condition=CannyConfig(), split=split).build())
        for split in ("train", "valid", "all")
    ]
    assert sizes[0] + sizes[1] == sizes[2] == 6


def test_a_recipe_names_both() -> None:
    recipe = recipe_from_yaml(
        "dataset: {name: conditioned, source: emoji, condition: {name: canny, low: 60}}",
        load_registry(),
    )
    assert recipe.dataset.condition == CannyConfig(low=60.0)  # type: ignore[union-attr]  # the recipe has it
    assert recipe.dataset.source.split == "train"  # type: ignore[union-attr]  # the recipe has it


class TestContract(DocumentSourceContract):
    max_examples = 5

    @pytest.fixture(autouse=True)
    def _files(self, pictures: FolderSourceConfig) -> None:
        type(self).inside = pictures

    def make(self) -> Any:
        return conditioned(type(self).inside).build()
