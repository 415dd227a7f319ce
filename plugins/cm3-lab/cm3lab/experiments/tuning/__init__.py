"""`cm3 experiment tuning`: one base model tuned on one mixture in several ways, measured on held-out data. Light: the
arms of the experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The arm to compare the others with.
REFERENCE = "full"
#: The unchanged base, in tables.
BEFORE = "before"


@dataclass(frozen=True)
class Arm:
    """One way to tune.

    Args:
        title: title in tables.
        compares: "method": trained for the same time as the reference; "loss" or "layout": for the same number of steps.
        overrides: overrides of the recipe; everything else is as in the reference.
        layout: layout of tasks whose answer is a text.
    """

    title: str
    compares: Literal["method", "loss", "layout"]
    overrides: tuple[str, ...] = ()
    layout: Literal["answer_last", "paper"] = "answer_last"


#: Arm -> how it is tuned. The reference trains all parameters on the loss of all tokens, answers last.
ARMS: dict[str, Arm] = {
    REFERENCE: Arm("all parameters", "method"),
    "lora": Arm("LoRA", "method", ("tune.method=lora",)),
    "dora": Arm("DoRA", "method", ("tune.method=dora",)),
    "head": Arm("the head's image codes", "method", ("tune.method=head",)),
    "response-only": Arm("the loss of responses alone", "loss", ("objective.response_only=true",)),
    "paper-layout": Arm("answers before the picture", "layout", layout="paper"),
}
#: Settings of the reference, whatever the recipe states.
SHARED = ("tune.method=full", "objective.response_only=false")


@dataclass(frozen=True)
class TuningSettings:
    """Settings of the measurement; all measurements in a folder must have the same.

    Args:
        base: the model to tune.
        minutes: minutes of pure computation per method.
        documents: number of held-out documents per task and split whose responses are measured.
        num: number of records to generate or answer per measured task and split.
        splits: held-out splits of the data set.
        tasks: tasks to generate or answer, as in `cm3 experiment tasks`; a recipe without any of them is measured
            only by losses.
        overrides: overrides of the recipe, for all arms.
        own: arm -> its own overrides.
    """

    base: str
    minutes: float
    documents: int
    num: int
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    overrides: tuple[str, ...]
    own: dict[str, list[str]]
