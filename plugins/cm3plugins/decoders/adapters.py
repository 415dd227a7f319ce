"""Adapters in a decoder, such as peft's LoRA, for generation, which lays weights out anew.

peft's layers have a `base_layer` (token adapters an `original_module`), and say whether they are
merged or disabled.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

from torch import Tensor, nn

from cm3core.errors import GenerationError


def _unmerged(module: nn.Module) -> bool:
    """Whether an active adapter is not in the module's weight."""
    wraps = hasattr(module, "base_layer") or hasattr(module, "token_adapter")
    return wraps and not (
        getattr(module, "merged", False) or getattr(module, "disable_adapters", False)
    )


def merged_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear layer with what its adapter adds; the layer stays as it is.

    Args:
        linear: `torch.nn.Linear`, or peft's layer around one.

    Returns:
        The layer's own tensor [outputs, inputs], or a new one where an adapter is merged into it.
    """
    if not _unmerged(linear):
        return cast(Tensor, linear.weight)
    copied: Any = deepcopy(linear)  # merging and subtracting again would leave a rounding error
    copied.merge()
    return cast(Tensor, copied.get_base_layer().weight)


def refuse_adapters(decoder: nn.Module) -> None:
    """Raise `GenerationError` for an active adapter that `merged_weight` can't merge: of an embedding,
    or one without peft's `merge`."""
    for name, module in decoder.named_modules():
        mergeable = isinstance(getattr(module, "base_layer", None), nn.Linear) and hasattr(
            module, "merge"
        )
        if _unmerged(module) and not mergeable:
            raise GenerationError(
                f"decoder, {name}",
                "has an adapter that is not merged, which generation would ignore",
                "merge it first: module.merge() of each such module, or peft's merge_and_unload",
            )
