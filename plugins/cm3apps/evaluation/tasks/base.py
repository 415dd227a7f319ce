"""A task: numbered samples and their dependencies; and the keys of a protocol's tasks, with defaults and meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

from cm3core.document import PixelArray
from cm3core.errors import DataError, close_match
from cm3run.evaluation.protocol import sha256_of

#: The model's result: a picture for a prompt, an edited picture, one with its hidden parts filled, a caption of a picture,
#: an answer to a question.
Makes = Literal["pictures", "edits", "fillings", "captions", "answers"]
#: Those of them that are pictures.
OF_PICTURES: tuple[Makes, ...] = ("pictures", "edits", "fillings")
#: The real pictures of a ranking, the right one first: the name of each, and a function that loads
#: it.
Candidates: TypeAlias = Sequence[tuple[str, Callable[[], PixelArray]]]
#: Real pictures that could be copied instead of drawing: by name, a function that loads each.
Baselines: TypeAlias = Mapping[str, Callable[[], PixelArray]]


@dataclass(frozen=True)
class Sample:
    """One sample.

    Args:
        key: its name, the same in every run.
        prompt: the prompt, the instruction of an edit, the caption of a picture to fill, or the question for an answer.
        picture: loads the reference picture, or the picture to edit, to fill, to caption or to ask about; None if
            there is none.
        picture_key: the name of the reference picture: its content keys.
        references: captions or answers written by people.
        target: the expected content of the picture, in the task's own terms.
        candidates: returns the real pictures of its ranking; None if there are none.
        baselines: returns what could be copied instead of drawing; None if there is nothing.
        choices: texts to rank by likelihood: captions, the right one first; or answers to a
            question, of which the most probable one is the model's.
        drawing: returns the SVG document that the picture is rendered from; None if there is none.
        edited: loads the picture that an edit or a filling should lead to; None if it is unknown, or the result is none.
        hidden: the boxes to fill, (x0, y0, x1, y1) in pixels of `picture`, half open.
    """

    key: str
    prompt: str = ""
    picture: Callable[[], PixelArray] | None = None
    picture_key: str = ""
    references: tuple[str, ...] = ()
    target: Mapping[str, Any] = field(default_factory=dict)
    candidates: Callable[[], Candidates] | None = None
    baselines: Callable[[], Baselines] | None = None
    choices: tuple[str, ...] = ()
    drawing: Callable[[], str] | None = None
    edited: Callable[[], PixelArray] | None = None
    hidden: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def reference(self) -> Callable[[], PixelArray] | None:
        """Loads the picture that results are compared with: of an edit or a filling, the one that it should lead to, if
        that is known."""
        return self.edited or self.picture


class TrainingPictures(NamedTuple):
    """The training data's pictures: functions that load them, and what identifies them."""

    loads: Sequence[Callable[[], PixelArray]]
    fingerprint: str


@dataclass(frozen=True)
class Task:
    """The samples of a protocol.

    Args:
        name: the task's name.
        makes: the model's result for each sample.
        samples: the samples, in the order of their numbers.
        rule: the rule that selects these samples, as JSON values.
        training: returns the training pictures; None if the task knows none.
        component: the task component that a model is asked by; None: its own for what it makes.
    """

    name: str
    makes: Makes
    samples: Sequence[Sample]
    rule: Mapping[str, Any]
    training: Callable[[], TrainingPictures] | None = None
    component: str | None = None

    @cached_property
    def candidates(self) -> Sequence[Candidates]:
        """The real pictures of each sample's ranking.

        Raises:
            DataError: the task has none.
        """
        found = []
        for sample in self.samples:
            if sample.candidates is None:
                raise DataError(
                    f"task {self.name!r}",
                    "has no other real pictures for a ranking",
                    "remove the metric judge",
                )
            found.append(sample.candidates())
        return found

    @property
    def candidates_sha256(self) -> str:
        """Hash of the names of all candidates."""
        return sha256_of([[name for name, _ in one] for one in self.candidates])

    @property
    def measurement(self) -> dict[str, Any]:
        """The dependencies of scores, as JSON values."""
        return {
            "name": self.name,
            **self.rule,
            "num": len(self.samples),
            "keys_sha256": sha256_of([sample.key for sample in self.samples]),
            "prompts_sha256": sha256_of([sample.prompt for sample in self.samples]),
            "references_sha256": sha256_of(
                [
                    [sample.picture_key, *sample.references, *sample.choices]
                    for sample in self.samples
                ]
            ),
        }


def enough(place: str, found: int, wanted: int | None) -> None:
    """Refuse fewer samples than the protocol's."""
    if wanted is not None and found < wanted:
        raise DataError(
            place, f"has {found} samples, but the protocol needs {wanted}", "complete it"
        )


class TaskKey(NamedTuple):
    """A key of a task: its default and its meaning."""

    default: Any
    text: str


#: Task -> its description and its keys.
TASKS: Mapping[str, tuple[str, Mapping[str, TaskKey]]] = {
    "documents": (
        "any data set: captions to pictures",
        {
            "dataset": TaskKey(
                None, "a recipe's section, an object with `name`; null: the model's own"
            ),
            "split": TaskKey("valid", "the data set's split"),
            "num": TaskKey(None, "documents, the first ones by a hash of their ids; null: all"),
            "one_of_a_group": TaskKey(
                True, "only the first document of each group (versions of one thing)"
            ),
            "apart": TaskKey(
                False, "leave out documents whose picture is, or looks like, one of the split train"
            ),
            "baselines": TaskKey(
                False, "also score real pictures that could be copied instead of drawing"
            ),
        },
    ),
    "records": (
        "any data set: edits of its pictures, their captions, answers to its questions, hidden parts filled",
        {
            "dataset": TaskKey(
                None, "a recipe's section, an object with `name`; null: the model's own"
            ),
            "split": TaskKey("valid", "the data set's split"),
            "num": TaskKey(None, "records, the first ones by a hash of their ids; null: all"),
            "task": TaskKey(
                None,
                "the task component that tells what is asked, such as `edit`, `caption`, `vqa` or `grounding`; null: the "
                "one with the records' fields",
            ),
            "hides": TaskKey(
                None,
                "a field of boxes: what is in them is hidden, and the model fills it, given the caption; null: nothing",
            ),
        },
    ),
    "coco": (
        "COCO captions to pictures",
        {
            "annotations": TaskKey("captions_val2014.json", "file in `annotations/` of `--data`"),
            "images": TaskKey("val2014", "folder of the pictures in `--data`"),
            "num": TaskKey(30000, "pictures, the first ones by a hash of their ids"),
        },
    ),
    "captions": (
        "COCO pictures to captions (Karpathy's split)",
        {
            "annotations": TaskKey("dataset_coco.json", "file in `annotations/` of `--data`"),
            "split": TaskKey("test", "of that file"),
            "num": TaskKey(5000, "pictures"),
            "ranked": TaskKey(
                None, "number of captions in the ranking; null: the model writes one"
            ),
        },
    ),
    "vqa": (
        "questions about COCO pictures",
        {
            "questions": TaskKey("", "file of questions in `annotations/` of `--data`"),
            "annotations": TaskKey("", "file of their answers there"),
            "images": TaskKey("val2014", "folder of the pictures in `--data`"),
            "num": TaskKey(None, "questions; null: all"),
            "ranked": TaskKey(
                None, "number of most frequent answers to choose from; null: the model writes one"
            ),
        },
    ),
    "prompts": (
        "prompts of another benchmark, for its own scorer",
        {
            "repeat": TaskKey(4, "pictures per prompt"),
            "judge": TaskKey(None, "the judge that its scorer asks; with another, hashes differ"),
        },
    ),
    "edits": (
        "edits of another benchmark, for its own scorer",
        {
            "file": TaskKey("basic_edit.json", "file of the instructions in `--data`"),
            "images": TaskKey(".", "folder of the pictures in `--data`"),
            "judge": TaskKey(None, "the judge that its scorer asks; with another, hashes differ"),
        },
    ),
    "gedit": (
        "GEdit-Bench's edits, for its own scorer",
        {
            "language": TaskKey("en", "of the instructions: en or cn"),
            "judge": TaskKey(None, "the judge that its scorer asks; with another, hashes differ"),
        },
    ),
}


def known_keys(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task with their defaults.

    Raises:
        DataError: an unknown task or key, or a value whose type differs from the default's (or an `int`
            less than 1).
    """
    if task not in TASKS:
        raise DataError("protocol: task.name", f"is {task!r}", close_match(task, TASKS))
    known = {name: key.default for name, key in TASKS[task][1].items()}
    for key, value in values.items():
        place = f"protocol: task.{key}"
        if key not in known:
            raise DataError(place, f"the task {task!r} has no such key", close_match(key, known))
        default = known[key]
        if type(value) is not type(default) and default is not None and value is not None:
            kind = type(default).__name__
            raise DataError(place, f"is {value!r}", f"give a value of the type {kind}")
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise DataError(place, f"is {value}", "use 1 or more")
    return {**known, **values}
