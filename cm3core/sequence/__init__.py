"""Documents <-> sequences of tokens.

serialize      training sequences, prompts and back      prompt_writer    documents with holes -> prompts
segments       one segment <-> tokens, default layout    grammar          holes, and the ids that are legal in them
infill         spans moved behind their sequence, responses of tasks
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.sequence.infill import (
        TOKENS_PER_SPAN,
        loss_weights,
        move_spans,
        only_responses,
        prefixed,
        unmask,
    )
    from cm3core.sequence.segments import SentinelLayout

__all__ = [
    "TOKENS_PER_SPAN",
    "SentinelLayout",
    "loss_weights",
    "move_spans",
    "only_responses",
    "prefixed",
    "unmask",
]

__getattr__ = exporter(
    __name__,
    {
        "TOKENS_PER_SPAN": "infill",
        "SentinelLayout": "segments",
        "loss_weights": "infill",
        "move_spans": "infill",
        "only_responses": "infill",
        "prefixed": "infill",
        "unmask": "infill",
    },
)
