"""COCO from the user's folder: prompts to pictures, pictures to captions, questions.

FOLDER/annotations/captions_val2014.json           task coco
FOLDER/annotations/dataset_coco.json               task captions (Karpathy's split)
FOLDER/annotations/v2_...questions.json, ...       task vqa: the protocol names the files
FOLDER/val2014/COCO_val2014_000000000042.jpg
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cm3apps.evaluation.tasks.base import Sample, Task, enough, known_keys
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.images import fit, open_image
from cm3run.json_text import parse_json

_WHERE = "COCO's files are published at https://cocodataset.org/#download"


def open_pictures(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """Captions of `annotations` to pictures: the first `num` images by the hash of their decimal ids,
    each with its caption of smallest annotation id. The reference is the centre square."""
    keys = known_keys("coco", values)
    folder, size = _folder(data), _size(size)
    path = folder / "annotations" / keys["annotations"]
    values = _read(path)
    images = {
        one["id"]: one["file_name"] for one in _list(values, "images", path, ("id", "file_name"))
    }
    captions: dict[int, tuple[int, str]] = {}
    for one in _list(values, "annotations", path, ("id", "image_id", "caption")):
        found = (one["id"], " ".join(one["caption"].split()))
        captions[one["image_id"]] = min(found, captions.get(one["image_id"], found))
    chosen = sorted((i for i in images if i in captions), key=order)[: keys["num"]]
    enough(str(path), len(chosen), keys["num"])
    places = [folder / keys["images"] / images[i] for i in chosen]
    _check_pictures(places, path)
    samples = [
        Sample(str(i), captions[i][1], partial(_picture, place, size), f"coco:{i}")
        for i, place in zip(chosen, places, strict=True)
    ]
    rule = {"annotations": keys["annotations"], "images": keys["images"], "size": size}
    return Task("coco", "pictures", samples, rule | {"resize": "centre square, Pillow LANCZOS"})


def open_captions(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """Pictures of a split of Karpathy's file, with all their captions as references. With `ranked`, the first
    caption of each picture is ranked among this many captions, which come from the next pictures."""
    keys = known_keys("captions", values)
    folder = _folder(data)
    path = folder / "annotations" / keys["annotations"]
    fields = ("split", "filepath", "filename", "sentences", "cocoid")
    rows = [
        one for one in _list(_read(path), "images", path, fields) if one["split"] == keys["split"]
    ]
    rows = sorted(rows, key=lambda one: order(one["cocoid"]))[: keys["num"]]
    enough(f"{path}, split {keys['split']!r}", len(rows), keys["num"])
    places = [folder / one["filepath"] / one["filename"] for one in rows]
    _check_pictures(places, path)
    for one in rows:
        _check_texts(one["sentences"], "raw", f"{path}, picture {one['cocoid']}")
    choices = _captions_to_rank([one["sentences"][0]["raw"] for one in rows], keys["ranked"], path)
    samples = [
        Sample(
            str(one["cocoid"]),
            "",
            partial(open_image, place),
            f"coco:{one['cocoid']}",
            tuple(sentence["raw"] for sentence in one["sentences"]),
            choices=own,
        )
        for one, place, own in zip(rows, places, choices, strict=True)
    ]
    rule = {"annotations": keys["annotations"], "split": keys["split"]}
    return Task("captions", "captions", samples, rule)


def _captions_to_rank(first: Sequence[str], num: int | None, path: Path) -> list[tuple[str, ...]]:
    """For each picture, its caption and those of the next pictures, `num` different ones in total."""
    if num is None:
        return [()] * len(first)
    found = []
    for place, own in enumerate(first):
        others = dict.fromkeys((own, *first[place + 1 :], *first[:place]))
        enough(f"{path}, different captions", len(others), num)
        found.append(tuple(others)[:num])
    return found


def open_vqa(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """Questions with the answers of ten people, in the format of VQA (also OKVQA). With `ranked`, the model's answer is
    the most probable of this many answers, the most frequent ones in the file; with null, the model writes one."""
    keys = known_keys("vqa", values)
    folder = _folder(data)
    paths = [folder / "annotations" / keys[name] for name in ("questions", "annotations")]
    fields = ("question_id", "image_id", "question")
    questions = _list(_read(paths[0]), "questions", paths[0], fields)
    answers = {
        one["question_id"]: one["answers"]
        for one in _list(_read(paths[1]), "annotations", paths[1], ("question_id", "answers"))
    }
    asked = sorted(questions, key=lambda one: order(one["question_id"]))[: keys["num"]]
    enough(str(paths[0]), len(asked), keys["num"])
    missing = [one["question_id"] for one in asked if one["question_id"] not in answers]
    if missing:
        raise DataError(
            str(paths[1]),
            f"has no answers to question {missing[0]} of {paths[0].name}",
            "use both files of the same release",
        )
    for name, own in answers.items():
        _check_texts(own, "answer", f"{paths[1]}, question {name}")
    choices = _most_frequent(list(answers.values()), keys["ranked"], paths[1])
    split = keys["images"]
    places = [folder / split / f"COCO_{split}_{one['image_id']:012d}.jpg" for one in asked]
    _check_pictures(places, paths[0])
    samples = [
        Sample(
            str(one["question_id"]),
            one["question"],
            partial(open_image, place),
            f"coco:{one['image_id']}",
            tuple(str(answer["answer"]) for answer in answers[one["question_id"]]),
            choices=choices,
        )
        for one, place in zip(asked, places, strict=True)
    ]
    return Task(
        "vqa",
        "answers",
        samples,
        {key: keys[key] for key in ("questions", "annotations", "images")},
    )


def _most_frequent(
    answers: Sequence[Sequence[Mapping[str, Any]]], num: int | None, path: Path
) -> tuple[str, ...]:
    """The answers that are the most frequent one for most questions; equals in alphabetical order."""
    if num is None:
        return ()
    counts: Counter[str] = Counter()
    for own in answers:
        given = Counter(str(one["answer"]) for one in own)
        counts[min(given, key=lambda text: (-given[text], text))] += 1
    enough(f"{path}, different answers", len(counts), num)
    return tuple(sorted(counts, key=lambda text: (-counts[text], text))[:num])


def order(number: object) -> str:
    """The fixed order of COCO's ids, by the SHA-256 of the decimal number.

    >>> sorted([1, 2, 3, 4], key=order)
    [4, 3, 1, 2]
    """
    return hashlib.sha256(str(number).encode()).hexdigest()


def _folder(data: Path | None) -> Path:
    if data is None:
        raise DataError(
            "this protocol", "needs COCO's files", f"give their folder (--data); {_WHERE}"
        )
    if not data.is_dir():
        raise DataError(str(data), "is not a folder", f"name COCO's folder (--data); {_WHERE}")
    return data


def _size(size: int | None) -> int:
    if size is None:
        raise DataError("protocol: size", "is null, but pictures are compared", "give a number")
    return size


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(str(path), "there is no such file", _WHERE)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"can't be read ({error})", f"replace it; {_WHERE}") from error
    return parse_json(text, str(path), f"replace it; {_WHERE}")


def _list(values: Any, name: str, path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """A list of objects in a file, each with these fields."""
    rows = values.get(name) if isinstance(values, dict) else None
    if not isinstance(rows, list):
        raise DataError(str(path), f"has no list {name!r}", f"replace it; {_WHERE}")
    for place, row in enumerate(rows):
        missing = [key for key in fields if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(
                f"{path}, {name} {place}", f"has no {missing[0]!r}", f"replace the file; {_WHERE}"
            )
    return rows


def _check_texts(rows: object, key: str, place: str) -> None:
    """Refuse anything but a list of objects with a text or number under a key."""
    if not isinstance(rows, list) or not rows:
        raise DataError(place, "has no list of texts", f"replace the file; {_WHERE}")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(key), (str, int, float)):
            raise DataError(place, f"has something without {key!r}", f"replace the file; {_WHERE}")


def _check_pictures(places: Sequence[Path], annotations: Path) -> None:
    missing = [place for place in places if not place.is_file()]
    if missing:
        raise DataError(
            str(missing[0]),
            f"there is no such picture; {len(missing):,} of the {len(places):,} that "
            f"{annotations.name} lists are missing",
            f"complete the folder; {_WHERE}",
        )


def _picture(path: Path, size: int) -> PixelArray:
    return fit(open_image(path), (size, size))
