"""`cm3 experiment tuning`: one base tuned on one mixture in several ways, measured on what is held out. Light: the
arms of the experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The arm that the others are compared with.
REFERENCE = "full"
#: The base as it is, in tables.
BEFORE = "before"


@dataclass(frozen=True)
class Arm:
    """One way to tune.

    Args:
        title: for tables.
        compares: "method": trained as long as the reference; "loss" or "layout": as many steps.
        overrides: of the recipe; everything else is the reference's.
        layout: of the tasks whose answer is a text.
    """

    title: str
    compares: Literal["method", "loss", "layout"]
    overrides: tuple[str, ...] = ()
    layout: Literal["answer_last", "paper"] = "answer_last"


#: Arm -> how it is tuned. The reference trains all parameters by the loss of all tokens, answers last.
ARMS: dict[str, Arm] = {
    REFERENCE: Arm("all parameters", "method"),
    "lora": Arm("LoRA", "method", ("tune.method=lora",)),
    "dora": Arm("DoRA", "method", ("tune.method=dora",)),
    "head": Arm("the head's image codes", "method", ("tune.method=head",)),
    "response-only": Arm("the loss of responses alone", "loss", ("objective.response_only=true",)),
    "paper-layout": Arm("answers before the picture", "layout", layout="paper"),
}
#: What the reference is, whatever the recipe says.
SHARED = ("tune.method=full", "objective.response_only=false")


@dataclass(frozen=True)
class TuningSettings:
    """What is measured; two measurements in one folder have the same.

    Args:
        base: the model that is tuned.
        minutes: of pure computation of each method's training.
        documents: held-out documents of each task and split whose responses are measured.
        num: records of each measured task and split that are drawn or answered.
        splits: held-out splits of the data set.
        tasks: those that are drawn or answered, as `cm3 experiment tasks` does; a recipe that has none of
            them is measured by losses alone.
        overrides: of the recipe, for all arms.
        own: arm -> overrides of its own.
    """

    base: str
    minutes: float
    documents: int
    num: int
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    overrides: tuple[str, ...]
    own: dict[str, list[str]]
