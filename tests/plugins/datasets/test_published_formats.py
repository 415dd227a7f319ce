"""What others publish is read as it is: the files of tests/fixtures/formats, which draw_formats.py draws."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import draw_formats
from cm3core.boxes import boxes_in
from cm3core.document import Image, Text
from cm3core.interfaces import TaskSource
from cm3core.interfaces.dataset import Provenance
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.coco import COCOConfig
from cm3plugins.datasets.coco.shapes import colour
from cm3plugins.datasets.conversations import ConversationsConfig
from cm3plugins.datasets.mixture import MixtureConfig
from cm3plugins.datasets.picture_pairs import PicturePairsConfig
from cm3plugins.datasets.table import TableSourceConfig
from cm3plugins.datasets.vqa import VQAConfig
from cm3plugins.tasks import bundled

FORMATS = draw_formats.FORMATS
COCO, VQA = FORMATS / "coco", FORMATS / "vqa"


def pairs(form: str, folder: str, **keys: Any) -> Any:
    path = str(FORMATS / folder)
    return PicturePairsConfig(format=form, path=path, split="all", **keys).build()


def coco(form: str, file: str, **keys: Any) -> Any:
    path = str(COCO / "annotations" / file)
    pictures = str(COCO / "val2017")
    return COCOConfig(form=form, path=path, pictures=pictures, split="all", **keys).build()


def vqa(questions: str, answers: str, **keys: Any) -> Any:
    return VQAConfig(
        path=str(VQA / questions),
        answers=str(VQA / answers),
        pictures=str(VQA / "val2014"),
        split="all",
        **keys,
    ).build()


def vqa2(**keys: Any) -> Any:
    return vqa(
        "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", **keys
    )


def llava(file: str, **keys: Any) -> Any:
    folder = FORMATS / "llava"
    return ConversationsConfig(
        path=str(folder / file), pictures=str(folder / "images"), split="all", **keys
    ).build()


def ids(source: Any) -> list[str]:
    return [source.id(index) for index in range(len(source))]


def near(pixel: Any, colour: tuple[int, int, int]) -> bool:
    """JPEG changes colours a little."""
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def test_instruct_pix2pix() -> None:
    source = pairs("instruct_pix2pix", "instruct_pix2pix")
    assert source.skipped == []
    assert ids(source) == ["0000000/1240", "0000000/88", "0000001/7"]
    record = source.record(0)
    assert list(record) == ["source", "instruction", "target"]
    assert record["instruction"] == "make it blue"
    assert near(record["source"].load()[20, 20], RED)
    assert near(record["target"].load()[20, 20], BLUE)
    document = TaskSource(source, bundled.EditConfig().build()).document(0)
    assert [type(part) for part in document] == [Text, Image, Text, Image]
    assert document[3].response
    # all seeds of a prompt are in one split, or the instruction would be known
    assert [source.group(index) for index in range(3)] == ["0000000", "0000000", "0000001"]


@pytest.mark.parametrize("folder", ["magicbrush/folder", "magicbrush/parquet"])
def test_magicbrush(folder: str) -> None:
    source = pairs("magicbrush", folder)
    assert source.skipped == []
    own = {
        "magicbrush/folder": [
            "242679/242679-output1",
            "242679/242679-output2",
            "97235/97235-output1",
        ],
        "magicbrush/parquet": ["242679/1", "242679/2", "97235/1"],
    }
    assert ids(source) == own[folder]
    record = source.record(1)
    assert record["instruction"] == "make it blue"
    assert record["source"].load()[20, 20].tolist() == list(GREEN)
    assert record["target"].load()[20, 20].tolist() == list(BLUE)
    # what is to be changed is transparent in a mask, and so becomes white
    assert record["mask"].load()[20, 20].tolist() == [255, 255, 255]
    # a turn begins where the one before ends: one picture, one key
    assert record["source"].key == source.record(0)["target"].key
    assert len(TaskSource(source, bundled.EditConfig().build())) == 3


def test_controlnet() -> None:
    source = pairs("controlnet", "controlnet", feature="canny edge features")
    assert source.skipped == []
    assert ids(source) == ["target/0.png", "target/1.png"]
    document = TaskSource(source, bundled.StructureConfig().build()).document(1)
    assert document[0].text == "Make high quality image from canny edge features"
    assert document[1].load()[8, 20].tolist() == [255, 255, 255]
    assert document[2].text == "green box with white background"
    assert document[3].load()[20, 20].tolist() == list(GREEN)


def test_a_whole_conversation_is_a_document_with_its_answers_marked() -> None:
    source = llava("llava.json")
    assert source.skipped == []
    # LLaVA's ids are those of pictures, which occur several times
    assert ids(source) == ["000000033471", "000000033471#2", "text"]
    first, second, third = (source.document(index) for index in range(3))
    assert [part.text for part in first[1:]] == [
        "What colour is the box? Assistant:",
        "It is red.",
        "User: Is it large? Assistant:",
        "Yes.",
    ]
    assert isinstance(first[0], Image)
    assert [part.responses for part in first[1:]] == [(), ((0, 10),), (), ((0, 4),)]
    assert [getattr(part, "text", None) for part in second] == [
        "What is it?",
        None,
        "Assistant:",
        "A red box.",
    ]
    assert [part.text for part in third] == ["Name a colour. Assistant:", "Red."]


def test_pictures_in_answers() -> None:
    [document] = [source.document(0) for source in [llava("lumina.json")]]
    shown = [part for part in document if isinstance(part, Image)]
    assert [part.response for part in shown] == [False, True, True]
    assert near(shown[1].load()[20, 20], BLUE)
    assert [part.text for part in document if isinstance(part, Text)] == [
        "Make this",
        "blue. Assistant:",
        "User: And back? Assistant:",
        "Here it is.",
    ]


def test_each_answer_is_a_record_of_the_task_chat() -> None:
    source = llava("llava.json", turns="each")
    assert source.skipped == []
    assert ids(source) == ["000000033471/0", "000000033471/1", "000000033471#2/0", "text/0"]
    record = source.record(1)
    assert record["conversation"] == (
        "What colour is the box? Assistant: It is red. User: Is it large?"
    )
    assert record["answer"] == "Yes."
    chat = TaskSource(source, bundled.ChatConfig().build())
    assert len(chat) == 3
    assert [one.cause for one in chat.skipped] == ["has no field 'image'"]
    document = chat.document(1)
    assert [part.text for part in document[1:]] == [record["conversation"] + " Assistant:", "Yes."]


def test_coco_captions() -> None:
    source = coco("caption", "captions_val2017.json")
    assert source.skipped == []
    assert ids(source) == ["139", "285"]
    assert source.record(0)["caption"] == "A red box."
    drawn = {source.record(0, np.random.default_rng(seed))["caption"] for seed in range(60)}
    assert len(drawn) == 5
    flickr = "http://farm9.staticflickr.com/8035/139_z.jpg"
    assert source.provenance(0) == Provenance("CC-BY-2.0", flickr)
    assert source.provenance(1).licence == "CC-BY-NC-SA-2.0"


def test_licences_stay_with_a_task_and_in_a_mixture() -> None:
    """`cm3 provenance` lists them of what was trained on."""
    path, pictures = str(COCO / "annotations" / "captions_val2017.json"), str(COCO / "val2017")
    part = COCOConfig(form="caption", path=path, pictures=pictures, valid=0.0)
    mixed = MixtureConfig(parts={"a": part}, tasks={"a": bundled.CaptionConfig()}).build()
    assert {mixed.provenance(index).licence for index in range(2)} == {
        "CC-BY-2.0",
        "CC-BY-NC-SA-2.0",
    }


def test_coco_grounding() -> None:
    """By hand: of 64 x 48 pixels a model sees 48 x 48, from x = 8 on; 255 / 48 = 5.3125."""
    source = coco("grounding", "instances_val2017.json")
    assert source.skipped == []
    assert ids(source) == ["139/clock", "285/person", "285/clock"]
    record = source.record(0)
    assert record["phrase"] == "clock"
    assert record["objects"] == "clock at (42, 42) -> (170, 212)"
    # the box is cut by the crop, and by the picture's edge, over which it reaches by rounding
    assert source.record(1)["objects"] == "person at (0, 0) -> (128, 255)"
    document = TaskSource(source, bundled.GroundingConfig().build()).document(0)
    assert [part.text for part in document[1:]] == ["Where is the clock?", record["objects"]]


def test_coco_objects_with_and_without_captions() -> None:
    captions = str(COCO / "annotations" / "captions_val2017.json")
    for keys, caption in (({}, "person and clock"), ({"captions": captions}, "A green wall.")):
        source = coco("objects", "instances_val2017.json", **keys)
        assert ids(source) == ["139", "285"]
        record = source.record(1)
        assert record["caption"] == caption
        assert [label for label, _ in boxes_in(record["objects"])] == ["person", "clock"]
        task = bundled.ObjectsConfig().build()
        assert len(TaskSource(source, task)) == 2


def test_coco_segmentation_of_instances() -> None:
    source = coco("segmentation", "instances_val2017.json")
    assert source.skipped == []
    record = source.record(1)
    assert list(record) == ["feature", "condition", "caption", "image"]
    assert record["feature"] == "segmentation map"
    condition = record["condition"].load()
    assert condition.shape == record["image"].load().shape == (48, 64, 3)
    assert condition[10, 10].tolist() == list(colour(1))
    assert condition[10, 50].tolist() == list(colour(85))
    assert condition[40, 60].tolist() == [0, 0, 0]
    assert len(TaskSource(source, bundled.StructureConfig().build())) == 2


def test_coco_panoptic() -> None:
    source = coco("segmentation", "panoptic_val2017.json")
    assert source.skipped == []
    record = source.record(0)
    condition = record["condition"].load()
    assert condition[20, 20].tolist() == list(colour(85))
    assert condition[20, 60].tolist() == list(colour(199))
    assert condition[0, 0].tolist() == [0, 0, 0]
    assert record["caption"] == "clock and wall-other-merged"
    assert record["condition"].key != source.record(1)["condition"].key


def test_coco_keypoints() -> None:
    source = coco("pose", "person_keypoints_val2017.json", feature="openpose features")
    assert source.skipped == []
    assert ids(source) == ["139"]  # the other has no keypoint that is labelled
    record = source.record(0)
    assert record["feature"] == "openpose features"
    condition = record["condition"].load()
    assert condition[20, 24].tolist() == list(colour(0))  # halfway between nose and shoulder
    assert condition[10, 28].tolist() == list(colour(0, 0.5))
    # the second limb ends at a joint that is not labelled, so nothing is in that corner
    assert not condition[:8, :16].any()


def test_vqa2() -> None:
    source = vqa2()
    assert source.skipped == []
    assert ids(source) == ["9000", "9001", "25000"]
    record = source.record(0)
    assert record["question"] == "What colour is the box?"
    assert record["answer"] == "red"
    assert near(record["image"].load()[20, 20], RED)
    drawn = Counter(source.record(0, np.random.default_rng(n))["answer"] for n in range(400))
    assert set(drawn) == {"red", "maroon"}
    assert abs(drawn["maroon"] / 400 - 0.2) < 0.08
    assert source.provenance(0) == Provenance("CC-BY-4.0", "http://visualqa.org")
    assert [source.group(index) for index in range(3)] == ["9", "9", "25"]
    majority = vqa2(answer="majority")
    assert {majority.record(0, np.random.default_rng(n))["answer"] for n in range(40)} == {"red"}
    assert len(TaskSource(source, bundled.QuestionConfig().build())) == 3


def test_okvqa_states_no_majority() -> None:
    source = vqa("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
    assert source.skipped == []
    assert source.record(0)["answer"] == "toy"


@pytest.mark.parametrize(
    ("folder", "columns", "own"),
    [
        ("csv", {"image": "file_name", "caption": "text"}, ["2", "3"]),
        ("jsonl", {"image": "file_name", "caption": "text"}, ["1", "2"]),
        (
            "parquet",
            {"image": "image", "caption": "text"},
            ["train-00000-of-00002-0", "train-00001-of-00002-0"],
        ),
    ],
)
def test_imagefolder(folder: str, columns: dict[str, str], own: list[str]) -> None:
    path = str(FORMATS / "imagefolder" / folder)
    source = TableSourceConfig(path=path, columns=columns, split="all").build()
    assert source.skipped == []
    assert ids(source) == own
    record = source.record(1)
    assert record["caption"] == "a green box"
    assert record["image"].load()[20, 20].tolist() == list(GREEN)


def test_the_files_are_what_the_script_draws(tmp_path: Path) -> None:
    """JSON to the letter; of pictures the pixels, since libraries compress differently."""
    made = draw_formats.coco, draw_formats.vqa, draw_formats.llava, draw_formats.controlnet
    for make in made:
        make(tmp_path / make.__name__)
        for path in sorted((tmp_path / make.__name__).rglob("*.json")):
            committed = FORMATS / path.relative_to(tmp_path)
            assert committed.read_text() == path.read_text()


class TestPairs(DocumentSourceContract):
    max_examples = 5

    def make(self) -> Any:
        return pairs("magicbrush", "magicbrush/parquet")


class TestConversations(DocumentSourceContract):
    max_examples = 5

    def make(self) -> Any:
        return llava("llava.json")


class TestCOCO(DocumentSourceContract):
    max_examples = 5

    def make(self) -> Any:
        return coco("segmentation", "instances_val2017.json")


class TestVQA(DocumentSourceContract):
    max_examples = 5

    def make(self) -> Any:
        return vqa2()
