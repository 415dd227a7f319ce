"""Tasks over the user's files, in the formats that are published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from cm3apps.evaluation.shipped import find_protocol, shipped
from cm3apps.evaluation.tasks import open_task
from cm3core.errors import DataError
from cm3core.images import save_png
from cm3core.plugins import load_registry
from cm3run.evaluation.protocol import score_configs
from messages import tells


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Six pictures of COCO's val2014 with its annotations, Karpathy's file and VQA's two."""
    folder, ids = tmp_path / "coco", [42, 73, 74, 133, 136, 139]
    names = {i: f"COCO_val2014_{i:012d}.jpg" for i in ids}
    (folder / "val2014").mkdir(parents=True)
    for i in ids:
        pixels = np.full((30, 40 + i % 7, 3), i, np.uint8)
        Pillow.fromarray(pixels).save(folder / "val2014" / names[i])
    write(
        folder / "annotations" / "captions_val2014.json",
        {
            "info": {},
            "licenses": [],
            "images": [{"id": i, "file_name": names[i], "height": 30, "width": 40} for i in ids],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "caption": f"picture {i}\n number {k}. "}
                for k in (3, 1, 2)
                for i in ids
            ],
        },
    )
    write(
        folder / "annotations" / "dataset_coco.json",
        {
            "dataset": "coco",
            "images": [
                {
                    "filepath": "val2014",
                    "filename": names[i],
                    "cocoid": i,
                    "imgid": k,
                    "sentids": [],
                    "split": "test" if k % 2 else "val",
                    "sentences": [
                        {"raw": f"A {i}.", "tokens": ["a", str(i)]},
                        {"raw": "B", "tokens": ["b"]},
                    ],
                }
                for k, i in enumerate(ids)
            ],
        },
    )
    write(
        folder / "annotations" / "questions.json",
        {"questions": [{"image_id": i, "question": "What?", "question_id": 1000 * i} for i in ids]},
    )
    write(
        folder / "annotations" / "answers.json",
        {
            "annotations": [
                {
                    "question_id": 1000 * i,
                    "image_id": i,
                    "question_type": "what",
                    "answer_type": "other",
                    "answers": [
                        {"answer": f"{i}", "answer_confidence": "yes", "answer_id": k}
                        for k in range(10)
                    ],
                }
                for i in ids
            ]
        },
    )
    return folder


def open_(values: dict[str, Any], data: Path | None, size: int | None = 16) -> Any:
    return open_task(values, size=size, data=data, model=None, registry=load_registry())


def in_order(numbers: list[int]) -> list[str]:
    return sorted(map(str, numbers), key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def test_coco_takes_the_pinned_pictures_and_captions(coco: Path) -> None:
    task = open_({"name": "coco", "num": 4}, coco)
    assert [one.key for one in task.samples] == in_order([42, 73, 74, 133, 136, 139])[:4]
    assert task.samples[0].prompt == f"picture {task.samples[0].key} number 1."
    assert task.samples[0].picture().shape == (16, 16, 3)
    fewer = open_({"name": "coco", "num": 3}, coco)
    assert fewer.samples == task.samples[:3] or [a.key for a in fewer.samples] == [
        a.key for a in task.samples[:3]
    ]
    assert fewer.measurement != task.measurement
    assert task.measurement == open_({"name": "coco", "num": 4}, coco).measurement


def test_captions_of_karpathys_split(coco: Path) -> None:
    task = open_({"name": "captions", "num": 3}, coco, None)
    assert (task.makes, [one.key for one in task.samples]) == ("captions", in_order([73, 133, 139]))
    assert task.samples[0].references == (f"A {task.samples[0].key}.", "B")
    assert task.samples[0].picture().ndim == 3


def test_questions_have_ten_answers(coco: Path) -> None:
    values = {"name": "vqa", "questions": "questions.json", "annotations": "answers.json"}
    task = open_(values, coco, None)
    assert (task.makes, len(task.samples)) == ("answers", 6)
    one = task.samples[0]
    assert (one.prompt, one.references) == ("What?", (str(int(one.key) // 1000),) * 10)


def test_captions_to_rank(coco: Path) -> None:
    """The right one, then those of the pictures after it, each once."""
    task = open_({"name": "captions", "num": 3, "ranked": 2}, coco, None)
    first = [one.references[0] for one in task.samples]
    assert [one.choices for one in task.samples] == list(
        zip(first, [*first[1:], first[0]], strict=True)
    )
    plain = open_({"name": "captions", "num": 3}, coco, None)
    assert plain.measurement["references_sha256"] != task.measurement["references_sha256"]
    with pytest.raises(
        DataError, match="different captions: has 3 samples, but the protocol needs 4"
    ):
        open_({"name": "captions", "num": 3, "ranked": 4}, coco, None)


def test_answers_to_rank(coco: Path) -> None:
    """The commonest answer of each question, most questions first, then by the alphabet."""
    path = coco / "annotations" / "answers.json"
    values = json.loads(path.read_text())
    for place, texts in enumerate(
        (["b", "b", "a"], ["b", "c", "c"], ["a", "b"], ["c"], ["c"], ["d"])
    ):
        values["annotations"][place]["answers"] = [{"answer": text} for text in texts]
    write(path, values)
    own = {"name": "vqa", "questions": "questions.json", "annotations": "answers.json", "ranked": 3}
    task = open_(own, coco, None)
    assert {one.choices for one in task.samples} == {("c", "a", "b")}
    with pytest.raises(
        DataError, match="different answers: has 4 samples, but the protocol needs 5"
    ):
        open_({**own, "ranked": 5}, coco, None)
    for wrong, message in (
        ([], "question 42000: has no list of texts"),
        ([{"text": "a"}], "question 42000: has something without 'answer'"),
    ):
        values["annotations"][0]["answers"] = wrong
        write(path, values)
        with pytest.raises(DataError, match=message):
            open_(own, coco, None)


def test_what_is_missing_is_named(coco: Path, tmp_path: Path) -> None:
    step = "COCO's files are published at https://cocodataset.org/#download"
    for values, data, message in (
        (
            {"name": "coco"},
            None,
            f"this protocol: needs COCO's files ... --data ... {step}",
        ),
        ({"name": "coco"}, tmp_path / "x", "x: is not a folder"),
        (
            {"name": "coco", "num": 7},
            coco,
            "captions_val2014.json: has 6 samples, but the protocol needs 7",
        ),
        (
            {"name": "coco", "annotations": "none.json"},
            coco,
            f"none.json: there is no such file\n  next: {step}",
        ),
        (
            {"name": "coco", "nmu": 7},
            coco,
            "task.nmu: the task 'coco' ... 'num'",
        ),
        ({"name": "coco", "num": 0}, coco, "protocol: task.num: is 0\n  next: use 1 or more"),
        ({"name": "coco", "num": "x"}, coco, "protocol: task.num: is 'x'"),
        ({"name": "cocoo"}, coco, "protocol: task.name: is 'cocoo'\n  next: did you mean 'coco'?"),
    ):
        with pytest.raises(DataError) as caught:
            open_(values, data)
        assert tells(caught.value, f"... {message}")


def test_annotations_without_pictures(coco: Path) -> None:
    first = in_order([42, 73, 74, 133, 136, 139])[0]
    (coco / "val2014" / f"COCO_val2014_{int(first):012d}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        open_({"name": "coco", "num": 6}, coco)
    assert tells(caught.value, "... there is no ... 1 ... the 6 ... captions_val2014.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "has no list 'images'"),
        ({"images": [{"id": 1}], "annotations": []}, "images 0: has no 'file_name'"),
        ({"images": [3], "annotations": []}, "images 0: has no 'id'"),
    ],
)
def test_damaged_annotations(coco: Path, values: Any, message: str) -> None:
    write(coco / "annotations" / "captions_val2014.json", values)
    with pytest.raises(DataError, match=message):
        open_({"name": "coco", "num": 1}, coco)
    (coco / "annotations" / "captions_val2014.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        open_({"name": "coco", "num": 1}, coco)


def test_documents_of_any_data_set(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / "data" / f"{number}.png"
        save_png(path, np.full((20, 30, 3), 40 * number, np.uint8))
        path.with_suffix(".txt").write_text(f"grey {number}", encoding="utf-8")
    values = {
        "name": "documents",
        "dataset": {"name": "folder", "path": "x"},
        "split": "all",
        "num": 4,
    }
    task = open_(values, tmp_path / "data")
    assert len({one.key for one in task.samples}) == 4
    assert all(one.prompt.startswith("grey ") for one in task.samples)
    assert task.samples[0].picture().shape == (16, 16, 3)
    with pytest.raises(DataError, match="has 5 samples, but the protocol needs 6"):
        open_({**values, "num": 6}, tmp_path / "data")
    with pytest.raises(DataError, match="there is no model to provide its data set"):
        open_({"name": "documents"}, None)


@pytest.mark.parametrize("name", shipped())
def test_shipped_protocols_are_whole(name: str) -> None:
    """Hash, name, and components with keys that exist (their weights are the user's)."""
    protocol, registry = find_protocol(name), load_registry()
    assert protocol.name == name
    for score in protocol.scores:
        extractor = dict(score.get("extractor", {}))
        files: dict[str, Any] = {
            "inception": {"path": "x"},
            "by_embedder": {"embedder": {"name": "clip", "path": "x"}},
        }
        filled = (
            {**score, "extractor": extractor | files.get(extractor["name"], {})}
            if extractor
            else score
        )
        score_configs(filled, registry, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": 3}, "protocol: task.dataset: is 3"),
        ({"dataset": {"name": "emoji"}, "num": "x"}, "protocol: task.num: is 'x'"),
        ({"dataset": {"name": "emoji"}, "split": None}, "protocol: task.split: is None"),
    ],
)
def test_documents_of_a_wrong_form(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_({"name": "documents", **values}, None)


def test_icons_are_the_same_for_every_model() -> None:
    protocol = find_protocol("icons-comp-v1")
    values = {**protocol.task, "num": 5}
    task, again = (open_(values, None, protocol.size) for _ in range(2))
    assert [one.key for one in task.samples] == [one.key for one in again.samples]
    assert len({one.target["group"] for one in task.samples}) == 5
