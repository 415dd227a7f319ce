"""`cm3 experiment retrieval`: how much retrieved documents improve loss and pictures. Light: the arms of the experiment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        title: for tables.
        overrides: of the recipe; everything else is the same for all arms: tokens a step, steps,
            context length, initial weights.
        num_retrieved: documents prepended to a training document, at most, and to a prompt when it
            generates.
    """

    title: str
    overrides: tuple[str, ...]
    num_retrieved: int


def _retrieving(name: str, number: int) -> Arm:
    title = f"{name}, {number} document{'' if number == 1 else 's'}"
    return Arm(title, (f"retriever.name={name}", f"retriever.num_retrieved={number}"), number)


#: Arm -> how it is trained. `random` is the control: documents that have nothing to do with the
#: query must not help.
ARMS: dict[str, Arm] = {
    "none": Arm("no documents", ("retriever.num_retrieved=0",), 0),
    **{
        f"{name}-{number}": _retrieving(name, number)
        for name in ("dense", "bm25", "random")
        for number in (1, 2, 3)
    },
}

#: In names of losses, the "memory" and the "retriever" that prepend the query's own document.
OWN = "own"


@dataclass(frozen=True)
class RetrievalSettings:
    """How the arms are trained and measured.

    Args:
        overrides: the user's, of the recipe.
        steps: of each training; None: the recipe's.
        num_documents: held-out documents of each split that are measured.
        num_pictures: pictures of each split that each arm generates; 0: none.
    """

    overrides: tuple[str, ...] = ()
    steps: int | None = None
    num_documents: int = 150
    num_pictures: int = 48
