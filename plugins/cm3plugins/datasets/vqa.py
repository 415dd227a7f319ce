"""Data set `vqa`: questions about pictures with ten answers each, in the format of VQA v2 and OK-VQA.

The questions' file has {"questions": [{"question_id", "image_id", "question"}], "data_subtype"}, the answers'
file {"annotations": [{"question_id", "image_id", "answers": [{"answer"}], "multiple_choice_answer"}]}
(visualqa.org/download; OK-VQA has no `multiple_choice_answer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.errors import DataError
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.datasets.annotations import (
    checked_text,
    file_at,
    folder_at,
    list_in,
    name_in,
    object_of,
    provenance_of,
    read_json,
    text_in,
)
from cm3plugins.datasets.file_source import (
    FileSourceConfig,
    FoundRecord,
    boundary,
    existing,
    skipped,
)
from cm3plugins.datasets.jsonl import PicturesOfLines

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3plugins.datasets.pictures import PictureIndex, StoredPicture


@dataclass(kw_only=True)
class VQAConfig(FileSourceConfig):
    """Questions about pictures with several people's answers (VQA v2, OK-VQA). Fields: image, question,
    answer.

    Args:
        path: the JSON file of the questions.
        answers: the JSON file of the answers.
        pictures: folder of the pictures, which are COCO's: COCO_train2014_000000000042.jpg, or
            000000000042.jpg.
        answer: "drawn": training draws one of a question's answers, so answers are as frequent as in the
            data; "majority": always the most frequent one. The canonical answer of both is the most frequent
            one.
        allow_outside: read pictures outside the pictures' folder, through links; false: skip their
            records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "the questions"),
        "answers": Outside(READS, "the answers"),
        "pictures": Outside(READS, "its pictures"),
    }

    path: str
    answers: str
    pictures: str
    answer: Literal["drawn", "majority"] = "drawn"
    allow_outside: bool = False

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records in the order of the questions, then answers without a question."""
        path, answers = existing(self.path, folder=False), file_at(self.answers, "answers")
        folder = folder_at(self.pictures, "pictures")
        inside = boundary(folder, self.allow_outside)
        pictures = PicturesOfLines(folder, inside, index, "the pictures' folder")
        whole = object_of(str(path), read_json(path))
        subtype = whole.get("data_subtype", "")
        info = whole.get("info")
        source = info.get("url") if isinstance(info, dict) else None
        provenance = provenance_of(whole.get("license"), source)
        annotations, problems = _by_question(answers)
        for number, value in enumerate(list_in(str(path), whole, "questions")):
            place = f"{path}, question {number}"
            try:
                values = object_of(place, value)
                own = name_in(place, values, "question_id")
                annotation = annotations.pop(own, None)
                if annotation is None:
                    raise DataError(
                        place, f"has no answers in {answers}", "add them, or remove the question"
                    )
                picture = _picture(place, values, subtype, pictures)
                _check_picture(place, values, *annotation)
                yield FoundRecord(
                    own,
                    place,
                    (
                        picture,
                        (text_in(place, values, "question"),),
                        _answers(*annotation, problems, drawn=self.answer == "drawn"),
                    ),
                    provenance,
                    names=("image", "question", "answer"),
                    group=name_in(place, values, "image_id"),
                )
            except DataError as error:
                yield skipped(error)
        for place, values in annotations.values():
            cause = f"refers to the question {values['question_id']}, which is not in {path}"
            problems.append(DataError(place, cause, "add the question, or remove the answers"))
        yield from map(skipped, problems)


def _by_question(path: Path) -> tuple[dict[str, tuple[str, dict[str, Any]]], list[DataError]]:
    """Return question -> place and answers, and errors of other entries."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    problems: list[DataError] = []
    whole = object_of(str(path), read_json(path))
    for number, value in enumerate(list_in(str(path), whole, "annotations")):
        place = f"{path}, annotation {number}"
        try:
            values = object_of(place, value)
            own = name_in(place, values, "question_id")
            if own in found:
                raise DataError(
                    place,
                    f"refers to the question {own}, and so does {found[own][0]}",
                    "keep one of the two",
                )
            found[own] = place, values
        except DataError as error:
            problems.append(error)
    return found, problems


def _check_picture(place: str, question: dict[str, Any], own: str, answers: dict[str, Any]) -> None:
    """Raise `DataError` if answers state another picture than their question."""
    about, asked = answers.get("image_id"), question.get("image_id")
    if about is not None and str(about) != str(asked):
        raise DataError(
            own,
            f"refers to the picture {about}, but its question ({place}) to {asked}",
            "use the answers of this question",
        )


def _answers(
    place: str, values: dict[str, Any], problems: list[DataError], *, drawn: bool
) -> tuple[str, ...]:
    """Return the answers, starting with the most frequent one; adds invalid ones to the problems."""
    given: list[str] = []
    bad: list[DataError] = []
    for number, value in enumerate(list_in(place, values, "answers")):
        here = f"{place}, answer {number}"
        try:
            given.append(text_in(here, object_of(here, value), "answer"))
        except DataError as error:
            bad.append(error)
    stated = values.get("multiple_choice_answer")
    if isinstance(stated, str) and stated.strip():
        most = checked_text(place, "multiple_choice_answer", stated.strip())
    elif given:
        most = Counter(given).most_common(1)[0][0]
    elif bad:
        raise bad[0]
    else:
        raise DataError(place, "its 'answers' is empty", "add answers, or remove the question")
    problems += bad
    if not drawn or most not in given:
        return (most,)
    return tuple(sorted(given, key=lambda answer: answer != most))


def _picture(
    place: str, values: dict[str, Any], subtype: object, pictures: PicturesOfLines
) -> StoredPicture:
    """Return a question's COCO picture."""
    number = values.get("image_id")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**12:
        raise DataError(place, f"its 'image_id' is {number!r}, not a number", "correct it")
    names = [f"COCO_{subtype}_{number:012d}.jpg", f"{number:012d}.jpg"]
    for name in names:
        if isinstance(subtype, str) and (pictures.folder / name).exists():
            return pictures.picture(place, name)
    raise DataError(
        place,
        f"there is no picture {' or '.join(names)} in {pictures.folder}",
        "correct dataset.pictures, or add the picture",
    )
