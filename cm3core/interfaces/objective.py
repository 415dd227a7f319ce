"""Kind `objective`: a sequence -> the masked sequence to train on.

Examples: causal masking, fill in the middle, plain next-token prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.errors import DocumentError
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown
from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class ObjectiveConfig(ComponentConfig):
    """Base of objectives' configs.

    Args:
        retrieved_loss_weight: loss weight of the retrieved documents' tokens (paper section 2.2: 1,
            like the query's).
        text_loss_weight: factor on the loss weight of text tokens. A caption has few tokens compared
            with the hundreds of image codes; more than 1 makes a small model learn captions sooner (paper:
            1).
    """

    kind: ClassVar[str] = "objective"
    #: Whether it replaces spans by sentinels, which not every layout has.
    masks_spans: ClassVar[bool] = False
    #: Whether spans may also lie in retrieved documents, which every prompt contains in full.
    masks_retrieved: ClassVar[bool] = False
    retrieved_loss_weight: float = 1.0
    text_loss_weight: float = 1.0

    def offers(self) -> Mapping[str, bool]:
        """Holes are filled only if spans were masked in training."""
        return {"holes": self.masks_spans, "several_holes": self.masks_spans}

    def control_tokens(self) -> tuple[str, ...]:
        """Names of additional control tokens that the vocabulary must have; none by default.

        They follow all other ids, in this order. `build` finds them in the vocabulary
        (`Vocabulary.control_id`), and `cm3core.sequence.prefixed` inserts them into a sequence.
        """
        return ()

    def prompt_tokens(self, *, continuation: bool) -> tuple[str, ...]:
        """Names of the control tokens at the start of a prompt, after its first <eos>.

        Args:
            continuation: whether only the end of the document is missing; otherwise the
                prompt has a sentinel for each hole.
        """
        return ()

    def build(self, vocabulary: Vocabulary) -> MaskingObjective:
        """Return the objective for this vocabulary."""
        raise NotImplementedError


class MaskingObjective(ABC):
    """Turns a whole sequence into a masked one before packing, so that nothing is ever cut off."""

    @property
    @abstractmethod
    def max_added_tokens(self) -> int:
        """Maximum number of tokens that masking can add (3 per span); the packer reserves them.

        A third of it is the maximum number of spans in a sequence; prompts use no more sentinels than that."""

    @abstractmethod
    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        """Return the masked sequence, at most `max_length` tokens."""

    def mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        """Return the masked sequence.

        Args:
            sequence: n tokens, starting and ending with <eos>.
            rng: the only source of randomness; equal generators give equal results.
            max_length: maximum length; the objective uses fewer spans rather than cut anything.

        Raises:
            DocumentError: the sequence alone is longer than `max_length`.
            PluginError: `_mask` returned an invalid value.
        """
        given = len(sequence)
        if given > max_length:
            raise DocumentError(
                "sequence",
                f"{given} tokens, but the context holds {max_length}",
                "retrieve fewer documents, shorten captions, or raise decoder.context_length",
            )
        masked = self._mask(sequence, rng, max_length)
        if problem := _problem_of(masked):
            raise broken(self, "shapes_and_types", problem)
        most = min(max_length, given + self.max_added_tokens)
        if not given <= len(masked) <= most:
            raise broken(
                self,
                "the_reserve_is_enough",
                f"it made {given} tokens {len(masked)}, of {given} to {most}",
            )
        return masked


def _problem_of(masked: object) -> str:
    """Describe what is wrong with an objective's return value; "" if nothing is."""
    if not isinstance(masked, MaskedSequence):
        return f"it returned {shown(masked)}, not a MaskedSequence"
    size = np.shape(masked.tokens)
    if len(size) != 1:
        return f"its tokens are {shown(masked.tokens)}, not int32 [n]"
    for name, dtype in (("tokens", np.int32), ("cells", np.int32), ("weights", np.float32)):
        array = getattr(masked, name)
        if not is_array(array, dtype, size):
            return f"its {name} are {shown(array)}, not {dtype.__name__} {list(size)}"
    if not (np.isfinite(masked.weights).all() and (masked.weights >= 0).all()):
        return "its weights are not all finite and at least 0"
    return ""
