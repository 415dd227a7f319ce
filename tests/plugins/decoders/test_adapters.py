"""Adapters by peft in both decoders: what generation takes, peft's own files, and transformers as an
independent model with the same adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cm3core.errors import GenerationError
from cm3core.recipe import TuneSection
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.decoders.transformer import merged_weight
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3run.tuning import (
    ADAPTER,
    ADAPTER_CONFIG,
    add_adapters,
    load_adapters,
    merge_adapters,
    write_adapters,
)
from messages import tells

peft = pytest.importorskip("peft", reason="peft is not installed")

#: One and several heads of keys, with and without biases, tied and untied heads.
CONFIGS = {
    "cm3leon": CM3LeonConfig(
        num_layers=2, d_model=16, num_heads=2, context_length=32, init_std=0.3, qk_norm=True
    ),
    "llama": LlamaConfig(
        num_layers=2,
        d_model=16,
        num_heads=4,
        num_key_heads=2,
        d_ff=24,
        context_length=32,
        init_std=0.3,
        qkv_bias=True,
    ),
}
METHODS = ("lora", "dora")
TOKENS = torch.randint(4, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    decoder = CONFIGS[name].build(
        CM3LeonVocabulary(40, 8, 4), SDPAAttentionConfig().build(), (2, 2)
    )
    with torch.no_grad():  # the residual outputs start at zero, and biases too
        for parameter in decoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return decoder.eval()


def section(method: str, **values) -> TuneSection:
    return TuneSection(method=method, rank=2, **values)


def disturb(module: nn.Module) -> None:
    """Adapters as if trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def adapted(name: str, method: str = "lora", **values) -> nn.Module:
    decoder = built(name)
    add_adapters(decoder, section(method, **values))
    disturb(decoder)
    return decoder


def logits(decoder: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.hidden_states(TOKENS))


def generated(decoder: nn.Module) -> torch.Tensor:
    """Logits of the packed decoder."""
    inference = decoder.for_inference("fp32")
    cache = inference.allocate_cache(2, 16)
    with torch.inference_mode():
        hidden = inference.hidden_states(
            TOKENS,
            positions_BT=torch.arange(9).expand(2, 9),
            cells_BT=torch.full((2, 9), -1),
            cache=cache,
        )
        return inference.logits(hidden)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_new_adapters_change_nothing_and_freeze_the_rest(name: str, method: str) -> None:
    decoder, plain = built(name), built(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    add_adapters(decoder, section(method))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(logits(decoder), logits(plain), atol=1e-5, rtol=1e-5)
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.requires_grad == ("lora_" in parameter_name), parameter_name
    groups = decoder.parameter_groups()
    factors = [p for n, p in decoder.named_parameters() if "lora_A" in n or "lora_B" in n]
    assert {id(p) for p in factors} <= {id(p) for p in groups["matrix"]}
    # q, k, v, output and the feed-forward's matrices of both layers
    assert len(factors) == 2 * 2 * (6 if name == "cm3leon" else 7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_generation_counts_unmerged_adapters(name: str, method: str) -> None:
    decoder = adapted(name, method)
    live = logits(decoder)
    assert (live - logits(built(name))).abs().max() > 0.1, "the adapter does something"
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    torch.testing.assert_close(generated(decoder), live, atol=1e-4, rtol=1e-4)
    after = decoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after), "it merged a copy"
    torch.testing.assert_close(logits(decoder), live, atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_merging_gives_a_plain_decoder_of_the_same_logits(name: str, method: str) -> None:
    decoder = adapted(name, method)
    live = logits(decoder)
    merge_adapters(decoder)
    assert decoder.state_dict().keys() == built(name).state_dict().keys()
    assert (logits(decoder) - live).abs().max() <= 1e-5 * max(1.0, live.abs().max())
    torch.testing.assert_close(generated(decoder), live, atol=1e-4, rtol=1e-4)


def test_adapters_that_can_not_be_merged_are_refused() -> None:
    for name in CONFIGS:
        decoder = built(name)
        config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, decoder)
        with pytest.raises(GenerationError) as error:
            decoder.for_inference()
        assert tells(error.value, "decoder, embed_tokens: has an unmerged adapter, which")


def test_lora_by_hand() -> None:
    """W + alpha / r * B A: rank 1, alpha 3."""
    layer = nn.Sequential(nn.Linear(2, 2, bias=False))
    layer[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    add_adapters(layer, TuneSection(method="lora", rank=1, alpha=3.0))
    layer[0].lora_A["default"].weight.data = torch.tensor([[1.0, 2.0]])
    layer[0].lora_B["default"].weight.data = torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(
        merged_weight(layer[0]), torch.tensor([[4.0, 6.0], [-3.0, -5.0]]), atol=1e-6, rtol=0
    )


def test_dora_by_hand() -> None:
    """m * (W + B A) / |W + B A|, norms of rows: rows (3, 4) and (0, 2), magnitudes 10 and 1."""
    layer = nn.Sequential(nn.Linear(2, 2, bias=False))
    layer[0].weight.data = torch.tensor([[3.0, 3.0], [0.0, 1.0]])
    add_adapters(layer, TuneSection(method="dora", rank=1, alpha=1.0))
    layer[0].lora_A["default"].weight.data = torch.tensor([[0.0, 1.0]])
    layer[0].lora_B["default"].weight.data = torch.tensor([[1.0], [1.0]])
    layer[0].lora_magnitude_vector["default"].weight.data = torch.tensor([10.0, 1.0])
    torch.testing.assert_close(
        merged_weight(layer[0]), torch.tensor([[6.0, 8.0], [0.0, 1.0]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"blocks": [1], "rank_stabilised": True},
        {"blocks": [1], "parameters": ["embed_tokens", "layers.1.q_proj", "*norm"]},
    ],
)
def test_peft_reads_the_files(name: str, method: str, values: dict, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` on a plain decoder gives the same logits: exactly."""
    decoder = adapted(name, method, **values)
    files = write_adapters(decoder, section(method, **values), "runs/base")
    save_file(dict(files.tensors), tmp_path / ADAPTER)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(files.config), encoding="utf-8")
    assert not any("layers.0" in key for key in files.tensors if values and "norm" not in key)
    assert any("embed_tokens" in key for key in files.tensors) == ("parameters" in values)
    theirs = peft.PeftModel.from_pretrained(built(name), str(tmp_path))
    torch.testing.assert_close(
        logits(theirs.get_base_model()), logits(decoder), atol=1e-6, rtol=1e-6
    )
    ours = built(name)
    add_adapters(ours, section(method, **values))
    load_adapters(ours, files.tensors, "file")
    torch.testing.assert_close(logits(ours), logits(decoder), atol=0, rtol=0)


def test_the_same_adapter_on_transformers_llama() -> None:
    """An independent model: peft on `LlamaForCausalLM` with the same weights and factors, merged by
    peft, has the logits of ours, merged by us."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    config = LlamaConfig(
        num_layers=2,
        d_model=16,
        num_heads=4,
        num_key_heads=2,
        d_ff=24,
        context_length=32,
        init_std=0.3,
        qk_norm="none",
    )
    vocabulary = CM3LeonVocabulary(40, 8, 4)
    torch.manual_seed(0)
    ours = config.build(vocabulary, SDPAAttentionConfig().build(), (2, 2)).eval()
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=vocabulary.size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
        )
    ).eval()
    names = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "embed_output": "lm_head"}
    for layer in range(2):
        for part, of in (
            *((f"{x}_proj", f"self_attn.{x}_proj") for x in "qkvo"),
            *((f"{x}_proj", f"mlp.{x}_proj") for x in ("gate", "up", "down")),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            names[f"layers.{layer}.{part}"] = f"model.layers.{layer}.{of}"
    with torch.no_grad():
        for own, other in names.items():
            theirs.get_submodule(other).weight.copy_(ours.get_submodule(own).weight)
        torch.testing.assert_close(logits(ours), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)
    add_adapters(ours, section("lora"))
    disturb(ours)
    adapter = peft.LoraConfig(r=2, lora_alpha=32, target_modules=r".*layers\..*_proj")
    other = peft.get_peft_model(theirs, adapter)
    with torch.no_grad():
        for own, name in names.items():
            if own.endswith("_proj"):
                for part in ("lora_A", "lora_B"):
                    target = other.get_submodule(f"base_model.model.{name}.{part}.default").weight
                    target.copy_(ours.get_submodule(f"{own}.{part}.default").weight)
    merged = other.merge_and_unload()
    with torch.no_grad():
        expected = merged(TOKENS).logits
    torch.testing.assert_close(logits(ours), expected, atol=1e-4, rtol=1e-4)
    merge_adapters(ours)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_without_adapters() -> None:
    for name in CONFIGS:
        decoder = built(name)
        torch.testing.assert_close(generated(decoder), logits(decoder), atol=1e-4, rtol=1e-4)
        layer = decoder.blocks()[0].q_proj
        assert merged_weight(layer) is layer.weight
