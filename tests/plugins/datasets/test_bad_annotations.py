"""Every bad record of conversations, pairs of pictures and VQA is named: place, cause and next step; the others
are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import draw_formats
from bad_formats import annotation, changed
from cm3plugins.datasets.conversations import ConversationsConfig
from cm3plugins.datasets.picture_pairs import PicturePairsConfig
from cm3plugins.datasets.vqa import VQAConfig
from picture_files import found

OUTSIDE = "is outside the data set's folder {root}/instruct_pix2pix"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(draw_formats.FORMATS, tmp_path / "formats")
    return tmp_path / "formats"


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


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": side, "value": value} for side, value in turns]


@pytest.mark.parametrize(
    ("record", "bad"),
    [
        (
            {"conversations": said(("gpt", "Hello."), ("human", "Hi."))},
            (
                ", turn 0",
                "the conversation starts with an answer",
                "alternate questions and answers, starting with a question",
            ),
        ),
        (
            {"conversations": said(("human", "a"), ("human", "b"))},
            (
                ", turn 1",
                "two turns of 'human' follow each other",
                "alternate questions and answers, starting with a question",
            ),
        ),
        (
            {"conversations": said(("human", "a"))},
            ("", "ends with a question", "answer each question, or remove the record"),
        ),
        (
            {"conversations": said(("human", "a"), ("bot", "b"))},
            (", turn 1", "its 'from' is 'bot'", "use human or gpt"),
        ),
        (
            {"conversations": said(("human", "a"), ("gpt", " "))},
            (", turn 1", "its 'value' is not a non-empty text", "write the turn's text"),
        ),
        (
            {"image": "red.jpg", "conversations": said(("human", "a"), ("gpt", "b"))},
            (
                "",
                "has 1 pictures in 'image', but 0 <image> marks in its turns",
                "mark the position of each picture",
            ),
        ),
        ({"id": "x"}, ("", "has no 'conversations'", "add a list, or remove the record")),
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
            "has a picture in an answer, which turns=each does not support",
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
            "its mask has 32 x 24 pixels, but its source has 64 x 48",
            "use a mask of the same size, or none",
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
            "its source has 48 x 48 pixels, but its target has 64 x 48: cropped to squares, they show "
            "different parts",
            "use the same aspect ratio for both",
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
            "add them, or remove the question",
        ),
        (
            f"{answers}, annotation 1",
            "its 'answers' is empty",
            "add answers, or remove the question",
        ),
        (
            f"{questions}, question 2",
            f"there is no picture {names} in vqa/val2014",
            "correct dataset.pictures, or add the picture",
        ),
        (
            f"{answers}, annotation 0",
            f"refers to the question 9999, which is not in {questions}",
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
            f"refers to the picture {asked + 1}, but its question ({questions}, question 0) to {asked}",
            "use the answers of this question",
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
