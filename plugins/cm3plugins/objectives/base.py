"""Base config of the bundled objectives: the loss weights and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.interfaces.objective import ObjectiveConfig
from cm3core.sequence import loss_weights, only_responses

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.document import TokenSequence
    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class LossWeightsConfig(ObjectiveConfig):
    """Base config: checks the ranges of the loss weights.

    Args:
        response_only: count only the loss of what a document's task asks for (its answer, the edited
            picture), and of its end; documents without a task count whole. False: everything counts
            (the paper's instruction tuning).
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "retrieved_loss_weight": (0, 1e6),
        "text_loss_weight": (0, 1e6),
    }
    response_only: bool = False

    def weights_of(
        self, sequence: TokenSequence, vocabulary: Vocabulary
    ) -> npt.NDArray[np.float32]:
        """Loss weight of each token of a sequence, float32 [B]."""
        weights = loss_weights(
            sequence, vocabulary, self.retrieved_loss_weight, self.text_loss_weight
        )
        return only_responses(weights, sequence) if self.response_only else weights
