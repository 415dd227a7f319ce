"""`cm3 experiment retrieval`: how much retrieved documents improve loss and pictures. Light: the arms of the experiment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        title: title in tables.
        overrides: overrides of the recipe; everything else is the same for all arms: tokens per step, steps,
            context length, initial weights.
        num_retrieved: maximum number of documents prepended to a training document, and to a prompt in
            generation.
    """

    title: str
    overrides: tuple[str, ...]
    num_retrieved: int


def _retrieving(name: str, number: int) -> Arm:
    title = f"{name}, {number} document{'' if number == 1 else 's'}"
    return Arm(title, (f"retriever.name={name}", f"retriever.num_retrieved={number}"), number)


#: Arm -> how it is trained. `random` is the control: documents unrelated to the query must not
#: help.
ARMS: dict[str, Arm] = {
    "none": Arm("no documents", ("retriever.num_retrieved=0",), 0),
    **{
        f"{name}-{number}": _retrieving(name, number)
        for name in ("dense", "bm25", "random")
        for number in (1, 2, 3)
    },
}

#: Name, in losses, of the "memory" and the "retriever" that prepend the query's own document.
OWN = "own"


@dataclass(frozen=True)
class RetrievalSettings:
    """Settings for training and measuring the arms.

    Args:
        overrides: the user's overrides of the recipe.
        steps: steps of each training; None: as in the recipe.
        num_documents: number of held-out documents to measure per split.
        num_pictures: number of pictures that each arm generates per split; 0: none.
    """

    overrides: tuple[str, ...] = ()
    steps: int | None = None
    num_documents: int = 150
    num_pictures: int = 48
