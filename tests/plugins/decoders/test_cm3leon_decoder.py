"""The cm3leon decoder: the kit's laws, the paper's sizes and initialisation, and equality with
transformers' OPT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from cm3core.errors import CM3Error, DocumentError, GenerationError, RecipeError
from cm3kits.decoder import DecoderContract
from cm3leon_parts import SDPA, TINY, VOCABULARY, build
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from kit_variants import Variant
from messages import tells


class TestPaperDecoder(Variant, DecoderContract):
    config = TINY


class TestPaperDecoderOnSDPA(Variant, DecoderContract):
    attention = SDPA

    config = TINY


class TestDecoderWithEveryOption(DecoderContract):
    attention = SDPA

    config = replace(
        TINY, grid_positions=True, qk_norm=True, tie_embeddings=False, activation="gelu", d_ff=40
    )


class TestDecoderThatSeesPairsAndPositions(Variant, DecoderContract):
    attention = SDPA

    config = replace(TINY, token_shift=True, code_axes={"slot": 3, "x": 5}, qk_norm=True)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"grid_positions": True}, {"qk_norm": True}, {"tie_embeddings": False}, {"d_ff": 40}),
        {"token_shift": True, "code_axes": {"slot": 3, "x": 5}},
    ],
)
def test_parameters_are_counted_without_building(options: dict[str, Any]) -> None:
    config = replace(TINY, **options)
    assert config.num_parameters(VOCABULARY, (4, 4)) == sum(
        parameter.numel() for parameter in build(config).parameters()
    )


@pytest.mark.parametrize(
    ("num_layers", "d_model", "num_heads", "millions"),
    [(24, 1024, 16, 374), (24, 1536, 16, 787), (32, 4096, 32, 6730)],
)
def test_parameter_counts_of_the_papers_sizes(
    num_layers: int, d_model: int, num_heads: int, millions: int
) -> None:
    vocabulary = CM3LeonVocabulary(
        num_text=56_320, num_image=8_192, num_sentinels=512, num_reserved=1_024
    )
    config = CM3LeonConfig(num_layers=num_layers, d_model=d_model, num_heads=num_heads)
    with torch.device("meta"):
        decoder = config.build(vocabulary, SDPA, (32, 32))
    count = sum(p.numel() for p in decoder.parameters())
    assert vocabulary.size == 66_056
    assert count == 12 * num_layers * d_model**2 + (66_056 + 4_096) * d_model
    assert round(count / 1e6, -1 if millions > 1000 else 0) == millions


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(1)
    decoder = CM3LeonConfig(num_layers=2, d_model=256, num_heads=4, context_length=300).build(
        VOCABULARY, SDPA, (4, 4)
    )
    for name, parameter in decoder.state_dict().items():
        std = 0.0002 if "positions" in name else 0.006
        if name.endswith(("out_proj.weight", "fc2.weight")):
            assert not parameter.any(), name
        else:
            assert parameter.abs().max() <= 3 * std, name
            # cutting at 3 deviations leaves 0.9866 of the deviation
            assert parameter.std().item() == pytest.approx(0.9866 * std, rel=0.03), name
            assert abs(parameter.mean()) < 0.05 * std, name
    assert not any(name.endswith("bias") for name, _ in decoder.named_parameters())
    assert not any(isinstance(module, nn.LayerNorm) for module in decoder.modules()), (
        "LayerNorm has no parameters"
    )
    # Zero residual outputs: at the start the model is its normalised embeddings.
    tokens = torch.arange(9)[None]
    x = decoder.embed_tokens.weight[tokens] + decoder.embed_positions.weight[:9]
    expected = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(decoder.hidden_states(tokens), expected)


def opt_twin(decoder: CM3LeonDecoder) -> OPTForCausalLM:
    """transformers' OPT with the same weights; its LayerNorms at weight 1, bias 0, its biases 0."""
    config = decoder.config
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=decoder.vocab_size,
            hidden_size=config.d_model,
            word_embed_proj_dim=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            ffn_dim=config.d_ff or 4 * config.d_model,
            max_position_embeddings=config.context_length,
            dropout=0.0,
            activation_function=config.activation,
            do_layer_norm_before=True,
            attn_implementation="eager",
        )
    ).eval()
    ours = decoder.state_dict()
    renamed = {
        "model.decoder.embed_tokens.weight": ours["embed_tokens.weight"],
        "lm_head.weight": ours["embed_tokens.weight"],
        # OPT's table begins with two rows that nothing reads
        "model.decoder.embed_positions.weight": nn.functional.pad(
            ours["embed_positions.weight"], (0, 0, 2, 0)
        ),
    }
    for name, tensor in ours.items():
        if name.startswith("layers."):
            _, layer, matrix, _ = name.split(".")
            renamed[
                f"model.decoder.layers.{layer}.{'' if matrix.startswith('fc') else 'self_attn.'}{matrix}.weight"
            ] = tensor
    missing, unexpected = opt.load_state_dict(renamed, strict=False)
    assert not unexpected
    with torch.no_grad():
        for name in missing:  # OPT's biases and LayerNorms
            opt.get_parameter(name).fill_(1.0 if "layer_norm.weight" in name else 0.0)
            assert "layer_norm" in name or name.endswith("bias"), name
    return opt


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_logits_equal_transformers_opt(activation: str) -> None:
    decoder = build(replace(TINY, activation=activation)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        tokens = torch.randint(0, VOCABULARY.size, (3, 24))
        ours, theirs = (
            decoder.logits(decoder.hidden_states(tokens)),
            opt_twin(decoder)(tokens).logits,
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.5, "the comparison is not of zeros"


def test_activation_checkpointing_changes_no_gradient() -> None:
    tokens = torch.randint(0, VOCABULARY.size, (2, 11))
    gradients = []
    for on in (False, True):
        decoder = build(replace(TINY, activation_checkpointing=on)).train()
        with torch.no_grad():
            for layer in decoder.layers:
                layer.fc2.weight.copy_(layer.fc1.weight.T)
                layer.out_proj.weight.copy_(layer.q_proj.weight)
        decoder.hidden_states(tokens, kv_start_BT=torch.zeros_like(tokens)).square().mean(
            1
        ).sin().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_dropout_only_while_training() -> None:
    decoder, tokens = build(replace(TINY, dropout=0.5)), torch.arange(8)[None]
    assert not torch.equal(decoder.train().hidden_states(tokens), decoder.hidden_states(tokens))
    assert torch.equal(decoder.eval().hidden_states(tokens), decoder.hidden_states(tokens))


def test_autocast_keeps_the_residual_stream_and_normalisation_in_float32() -> None:
    decoder = build(TINY)
    tokens = torch.randint(0, VOCABULARY.size, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder.hidden_states(tokens)
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, decoder.hidden_states(tokens), atol=0.05, rtol=0.05)


def test_grid_positions_add_row_and_column_at_cells_only() -> None:
    decoder = build(replace(TINY, grid_positions=True))
    tokens, cells = torch.tensor([[5, 31, 32]]), torch.tensor([[-1, 0, 14]])
    plain = decoder.embed(tokens, torch.arange(3)[None], None)
    added = decoder.embed(tokens, torch.arange(3)[None], cells) - plain
    rows, columns = decoder.embed_rows.weight, decoder.embed_columns.weight
    torch.testing.assert_close(
        added[0], torch.stack([torch.zeros(24), rows[0] + columns[0], rows[3] + columns[2]])
    )


@pytest.mark.parametrize("dim", [5, 40])
def test_start_from_codebook_keeps_the_codes_geometry(dim: int) -> None:
    decoder = build(replace(TINY, codebook_scale=2.0))
    before = decoder.embed_tokens.weight.detach().clone()
    codebook = torch.randn(16, dim) * 7 + 100
    decoder.start_from_codebook(codebook, VOCABULARY)
    codes = decoder.embed_tokens.weight[VOCABULARY.image.start : VOCABULARY.image.stop].detach()
    assert codes.std().item() == pytest.approx(2.0 * 0.02, rel=1e-4)
    others = [i for i in range(VOCABULARY.size) if i not in VOCABULARY.image]
    assert torch.equal(decoder.embed_tokens.weight[others], before[others])
    if dim <= 24:  # an isometry up to one factor
        ratio = torch.cdist(codes, codes) / torch.cdist(codebook, codebook).clamp(min=1e-9)
        ratio = ratio[~torch.eye(16, dtype=torch.bool)]
        assert ratio.max() / ratio.min() < 1.001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_heads": 5},
            "decoder.num_heads: 5 heads don't ... d_model = 24 ... of 32",
        ),
        (
            {"activation": "rleu"},
            "decoder.activation: 'rleu' is not ... 'relu'",
        ),
        (
            {"num_layers": 0},
            "decoder.num_layers: is 0, must ... least 1",
        ),
        ({"dropout": 1.0}, "decoder.dropout: is 1.0, must ... 0 ... 1 ... 0"),
        (
            {"num_layers": 10**9},
            "decoder.num_layers: is 1000000000, must ... most 10,000",
        ),
    ],
)
def test_wrong_configs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(TINY, **change).check()
    assert tells(caught.value, message)


def test_sequences_longer_than_the_context_are_refused() -> None:
    decoder = build(TINY)
    expected: list[tuple[type[CM3Error], Any, str]] = [
        (
            DocumentError,
            lambda: decoder.hidden_states(torch.zeros(1, 25, dtype=torch.int64)),
            "sequence: 25 tokens, but the decoder's context is 24",
        ),
        (
            GenerationError,
            lambda: decoder.for_inference().allocate_cache(1, 25),
            "prompt: 25 tokens including those to generate, but the context is 24",
        ),
        (
            DocumentError,
            lambda: decoder.start_from_codebook(torch.zeros(3, 4), VOCABULARY),
            "codebook: 3 codes, but the vocabulary has 16",
        ),
    ]
    for error, call, message in expected:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(message + "\n  next: ")
    arranged = decoder.for_inference()
    cache = arranged.allocate_cache(1, 4)
    arranged.hidden_states(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
    with pytest.raises(GenerationError, match="row 0 needs 5 own tokens, but there is room for 4"):
        cache.advance([5])
