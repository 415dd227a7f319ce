"""Documents <-> sequences of tokens: serialisation, infilling order, prompt variants, packing,
grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.sequence.infill import TOKENS_PER_SPAN, loss_weights, move_spans, unmask

__all__ = [
    "TOKENS_PER_SPAN",
    "loss_weights",
    "move_spans",
    "unmask",
]

__getattr__ = exporter(
    __name__,
    {
        "TOKENS_PER_SPAN": "infill",
        "loss_weights": "infill",
        "move_spans": "infill",
        "unmask": "infill",
    },
)
