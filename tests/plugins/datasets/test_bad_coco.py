"""Every bad record of COCO's files is named: place, cause and next step; the others are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import draw_formats
from bad_formats import annotation, changed
from cm3apps.cli.main import main
from cm3core.errors import DataError, RecipeError
from cm3plugins.datasets import annotations
from cm3plugins.datasets.coco import COCOConfig
from messages import tells
from picture_files import found

BOXES, POSES = "instances_val2017.json", "person_keypoints_val2017.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(draw_formats.FORMATS, tmp_path / "formats")
    return tmp_path / "formats"


def coco(root: Path, form: str, file: str, **keys: Any) -> Any:
    return COCOConfig(
        form=form,
        path=str(root / "coco/annotations" / file),
        pictures=str(root / "coco/val2017"),
        split="all",
        **keys,
    ).build()


@pytest.mark.parametrize(
    ("form", "file", "change", "kept", "bad"),
    [
        (
            "grounding",
            BOXES,
            annotation(0, bbox=[60, 8, 24, 32]),
            2,
            (
                "annotation 0",
                "its box [60, 8, 24, 32] is empty or outside the picture, which has 64 x 48 pixels",
                "correct it: [x, y, width, height] in pixels",
            ),
        ),
        (
            "objects",
            BOXES,
            annotation(1, bbox=[0, 0, 0, 3]),
            1,
            (
                "annotation 1",
                "its box [0, 0, 0, 3] is empty or outside the picture, which has 64 x 48 pixels",
                "correct it: [x, y, width, height] in pixels",
            ),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, bbox=[1, 2, "3", 4]),
            2,
            ("annotation 0", "its 'bbox' has a text, not a number", "correct it"),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, bbox=[1, 2, float("nan"), 4]),
            2,
            ("annotation 0", "its 'bbox' has a non-finite number", "correct it"),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, image_id=5),
            2,
            (
                "annotation 0",
                "refers to the picture 5, which is not in 'images'",
                "add the picture, or remove the annotation",
            ),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, category_id=5),
            2,
            (
                "annotation 0",
                "has the category 5, which is not in 'categories'",
                "add the category",
            ),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, category_id="\ud800"),  # half of a letter, which can't be printed
            2,
            (
                "annotation 0",
                r"has the category '\ud800', which is not in 'categories'",
                "add the category",
            ),
        ),
        (
            "grounding",
            BOXES,
            lambda file: file["images"][0].update(width=48, height=64),
            2,
            (
                "image 0",
                "states that the picture has 48 x 64 pixels, but it has 64 x 48, upright",
                "use the annotated picture, and state its size when upright",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": [3072], "size": [64, 48]}),
            1,
            (
                "annotation 3",
                "its mask has the size [64, 48], but the picture has [48, 64] (height, width)",
                "use the mask of this picture",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": [3071], "size": [48, 64]}),
            1,
            (
                "annotation 3",
                "the runs of its mask have 3071 pixels, but the picture has 3072",
                "use the mask of this picture",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": "5220R", "size": [48, 64]}),
            1,
            ("annotation 3", "its 'counts' are truncated", "correct them"),
        ),
        (
            "segmentation",
            BOXES,
            annotation(0, segmentation=[[0, 0, 9, 9]]),
            1,
            (
                "annotation 0",
                "its 'segmentation' has a polygon with fewer than three points",
                "write [x0, y0, x1, y1, x2, y2, ...]",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(0, segmentation=[[0, 0, 99, 9, 9, 9]]),
            1,
            (
                "annotation 0",
                "its 'segmentation' contains 99, outside the picture, which has 64 x 48 pixels",
                "correct it",
            ),
        ),
        (
            "pose",
            POSES,
            annotation(0, keypoints=[28, 60, 2, 20, 30, 1, 0, 0, 0]),
            0,
            (
                "annotation 0",
                "its keypoint (28, 60) is outside the picture, which has 64 x 48 pixels",
                "correct it",
            ),
        ),
        (
            "pose",
            POSES,
            annotation(0, keypoints=[28, 10, 2]),
            0,
            (
                "annotation 0",
                "its 'keypoints' has 3 numbers, but its category has 3 keypoints",
                "write x, y and visibility of each keypoint",
            ),
        ),
        (
            "caption",
            "captions_val2017.json",
            annotation(5, caption=" "),
            1,
            ("annotation 5", "its 'caption' is empty", "write it, or remove the record"),
        ),
        (
            "caption",
            "captions_val2017.json",
            lambda file: file["annotations"].pop(),
            1,
            ("image 1", "has no caption", "write one, or remove the picture"),
        ),
    ],
)
def test_coco(
    root: Path,
    form: str,
    file: str,
    change: Callable[[Any], Any],
    kept: int,
    bad: tuple[str, str, str],
) -> None:
    path = root / "coco/annotations" / file
    changed(path, change)
    source = coco(root, form, file)
    assert len(source) == kept
    assert found(source, root) == [(f"coco/annotations/{file}, {bad[0]}", *bad[1:])]


def test_one_bad_caption_of_several_costs_no_picture(root: Path) -> None:
    file = "captions_val2017.json"
    changed(root / "coco/annotations" / file, annotation(0, caption=7))
    source = coco(root, "caption", file)
    assert len(source) == 2
    assert source.record(0)["caption"] == "A box on white."
    assert [one.cause for one in source.skipped] == ["its 'caption' is a number, not a text"]


def test_a_panoptic_png_of_another_size_and_of_another_picture(root: Path) -> None:
    pngs = root / "coco/annotations/panoptic_val2017"
    draw_formats.save(
        pngs / f"{139:012d}.png", draw_formats.drawing("red", (0, 0, 9, 9)).crop((0, 0, 9, 9))
    )
    draw_formats.save(pngs / f"{285:012d}.png", draw_formats.drawing("red", (0, 0, 9, 9), "black"))
    source = coco(root, "segmentation", "panoptic_val2017.json")
    [(_, cause, _)] = found(source, root)
    assert cause == "its PNG has 9 x 9 pixels, but the picture has 64 x 48"
    # the ids are found when it is drawn, as broken pixels are
    with pytest.raises(DataError) as error:
        source.record(0)["condition"].load()
    assert tells(
        error.value, f"{pngs}/{285:012d}.png: has pixels of ... segment 255 ... 'segments_info'"
    )


def test_a_panoptic_picture_without_segments_has_nothing_to_draw_after(root: Path) -> None:
    path = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    before = len(coco(root, "segmentation", "panoptic_val2017.json"))
    content["annotations"][0]["segments_info"] = []
    path.write_text(json.dumps(content))
    source = coco(root, "segmentation", "panoptic_val2017.json")
    assert len(source) == before - 1
    assert not source.skipped


@pytest.mark.parametrize("content", ["", "[", "[" * 100000, "{}", "7", '{"images": 5}'])
def test_files_that_are_no_annotations(root: Path, content: str) -> None:
    path = root / "coco/annotations" / BOXES
    path.write_text(content)
    with pytest.raises(DataError) as error:
        coco(root, "grounding", BOXES)
    assert error.value.place == str(path)


def test_a_pipe_and_a_file_that_is_too_large(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "coco/annotations" / BOXES
    monkeypatch.setattr(annotations, "MAX_ANNOTATION_BYTES", 100)
    with pytest.raises(DataError, match="above the limit of 100 for annotations"):
        coco(root, "grounding", BOXES)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="there is no such file"):
        coco(root, "grounding", BOXES)


def test_a_key_that_the_form_does_not_use() -> None:
    with pytest.raises(RecipeError) as error:
        COCOConfig(form="grounding", path="x", pictures="y", captions="z").check()
    assert tells(error.value, "dataset.captions: is not used ... 'grounding'")


def test_validate_names_and_counts_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    changed(root / "coco/annotations" / BOXES, annotation(0, bbox=[60, 8, 24, 32]))
    arguments = [
        "dataset=coco",
        "dataset.form=grounding",
        f"dataset.path=coco/annotations/{BOXES}",
        "dataset.pictures=coco/val2017",
        "task=grounding",
    ]
    assert main(["data", "validate", *arguments]) == 1
    assert tells(
        capsys.readouterr().out,
        f"coco/annotations/{BOXES}, annotation 0: its box [60, 8 ... 24 ... 32",
    )
