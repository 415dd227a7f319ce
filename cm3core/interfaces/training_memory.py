"""What training needs of memory, as far as a decoder knows it: by arithmetic, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionConfig


@dataclass(frozen=True, kw_only=True)
class TrainingPass:
    """One forward and backward pass.

    Args:
        rows: packed rows.
        length: tokens of each.
        itemsize: bytes of a number that products take: 2 with autocast to bfloat16, else 4.
        attention: the backend's config, which knows what it keeps.
        device: "cpu", "cuda": loss and attention work in other pieces there.
    """

    rows: int
    length: int
    itemsize: int
    attention: AttentionConfig | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """A decoder's part in the memory of training.

    Args:
        matrix_parameters: of the group "matrix" of `Decoder.parameter_groups`.
        other_parameters: of the other groups.
        largest_stack: parameters of the matrices of the most frequent shape, which Muon updates
            together.
        activations: bytes that the forward pass keeps for the backward pass.
        working: most bytes in use for a moment in addition: a chunk of the loss, one layer's
            gradients.
        smaller: what makes the activations smaller, as overrides or keys; the batch is not
            repeated.
        smaller_model: the keys that set the number of parameters.
        gathered: parameters that a device holds whole at a time where they are divided among
            devices: two blocks (the next is fetched during the first), and what belongs to none. 0:
            not known, all of them.
        linear_features: inputs and outputs of all linear layers, added up: adapters of rank r have r
            times as many parameters. 0: not known.
    """

    matrix_parameters: int
    other_parameters: int
    largest_stack: int
    activations: int
    working: int
    smaller: tuple[str, ...] = ()
    smaller_model: tuple[str, ...] = ()
    gathered: int = 0
    linear_features: int = 0
