"""Adapters by peft: generation refuses those that it would ignore, and takes merged ones."""

from __future__ import annotations

import pytest
import torch

from cm3core.errors import GenerationError
from cm3core.vocab import Vocabulary
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.llama import LlamaConfig

peft = pytest.importorskip("peft", reason="peft is not installed")


SIZES = {"num_layers": 1, "d_model": 16, "num_heads": 2, "context_length": 32}


def adapted(config=None):
    config = config or CM3LeonConfig(**SIZES)
    torch.manual_seed(0)
    decoder = config.build(Vocabulary(40, 8, 4), SDPAAttentionConfig().build(), (2, 2)).eval()
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.inject_adapter_in_model(lora, decoder)


def logits(decoder, tokens):
    with torch.no_grad():
        hidden = decoder.hidden_states(tokens)
        return hidden @ decoder.head_weight().T


@pytest.mark.parametrize("config_class", [CM3LeonConfig, LlamaConfig])
def test_unmerged_adapters_are_refused(config_class) -> None:
    with pytest.raises(GenerationError) as error:
        adapted(config_class(**SIZES)).for_inference()
    assert "has an adapter that is not merged, which generation would ignore" in str(error.value)
    assert str(error.value).startswith("decoder, layers.0.")


def test_merged_adapters_count() -> None:
    decoder = adapted()
    tokens = torch.randint(4, 40, (1, 9), generator=torch.Generator().manual_seed(0))
    with_adapter = logits(decoder, tokens)
    layers = [module for module in decoder.modules() if hasattr(module, "base_layer")]
    assert layers
    for module in layers:
        module.merge()
    torch.testing.assert_close(logits(decoder, tokens), with_adapter, atol=1e-4, rtol=1e-4)
    inference = decoder.for_inference("fp32")
    cache = inference.allocate_cache(1, 16)
    with torch.inference_mode():
        hidden = inference.hidden_states(
            tokens,
            positions_BT=torch.arange(9)[None],
            cells_BT=torch.full((1, 9), -1),
            cache=cache,
        )
    shown = hidden @ decoder.head_weight().T
    torch.testing.assert_close(shown, with_adapter, atol=1e-3, rtol=1e-3)


def test_a_decoder_without_adapters() -> None:
    config = CM3LeonConfig(**SIZES)
    config.build(Vocabulary(40, 8, 4), SDPAAttentionConfig().build(), (2, 2)).for_inference()
