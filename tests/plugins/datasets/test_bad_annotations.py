"""Every bad record of a published format is named: place, cause and next step; the others are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import draw_formats
from cm3core.cli.main import main
from cm3core.errors import DataError, RecipeError
from cm3plugins.datasets import annotations
from cm3plugins.datasets.coco.config import COCOConfig
from cm3plugins.datasets.conversations import ConversationsConfig
from cm3plugins.datasets.picture_pairs import PicturePairsConfig
from cm3plugins.datasets.vqa import VQAConfig
from picture_files import found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(draw_formats.FORMATS, tmp_path / "formats")
    return tmp_path / "formats"


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file holds."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def coco(root: Path, form: str, file: str, **keys: Any) -> Any:
    return COCOConfig(
        form=form,
        path=str(root / "coco/annotations" / file),
        pictures=str(root / "coco/val2017"),
        split="all",
        **keys,
    ).build()


def pairs(root: Path, form: str, folder: str, **keys: Any) -> Any:
    return PicturePairsConfig(format=form, path=str(root / folder), split="all", **keys).build()


def chat(root: Path, **keys: Any) -> Any:
    return ConversationsConfig(
        path=str(root / "llava/llava.json"),
        pictures=str(root / "llava/images"),
        split="all",
        **keys,
    ).build()


def vqa(root: Path) -> Any:
    return VQAConfig(
        path=str(root / "vqa/v2_OpenEnded_mscoco_val2014_questions.json"),
        answers=str(root / "vqa/v2_mscoco_val2014_annotations.json"),
        pictures=str(root / "vqa/val2014"),
        split="all",
    ).build()


def annotation(number: int, **values: Any) -> Callable[[Any], Any]:
    return lambda file: file["annotations"][number].update(values)


OUTSIDE = "is outside the data set's folder {root}/instruct_pix2pix"
BOXES, POSES = "instances_val2017.json", "person_keypoints_val2017.json"


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
                "its box [60, 8, 24, 32] is empty or outside of the picture, which has 64 x 48 pixels",
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
                "its box [0, 0, 0, 3] is empty or outside of the picture, which has 64 x 48 pixels",
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
            ("annotation 0", "its 'bbox' has a number that is not finite", "correct it"),
        ),
        (
            "grounding",
            BOXES,
            annotation(0, image_id=5),
            2,
            (
                "annotation 0",
                "is about the picture 5, which 'images' has not",
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
                "has the category 5, which 'categories' has not",
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
                r"has the category '\ud800', which 'categories' has not",
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
                "says that the picture has 48 x 64 pixels, it has 64 x 48, upright",
                "give the picture that was annotated, and its size as it is shown",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": [3072], "size": [64, 48]}),
            1,
            (
                "annotation 3",
                "its mask is of the size [64, 48], the picture has the size [48, 64] (height, width)",
                "give the mask of this picture",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": [3071], "size": [48, 64]}),
            1,
            (
                "annotation 3",
                "the runs of its mask have 3071 pixels, the picture 3072",
                "give the mask of this picture",
            ),
        ),
        (
            "segmentation",
            BOXES,
            annotation(3, segmentation={"counts": "5220R", "size": [48, 64]}),
            1,
            ("annotation 3", "its 'counts' are cut short", "correct them"),
        ),
        (
            "segmentation",
            BOXES,
            annotation(0, segmentation=[[0, 0, 9, 9]]),
            1,
            (
                "annotation 0",
                "its 'segmentation' has a polygon that is not three or more points",
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
                "its 'segmentation' reaches to 99, outside of the picture, which has 64 x 48 pixels",
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
                "its keypoint (28, 60) is outside of the picture, which has 64 x 48 pixels",
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
                "its 'keypoints' has 3 numbers, its category 3 keypoints",
                "write x, y and visibility of each",
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
    assert cause == "its PNG has 9 x 9 pixels, the picture 64 x 48"
    # the ids are found when it is drawn, as broken pixels are
    with pytest.raises(DataError) as error:
        source.record(0)["condition"].load()
    assert str(error.value) == (
        f"{pngs}/{285:012d}.png: has pixels of a segment 255, which 'segments_info' has not\n"
        "  next: give the PNG of this annotation"
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


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": side, "value": value} for side, value in turns]


@pytest.mark.parametrize(
    ("record", "bad"),
    [
        (
            {"conversations": said(("gpt", "Hello."), ("human", "Hi."))},
            (
                ", turn 0",
                "the conversation begins with an answer",
                "let questions and answers alternate, a question first",
            ),
        ),
        (
            {"conversations": said(("human", "a"), ("human", "b"))},
            (
                ", turn 1",
                "two turns of 'human' follow each other",
                "let questions and answers alternate, a question first",
            ),
        ),
        (
            {"conversations": said(("human", "a"))},
            ("", "ends with a question", "give each question its answer, or remove the record"),
        ),
        (
            {"conversations": said(("human", "a"), ("bot", "b"))},
            (", turn 1", "its 'from' is 'bot'", "use human or gpt"),
        ),
        (
            {"conversations": said(("human", "a"), ("gpt", " "))},
            (", turn 1", "its 'value' is not a text with content", "write what is said"),
        ),
        (
            {"image": "red.jpg", "conversations": said(("human", "a"), ("gpt", "b"))},
            (
                "",
                "has 1 pictures in 'image', but 0 marks <image> in its turns",
                "mark the place of each picture",
            ),
        ),
        ({"id": "x"}, ("", "has no 'conversations'", "give it a list, or remove the record")),
        (
            {"image": "no.jpg", "conversations": said(("human", "<image>a"), ("gpt", "b"))},
            (
                ": image llava/images/no.jpg",
                "there is no such file",
                "correct the path, or remove the record",
            ),
        ),
        (7, ("", "is a number, not an object", "write {...}")),
    ],
)
def test_conversations(root: Path, record: Any, bad: tuple[str, str, str]) -> None:
    changed(root / "llava/llava.json", lambda file: file.append(record))
    source = chat(root)
    assert len(source) == 3
    assert found(source, root) == [(f"llava/llava.json, record 3{bad[0]}", *bad[1:])]


def test_a_chat_about_one_picture_has_one(root: Path) -> None:
    shutil.copy(root / "llava/lumina.json", root / "llava/llava.json")
    assert found(chat(root, turns="each"), root) == [
        (
            f"llava/llava.json, record 0, turn {turn}",
            "has a picture in an answer, which a chat about one picture has not",
            "use dataset.turns=whole without a task",
        )
        for turn in (1, 3)
    ]


@pytest.mark.parametrize(
    ("entry", "bad"),
    [
        (
            ["0000009", ["1"]],
            (
                "/seeds.json, entry 2, 0000009/prompt.json",
                "can't be read: No such file or directory",
            ),
        ),
        (
            ["0000000", ["9"]],
            (
                "/seeds.json, entry 2: source {root}/instruct_pix2pix/0000000/9_0.jpg",
                "there is no such file",
            ),
        ),
        (["0000000"], ("/seeds.json, entry 2", "is not [name, [seed, ...]]")),
        ([], ("/seeds.json, entry 2", "is not [name, [seed, ...]]")),
        (["0", []], ("/seeds.json, entry 2", "is not [name, [seed, ...]]")),
        ([None, ["1"]], ("/seeds.json, entry 2", "is not [name, [seed, ...]]")),
        (5, ("/seeds.json, entry 2", "is not [name, [seed, ...]]")),
        (["../../x", ["1"]], ("/seeds.json, entry 2, ../../x/prompt.json", OUTSIDE)),
    ],
)
def test_instruct_pix2pix(root: Path, entry: Any, bad: tuple[str, str]) -> None:
    changed(root / "instruct_pix2pix/seeds.json", lambda file: file.append(entry))
    source = pairs(root, "instruct_pix2pix", "instruct_pix2pix")
    assert len(source) == 3
    [record] = source.skipped
    place, cause = (part.replace("{root}", str(root)) for part in bad)
    assert (record.place, record.cause) == (f"{root}/instruct_pix2pix{place}", cause)


def test_a_mask_of_another_size(root: Path) -> None:
    path = root / "magicbrush/folder/images/97235/97235-mask1.png"
    draw_formats.save(path, draw_formats.drawing("red", (0, 0, 9, 9)).resize((32, 24)))
    source = pairs(root, "magicbrush", "magicbrush/folder")
    assert len(source) == 2
    assert found(source, root) == [
        (
            "magicbrush/folder/edit_turns.json, record 2",
            "its mask has 32 x 24 pixels, its source 64 x 48",
            "give a mask of the same size, or none",
        )
    ]
    # without a mask the turn is an edit as well
    changed(root / "magicbrush/folder/edit_turns.json", lambda file: file[2].pop("mask"))
    source = pairs(root, "magicbrush", "magicbrush/folder")
    assert "mask" not in source.record(2)


def test_pairs_of_unlike_shapes(root: Path) -> None:
    path = root / "controlnet/source/0.png"
    draw_formats.save(path, draw_formats.drawing("red", (0, 0, 9, 9)).resize((48, 48)))
    assert found(pairs(root, "controlnet", "controlnet"), root) == [
        (
            "controlnet/prompt.json:1",
            "its source has 48 x 48 pixels, its target 64 x 48: cropped to squares, they show "
            "different parts",
            "give both the same shape",
        )
    ]


def test_vqa(root: Path) -> None:
    def change(file: Any) -> None:
        file["annotations"][0]["question_id"] = 9999
        file["annotations"][1]["answers"] = []
        del file["annotations"][1]["multiple_choice_answer"]

    answers = "vqa/v2_mscoco_val2014_annotations.json"
    questions = "vqa/v2_OpenEnded_mscoco_val2014_questions.json"
    changed(root / answers, change)
    changed(root / questions, lambda file: file["questions"][2].update(image_id=26))
    source = vqa(root)
    assert len(source) == 0
    names = f"COCO_val2014_{26:012d}.jpg or {26:012d}.jpg"
    assert found(source, root) == [
        (
            f"{questions}, question 0",
            f"has no answers in {answers}",
            "give them, or remove the question",
        ),
        (f"{answers}, annotation 1", "its 'answers' is empty", "give them, or remove the question"),
        (
            f"{questions}, question 2",
            f"there is no picture {names} in vqa/val2014",
            "correct dataset.pictures, or add the picture",
        ),
        (
            f"{answers}, annotation 0",
            f"is about the question 9999, which {questions} has not",
            "add the question, or remove the answers",
        ),
    ]


def test_one_bad_answer_of_several(root: Path) -> None:
    """It is left out and named; the question keeps the others."""
    answers = "vqa/v2_mscoco_val2014_annotations.json"
    before = len(vqa(root))
    changed(root / answers, lambda file: file["annotations"][0]["answers"][1].update(answer=" "))
    source = vqa(root)
    assert len(source) == before
    assert found(source, root) == [
        (
            f"{answers}, annotation 0, answer 1",
            "its 'answer' is empty",
            "write it, or remove the record",
        )
    ]


def test_answers_about_another_picture(root: Path) -> None:
    """Numbers of questions that were mixed up would teach the answers of other pictures."""
    answers = "vqa/v2_mscoco_val2014_annotations.json"
    questions = "vqa/v2_OpenEnded_mscoco_val2014_questions.json"
    asked = json.loads((root / questions).read_text())["questions"][0]["image_id"]
    changed(root / answers, annotation(0, image_id=asked + 1))
    assert found(vqa(root), root) == [
        (
            f"{answers}, annotation 0",
            f"is about the picture {asked + 1}, its question ({questions}, question 0) about {asked}",
            "give the answers of this question",
        )
    ]


def test_what_is_outside_is_not_read_unless_it_is_allowed(root: Path) -> None:
    outside = root.parent / "outside.jpg"
    shutil.copy(root / "llava/images/red.jpg", outside)
    (root / "llava/images/red.jpg").unlink()
    (root / "llava/images/red.jpg").symlink_to(outside)
    assert {one.cause for one in chat(root).skipped} == {
        f"is outside the data set's folder {root}/llava/images"
    }
    assert chat(root, allow_outside=True).skipped == []


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
    with pytest.raises(DataError, match="a file of annotations has at most 100"):
        coco(root, "grounding", BOXES)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="there is no such file"):
        coco(root, "grounding", BOXES)


def test_a_key_that_the_form_does_not_use() -> None:
    with pytest.raises(RecipeError) as error:
        COCOConfig(form="grounding", path="x", pictures="y", captions="z").check()
    assert str(error.value) == (
        "dataset.captions: is not used by the form 'grounding'\n"
        "  next: leave it out, or choose another dataset.form"
    )


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
    assert capsys.readouterr().out == (
        f"coco/annotations/{BOXES}, annotation 0: its box [60, 8, 24, 32] is empty or outside of the "
        "picture, which has 64 x 48 pixels\n"
        "  next: correct it: [x, y, width, height] in pixels\n"
        f"coco/annotations/{BOXES} (coco): 2 good documents, 1 bad record, skipped in training\n"
    )
