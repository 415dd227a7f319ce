"""Adapters in a decoder, such as peft's LoRA: generation lays out base weights and would ignore them."""

from __future__ import annotations

from torch import nn

from cm3core.errors import GenerationError


def refuse_adapters(decoder: nn.Module) -> None:
    """Raise `GenerationError` for an active adapter that isn't merged into the weights.

    peft's layers have a `base_layer` (token adapters an `original_module`), and say whether they are
    merged or disabled.
    """
    for name, module in decoder.named_modules():
        wraps = hasattr(module, "base_layer") or hasattr(module, "token_adapter")
        merged = getattr(module, "merged", False) or getattr(module, "disable_adapters", False)
        if wraps and not merged:
            raise GenerationError(
                f"decoder, {name}",
                "has an adapter that is not merged, which generation would ignore",
                "merge it first: module.merge() of each such module, or peft's merge_and_unload",
            )
