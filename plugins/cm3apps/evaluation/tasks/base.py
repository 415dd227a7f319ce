"""A task: numbered samples, and what they depend on; and the keys of a protocol's tasks, their defaults and meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

from cm3core.document import PixelArray
from cm3core.errors import DataError, close_match
from cm3run.evaluation.protocol import sha256_of

#: What a model makes: a picture of a prompt, a caption of a picture, an answer to a question.
Makes = Literal["pictures", "captions", "answers"]
#: Real pictures among which the right one, the first, is ranked: what each is called, and what loads it.
Candidates: TypeAlias = Sequence[tuple[str, Callable[[], PixelArray]]]


@dataclass(frozen=True)
class Sample:
    """One sample.

    Args:
        key: its name, the same in every run.
        prompt: what the picture should show; the question, for an answer.
        picture: loads the reference picture, or the one that is captioned or asked about; None where
            there is none.
        picture_key: what the picture is called: content keys of the reference.
        references: captions or answers that people wrote.
        target: what the picture should show, in the task's own terms.
        candidates: gives the real pictures among which this one is ranked; None where there are none.
        choices: texts that are ranked by their likelihood: captions, the right one first; answers to a
            question, among which the most probable one is the model's.
    """

    key: str
    prompt: str = ""
    picture: Callable[[], PixelArray] | None = None
    picture_key: str = ""
    references: tuple[str, ...] = ()
    target: Mapping[str, Any] = field(default_factory=dict)
    candidates: Callable[[], Candidates] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """The samples of a protocol.

    Args:
        name: the task's.
        makes: what a model makes for each.
        samples: in the order of their numbers.
        rule: what decides which samples these are, as JSON values.
    """

    name: str
    makes: Makes
    samples: Sequence[Sample]
    rule: Mapping[str, Any]

    @cached_property
    def candidates(self) -> Sequence[Candidates]:
        """Of each sample, the real pictures among which it is ranked.

        Raises:
            DataError: the task has none.
        """
        found = []
        for sample in self.samples:
            if sample.candidates is None:
                raise DataError(
                    f"task {self.name!r}",
                    "has no other real pictures among which one could be ranked",
                    "remove the metric judge",
                )
            found.append(sample.candidates())
        return found

    @property
    def candidates_sha256(self) -> str:
        """Hash of what all candidates are called."""
        return sha256_of([[name for name, _ in one] for one in self.candidates])

    @property
    def measurement(self) -> dict[str, Any]:
        """What scores depend on, as JSON values."""
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
        raise DataError(place, f"has {found} samples, the protocol takes {wanted}", "complete it")


class TaskKey(NamedTuple):
    """A key of a task: its default and what it means."""

    default: Any
    text: str


#: Task -> what it asks for, and its keys.
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
                True, "of documents of one group (versions of one icon) the first only"
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
                None, "captions among which the right one is ranked; null: the model writes one"
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
                None, "most frequent answers among which one is chosen; null: the model writes one"
            ),
        },
    ),
    "prompts": (
        "prompts of another benchmark, for its own scorer",
        {"repeat": TaskKey(4, "pictures of each prompt")},
    ),
    "scenes": (
        "prompts whose pictures an exact checker can judge",
        {"num": TaskKey(15, "prompts of each of the four categories")},
    ),
}


def known_keys(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task with their defaults.

    Raises:
        DataError: an unknown task or key, or a value of another type than the default (of an `int`:
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
