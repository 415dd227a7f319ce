"""Decoder `llama` equals transformers' Chameleon, Llama, Qwen2, Qwen3, Emu3 and Janus, and LlamaGen's
GPT as its paper and its repository describe it, on random weights: training, prefill, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers import LlamaConfig as HFLlamaConfig
from transformers.models.emu3 import Emu3ForCausalLM, Emu3TextConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.decoders.llama.model import LlamaDecoder

SDPA = SDPAAttentionConfig().build()

#: Names in transformers -> ours, inside a layer.
LAYER_NAMES = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "o_proj",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "gate_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "down_proj",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def ours(key: str) -> str:
    """Our name of a tensor of transformers."""
    if key == "lm_head.weight":
        return "embed_output.weight"
    key = key.removeprefix("model.").removeprefix("text_model.")
    for theirs, mine in LAYER_NAMES.items():
        key = key.replace(f".{theirs}.", f".{mine}.")
    return key


def with_noise(model: Any) -> dict[str, Tensor]:
    """Its tensors, all of them perturbed, so that norms and biases count."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval()
    return {
        key: value
        for key, value in model.state_dict().items()
        if "vqmodel" not in key and "rotary" not in key
    }


def load(config: LlamaConfig, tensors: dict[str, Tensor]) -> LlamaDecoder:
    decoder = LlamaDecoder(config, len(tensors["model.embed_tokens.weight"]), SDPA, (4, 4))
    state = {ours(key): value for key, value in tensors.items()}
    for key, value in state.items():
        if ("q_norm" in key or "k_norm" in key) and value.ndim == 1:
            state[key] = value[None]
    decoder.load_state_dict(state, strict=True)
    return decoder.eval()


def assert_same(
    decoder: LlamaDecoder,
    tokens_BT: Tensor,
    expected_BTV: Tensor,
    *,
    cells_BT: Tensor | None = None,
    ids: range | None = None,
) -> None:
    """Logits of training, of a prefill and of one token at a time are all the oracle's."""
    scale = expected_BTV.abs().max()
    cells_BT = torch.full_like(tokens_BT, -1) if cells_BT is None else cells_BT
    with torch.no_grad():
        whole = decoder.logits(decoder.hidden_states(tokens_BT, cells_BT=cells_BT), ids)
        assert (whole - expected_BTV).abs().max() <= 1e-5 * scale
        inference = decoder.for_inference("fp32")
        B, T = tokens_BT.shape
        cache, steps = inference.allocate_cache(B, T), []
        for first, last in [(0, 5), *((place, place + 1) for place in range(5, T))]:
            hidden = inference.hidden_states(
                tokens_BT[:, first:last], cells_BT=cells_BT[:, first:last], cache=cache
            )
            cache.advance([last - first] * B)
            steps.append(inference.logits(hidden, ids))
        assert (torch.cat(steps, dim=1) - expected_BTV).abs().max() <= 1e-5 * scale


def some_tokens(vocab_size: int) -> Tensor:
    return torch.randint(4, vocab_size, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_equals_chameleon_of_transformers(key_heads: int, swin_norm: bool) -> None:
    torch.manual_seed(0)
    vocabulary = {f"IMGIMG{'ABCD'[code]}Z": 4 + code for code in range(4)} | {"<image>": 9}
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=key_heads,
            max_position_embeddings=64,
            swin_norm=swin_norm,
            vocabulary_map=vocabulary,
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 4,
                "latent_channels": 8,
                "resolution": 16,
                "base_channels": 32,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
            },
        )
    )
    tensors = with_noise(model)
    config = LlamaConfig(
        num_layers=3,
        d_model=32,
        num_heads=4,
        num_key_heads=key_heads,
        d_ff=48,
        context_length=64,
        swin_norm=swin_norm,
    )
    tokens_BT = some_tokens(40)
    with torch.no_grad():
        # not `.logits`: those of image ids are set to the smallest float
        expected = model.lm_head(model.model(tokens_BT).last_hidden_state)
    assert_same(load(config, tensors), tokens_BT, expected)


@pytest.mark.parametrize(
    ("model_class", "config_class", "options"),
    [
        (LlamaForCausalLM, HFLlamaConfig, {"qk_norm": "none"}),
        (Qwen2ForCausalLM, Qwen2Config, {"qk_norm": "none", "qkv_bias": True}),
        (Qwen3ForCausalLM, Qwen3Config, {"qk_norm": "rms_norm", "qk_norm_groups": 1}),
    ],
)
def test_equals_other_models_of_transformers(
    model_class: Any, config_class: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=False,
        )
    )
    tensors = with_noise(model)
    config = LlamaConfig(
        num_layers=2,
        d_model=32,
        num_heads=4,
        num_key_heads=2,
        d_ff=48,
        context_length=64,
        norm_eps=1e-6,
        rope_theta=1e6,
        **options,
    )
    tokens_BT = some_tokens(40)
    with torch.no_grad():
        expected = model(tokens_BT).logits
    assert_same(load(config, tensors), tokens_BT, expected)


# ---- Emu3 and Janus


def test_equals_emu3_of_transformers() -> None:
    """Its language model, with its base of the rotation and grouped keys."""
    torch.manual_seed(0)
    model = Emu3ForCausalLM(
        Emu3TextConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    config = LlamaConfig(
        num_layers=2,
        d_model=32,
        num_heads=4,
        num_key_heads=2,
        d_ff=48,
        context_length=64,
        rope_theta=1e6,
        qk_norm="none",
    )
    tensors = with_noise(model)
    tokens_BT = some_tokens(40)
    with torch.no_grad():
        expected = model(tokens_BT).logits
    assert_same(load(config, tensors), tokens_BT, expected)


def test_equals_janus_of_transformers() -> None:
    """Texts and pictures through one language model, with embeddings and a head of codes."""
    torch.manual_seed(0)
    tiny_vision = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
        "intermediate_size": 8,
        "projection_dim": 32,
    }
    model = JanusForConditionalGeneration(
        JanusConfig(
            text_config={
                "model_type": "llama",
                "vocab_size": 40,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 64,
            },
            vision_config=tiny_vision,
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            image_token_id=39,
            tie_word_embeddings=False,
        )
    )
    tensors = with_noise(model)
    config = LlamaConfig(
        num_layers=2,
        d_model=32,
        num_heads=4,
        d_ff=48,
        context_length=64,
        norm_eps=model.config.text_config.rms_norm_eps,
        qk_norm="none",
        code_embed_dim=8,
        code_head_dim=32,
    )
    codes_B4 = torch.tensor([[3, 0, 15, 7], [1, 9, 9, 2]])
    text_BT = some_tokens(39)
    with torch.no_grad():
        embedded = torch.cat(
            [
                model.get_input_embeddings()(text_BT),
                model.prepare_embeddings_for_image_generation(codes_B4),
            ],
            dim=1,
        )
        states = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        decoder = LlamaDecoder(config, 40 + 16, SDPA, (4, 4), range(40, 56))
        own = {
            "model.generation_embeddings": "codes_in.embed",
            "model.generation_aligner.fc1": "codes_in.fc1",
            "model.generation_aligner.hidden_layers.0": "codes_in.fc2",
            "model.generation_head.proj_out": "codes_out.fc1",
            "model.generation_head.vision_head": "codes_out.fc2",
        }
        state = {}
        for key, value in tensors.items():
            module, _, kind = key.rpartition(".")
            if module in own:
                state[f"{own[module]}.{kind}"] = value
            elif key.startswith(("model.language_model.", "lm_head.")):
                state[ours(key.replace("model.language_model.", "model."))] = value
        decoder.load_state_dict(state, strict=True)
        decoder.eval()
        tokens_BT = torch.cat([text_BT, 40 + codes_B4], dim=1)
        of_text, of_code = model.lm_head(states), model.model.generation_head(states)
        assert_same(decoder, tokens_BT, of_text, ids=range(40))
        assert_same(decoder, tokens_BT, of_code, ids=range(40, 56))
        assert_same(decoder, tokens_BT, torch.cat([of_text, of_code], -1))
        assert_same(decoder, tokens_BT, of_code[..., 3:9], ids=range(43, 49))


# ---- LlamaGen


def llamagen_tensors(config: LlamaConfig, classes: int, codes: int) -> dict[str, Tensor]:
    """Random weights under LlamaGen's names."""
    E, inner, generator = config.d_model, config.inner, torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    tensors = {
        "cls_embedding.embedding_table.weight": 4 * drawn(classes + 1, E),
        "tok_embeddings.weight": 4 * drawn(codes, E),
        "norm.weight": 1 + drawn(E),
        "output.weight": drawn(codes, E),
    }
    for layer in range(config.num_layers):
        tensors |= {
            f"layers.{layer}.{name}": tensor
            for name, tensor in {
                "attention.wqkv.weight": 2 * drawn(3 * E, E),
                "attention.wo.weight": drawn(E, E),
                "feed_forward.w1.weight": drawn(inner, E),
                "feed_forward.w3.weight": drawn(inner, E),
                "feed_forward.w2.weight": drawn(E, inner),
                "attention_norm.weight": 1 + drawn(E),
                "ffn_norm.weight": 1 + drawn(E),
            }.items()
        }
    return tensors


def llamagen_gpt(
    tensors: dict[str, Tensor], config: LlamaConfig, columns: int, class_B: Tensor, codes_BT: Tensor
) -> Tensor:
    """Logits [B, 1 + T, codes] of LlamaGen's class-conditional GPT, in float64 and complex numbers.

    Section 2.2 of arXiv:2406.06525: Llama with 2-D rotary positions. As its code has it, the pairs
    (0, 1), (2, 3), ... of a head's dimensions are complex numbers; the first half of them is turned by
    the code's row, the second by its column, and those of the class token are multiplied by 0.
    """
    w = {name: tensor.double() for name, tensor in tensors.items()}
    H = config.num_heads
    D = config.d_model // H

    def norm(x: Tensor, name: str) -> Tensor:
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * w[name]  # eps is of no weight here

    turns = [torch.zeros(D // 2, dtype=torch.complex128)]
    wavelengths = [10_000.0 ** (-4 * k / D) for k in range(D // 4)]
    for place in range(codes_BT.shape[1]):
        row, column = divmod(place, columns)
        angles = [row * one for one in wavelengths] + [column * one for one in wavelengths]
        turns.append(torch.polar(torch.ones(D // 2).double(), torch.tensor(angles).double()))
    turn_T1C = torch.stack(turns)[:, None]
    x = torch.cat(
        [
            w["cls_embedding.embedding_table.weight"][class_B][:, None],
            w["tok_embeddings.weight"][codes_BT],
        ],
        dim=1,
    )
    for layer in range(config.num_layers):
        at = f"layers.{layer}."
        qkv = norm(x, f"{at}attention_norm.weight") @ w[f"{at}attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (H, D)) for part in qkv.chunk(3, dim=-1))
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (D // 2, 2))) * turn_T1C)
            .flatten(-2)
            .transpose(1, 2)
            for part in (q, k)
        )
        scores = q @ k.transpose(-1, -2) / D**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        seen = scores.masked_fill(later, -torch.inf).softmax(-1) @ v.transpose(1, 2)
        x = x + seen.transpose(1, 2).flatten(-2) @ w[f"{at}attention.wo.weight"].T
        h = norm(x, f"{at}ffn_norm.weight")
        gate = F.silu(h @ w[f"{at}feed_forward.w1.weight"].T)
        up = h @ w[f"{at}feed_forward.w3.weight"].T
        x = x + (gate * up) @ w[f"{at}feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ w["output.weight"].T


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a projection whose heads rotate neighbours -> those that rotate halves."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@pytest.mark.parametrize("head_dim", [8, 16])
def test_equals_llamagens_gpt(head_dim: int) -> None:
    """A picture of 3 x 4 codes in a class; ids are those of the classes, then those of the codes."""
    classes, codes, grid = 5, 24, (3, 4)
    E, H = 32, 32 // head_dim
    config = LlamaConfig(
        num_layers=3,
        d_model=E,
        num_heads=H,
        d_ff=40,
        context_length=16,
        rope="2d",
        qk_norm="none",
        norm_eps=1e-9,
    )
    config.check()
    tensors = llamagen_tensors(config, classes, codes)
    of_classes = tensors["cls_embedding.embedding_table.weight"]
    state = {
        "embed_tokens.weight": torch.cat([of_classes, tensors["tok_embeddings.weight"]]),
        "embed_output.weight": torch.cat([torch.zeros(classes + 1, E), tensors["output.weight"]]),
        "norm.weight": tensors["norm.weight"],
    }
    for layer in range(config.num_layers):
        at = f"layers.{layer}."
        q, k, v = tensors[f"{at}attention.wqkv.weight"].chunk(3)
        state |= {
            f"{at}q_proj.weight": halves(q, H),
            f"{at}k_proj.weight": halves(k, H),
            f"{at}v_proj.weight": v,
            f"{at}o_proj.weight": tensors[f"{at}attention.wo.weight"],
            f"{at}gate_proj.weight": tensors[f"{at}feed_forward.w1.weight"],
            f"{at}up_proj.weight": tensors[f"{at}feed_forward.w3.weight"],
            f"{at}down_proj.weight": tensors[f"{at}feed_forward.w2.weight"],
            f"{at}attention_norm.weight": tensors[f"{at}attention_norm.weight"],
            f"{at}ffn_norm.weight": tensors[f"{at}ffn_norm.weight"],
        }
    decoder = LlamaDecoder(config, classes + 1 + codes, SDPA, grid)
    decoder.load_state_dict(state)
    # class 5 is the one that guidance leaves out the condition with
    class_B = torch.tensor([2, 5])
    codes_BT = torch.randint(0, codes, (2, 12), generator=torch.Generator().manual_seed(1))
    tokens_BT = torch.cat([class_B[:, None], classes + 1 + codes_BT], dim=1)
    cells_BT = torch.arange(-1, 12).expand(2, -1)
    expected = llamagen_gpt(tensors, config, grid[1], class_B, codes_BT).float()
    codes_ids = range(classes + 1, classes + 1 + codes)
    assert_same(decoder.eval(), tokens_BT, expected, cells_BT=cells_BT, ids=codes_ids)
    # it can fail: an unturned class token is another model
    unturned = cells_BT.clamp(min=0)
    with torch.no_grad():
        other = decoder.logits(decoder.hidden_states(tokens_BT, cells_BT=unturned), codes_ids)
    assert (other - expected).abs().max() > 1e-2 * expected.abs().max()
