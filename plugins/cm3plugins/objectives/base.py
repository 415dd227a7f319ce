"""Base config of the bundled objectives: the loss weights and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.interfaces import check_value
from cm3core.interfaces.objective import ObjectiveConfig
from cm3core.sequence import loss_weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.document import TokenSequence
    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class LossWeightsConfig(ObjectiveConfig):
    """Base config: checks the ranges of the loss weights."""

    def check(self) -> None:
        for key in ("retrieved_loss_weight", "text_loss_weight"):
            value = getattr(self, key)
            check_value(f"objective.{key}", value, 0 <= value < float("inf"), "use 0 or more")

    def weights_of(
        self, sequence: TokenSequence, vocabulary: Vocabulary
    ) -> npt.NDArray[np.float32]:
        """Loss weight of each token of a sequence, float32 [B]."""
        return loss_weights(sequence, vocabulary, self.retrieved_loss_weight, self.text_loss_weight)
