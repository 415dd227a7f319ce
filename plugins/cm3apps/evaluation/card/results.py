"""The stored results that a card takes its figures from: folders of `cm3 eval` and of `cm3 experiment
icons` and `tasks`.

Nothing is measured again. A result of other weights than the model's is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3apps.evaluation.reading import read_scores
from cm3core.errors import DataError
from cm3core.images import open_image

SCORES, FIGURES, SAMPLES = "scores.json", "figures.json", "samples.jsonl"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation.

    Args:
        folder: its.
        scores: the content of its scores.json.
        samples: the lines of its samples.jsonl that have a picture, in the order of their numbers.
        arguments: of the `cm3` that made it; empty where it is not known.
    """

    folder: Path
    scores: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    arguments: Sequence[str] = ()

    @property
    def protocol(self) -> str:
        """Its protocol's name."""
        return str(self.scores["protocol"]["name"])

    def pictures(self, num: int) -> list[tuple[str, Any]]:
        """(prompt, pixels) of the first `num` samples."""
        return [
            (str(row["prompt"]), open_image(self.folder / row["picture"]))
            for row in self.samples[:num]
        ]


@dataclass(frozen=True)
class Measured:
    """A measurement of icons, or of tasks.

    Args:
        folder: its.
        figures: the content of its figures.json.
    """

    folder: Path
    figures: dict[str, Any]

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return "tasks" if "found" in self.figures else "icons"


def read_result(folder: Path, weights_sha256: str) -> Evaluated | Measured:
    """The result in a folder.

    Raises:
        DataError: there is none, it is damaged, or it is of other weights.
    """
    found: Evaluated | Measured
    if (folder / SCORES).is_file():
        scores = read_scores(folder)
        found = Evaluated(folder, scores, _samples(folder), _arguments(folder))
        model = scores.get("model")
    elif (folder / FIGURES).is_file():
        found = Measured(folder, _figures(folder / FIGURES))
        model = found.figures["model"]
    else:
        raise DataError(
            str(folder),
            f"holds neither {SCORES} nor {FIGURES}",
            "name the folder of a finished `cm3 eval`, `cm3 experiment icons` or `tasks`",
        )
    stated = model.get("weights_sha256") if isinstance(model, dict) else None
    if stated != weights_sha256:
        told = f"the weights {stated[:12]}..." if isinstance(stated, str) else "no model's weights"
        raise DataError(
            str(folder),
            f"is of {told}, the model has {weights_sha256[:12]}...",
            "measure this model, and name that folder",
        )
    return found


def _samples(folder: Path) -> list[dict[str, Any]]:
    path = folder / SAMPLES
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(isinstance(row, dict) for row in rows)
        made = [row for row in rows if "picture" in row]
        assert all(isinstance(row["prompt"], str) and _is_inside(row["picture"]) for row in made)
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise DataError(str(path), "is missing or damaged", "evaluate again") from error
    return made


def _arguments(folder: Path) -> list[str]:
    """Nothing where they can't be read: no figure depends on them."""
    try:
        words = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []


def _is_inside(name: object) -> bool:
    """Whether a picture's name lies in the folder of its evaluation."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _figures(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(figures["model"], dict)
        if "found" in figures:
            assert all(
                isinstance(one["figures"], dict)
                for splits in figures["found"].values()
                for one in splits.values()
            )
        else:
            assert all(isinstance(one["pictures"], dict) for one in figures["splits"].values())
            assert figures["splits"]
            assert figures["style_classifier"]
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        RecursionError,
    ) as error:
        raise DataError(
            str(path), "is not what `cm3 experiment icons` or `tasks` writes", "measure again"
        ) from error
    found: dict[str, Any] = figures
    return found
