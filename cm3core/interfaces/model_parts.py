"""What a model has of its own that a component may need, beside the component's keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.vocab import Vocabulary


@dataclass(frozen=True, eq=False)
class ModelParts:
    """The parts of one model, the same object for all of its samplers.

    Args:
        image_tokenizer: the model's.
        vocabulary: the model's; `of_codes` and `to_codes` turn image codes into ids and back.
        open_memory: returns `memory`.
    """

    image_tokenizer: ImageTokenizer
    vocabulary: Vocabulary
    open_memory: Callable[[], DocumentSource]

    @cached_property
    def memory(self) -> DocumentSource:
        """The documents that the model can retrieve: those of its recipe's bank, or those it was
        trained on. Opened when it is first asked for.

        Raises:
            CM3Error: there are none, or they can't be opened.
        """
        return self.open_memory()
