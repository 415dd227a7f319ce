"""A task: numbered samples, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cm3core.document import PixelArray
from cm3core.errors import DataError, close_match
from cm3core.evaluation.protocol import sha256_of

#: What a model makes: a picture of a prompt, a caption of a picture, an answer to a question.
Makes = Literal["pictures", "captions", "answers"]


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
    """

    key: str
    prompt: str = ""
    picture: Callable[[], PixelArray] | None = None
    picture_key: str = ""
    references: tuple[str, ...] = ()
    target: Mapping[str, Any] = field(default_factory=dict)


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
                [[sample.picture_key, *sample.references] for sample in self.samples]
            ),
        }


def known_keys(task: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task with their defaults.

    Raises:
        DataError: an unknown key, or a value of another type than the default (of an `int`: less
            than 1).
    """
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


def enough(place: str, found: int, wanted: int | None) -> None:
    """Refuse fewer samples than the protocol's."""
    if wanted is not None and found < wanted:
        raise DataError(place, f"has {found} samples, the protocol takes {wanted}", "complete it")
