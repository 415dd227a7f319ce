"""The llama decoder: the kit's laws, its sizes, and equality with transformers' Chameleon, Llama,
Qwen2 and Qwen3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers import LlamaConfig as HFLlamaConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from cm3core.errors import CM3Error, DocumentError, RecipeError
from cm3core.interfaces.decoder import Decoder
from cm3core.testing.decoder import DecoderContract
from cm3core.vocab import Vocabulary
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import pool
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.decoders.llama.inference import LlamaInference
from cm3plugins.decoders.llama.model import LlamaDecoder

TINY = LlamaConfig(num_layers=2, d_model=24, num_heads=6, d_ff=40, context_length=24)
GROUPED = replace(TINY, num_key_heads=2)
VOCABULARY = Vocabulary(num_text=30, num_image=16, num_sentinels=4)
SDPA = SDPAAttentionConfig().build()


def build(config: LlamaConfig, seed: int = 0) -> LlamaDecoder:
    torch.manual_seed(seed)
    return config.build(VOCABULARY, SDPA, (4, 4))


class TestLlama(DecoderContract):
    config = TINY


class TestGroupedOnSDPA(DecoderContract):
    attention = SDPA
    config = GROUPED


class TestSwinNormsAndBiases(DecoderContract):
    attention = SDPA
    config = replace(
        GROUPED, swin_norm=True, qkv_bias=True, qk_norm="rms_norm", qk_norm_groups=2, head_dim=6
    )


class TestTiedWithoutQueryNorms(DecoderContract):
    config = replace(GROUPED, qk_norm="none", tie_embeddings=True)


class SharingLlama(LlamaDecoder):
    """Shares whatever forked rows have in common, however short."""

    on_cpu = True

    def for_inference(self, precision: str = "auto") -> LlamaInference:
        arranged = super().for_inference(precision)
        arranged.on_cpu = self.on_cpu
        arranged.layout = replace(arranged.layout, on_cpu=self.on_cpu)
        return arranged


class TestGroupedSegments(DecoderContract):
    attention = SDPA
    max_examples = 30

    @pytest.fixture(autouse=True)
    def _everything_pays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "SHARING_PAYS", 0)

    def make(self) -> Decoder:
        torch.manual_seed(0)
        return SharingLlama(GROUPED, self.vocabulary.size, self.attention, self.grid)


class TestGroupedSegmentsAsOnADevice(TestGroupedSegments):
    """The work list of `segment_decode`, and whole rows gathered for longer chunks; here on the
    CPU."""

    def make(self) -> Decoder:
        made = super().make()
        assert isinstance(made, SharingLlama)
        made.on_cpu = False
        return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_heads": 2},
        {"num_key_heads": 2, "qk_norm_groups": 2},
        {"qk_norm": "rms_norm", "qk_norm_groups": 1},
        {"qk_norm": "none", "qkv_bias": True},
        {"tie_embeddings": True, "head_dim": 8, "d_ff": None},
    ],
)
def test_parameters_are_counted_without_building(options: dict[str, Any]) -> None:
    config = replace(TINY, **options)
    assert config.num_parameters(VOCABULARY, (4, 4)) == sum(
        parameter.numel() for parameter in build(config).parameters()
    )


@pytest.mark.parametrize(
    ("options", "inner", "billions"),
    [
        ({"num_layers": 32, "d_model": 4096, "num_heads": 32}, 11_008, 7.01),
        ({"num_layers": 48, "d_model": 8192, "num_heads": 64, "num_key_heads": 8}, 22_016, 34.3),
    ],
)
def test_chameleons_sizes(options: dict[str, Any], inner: int, billions: float) -> None:
    """The widths and counts that Meta's formula gives for 4,096 and 8,192."""
    config = LlamaConfig(**options)
    assert config.inner == inner
    chameleon = Vocabulary(num_text=57_340, num_image=8_192, num_sentinels=1)
    assert chameleon.size == 65_536
    count = config.num_parameters(chameleon, (32, 32))
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


# ---- parity with transformers

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
    key = key.removeprefix("model.")
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


def assert_same(decoder: LlamaDecoder, tokens_BT: Tensor, expected_BTV: Tensor) -> None:
    """Logits of training, of a prefill and of one token at a time are all the oracle's."""
    scale = expected_BTV.abs().max()
    with torch.no_grad():
        whole = decoder.logits(decoder.hidden_states(tokens_BT))
        assert (whole - expected_BTV).abs().max() <= 1e-5 * scale
        inference = decoder.for_inference("fp32")
        B, T = tokens_BT.shape
        cache, steps = inference.allocate_cache(B, T), []
        for first, last in [(0, 5), *((place, place + 1) for place in range(5, T))]:
            hidden = inference.hidden_states(tokens_BT[:, first:last], cache=cache)
            cache.advance([last - first] * B)
            steps.append(inference.logits(hidden))
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


# ---- what else it does


def test_a_norm_of_a_group_is_that_of_each_of_its_heads() -> None:
    shared = build(replace(GROUPED, qk_norm_groups=2))
    with torch.no_grad():
        for block in shared.blocks():
            for norm in (block.q_norm, block.k_norm):
                norm.weight.copy_(torch.rand_like(norm.weight))
                norm.bias.copy_(torch.rand_like(norm.bias))
    state = shared.state_dict()
    for key, value in state.items():
        if "q_norm" in key:
            state[key] = value.repeat_interleave(3, dim=0)
    single = build(GROUPED, seed=1)
    single.load_state_dict(state)
    tokens_BT = some_tokens(VOCABULARY.size)
    assert torch.equal(shared.hidden_states(tokens_BT), single.hidden_states(tokens_BT))


def test_int8_is_near_and_bf16_runs() -> None:
    decoder = build(replace(GROUPED, d_model=96, d_ff=128, init_std=0.1)).eval()
    tokens_BT = some_tokens(VOCABULARY.size)
    logits = {}
    with torch.no_grad():
        for precision in ("fp32", "bf16", "int8"):
            inference = decoder.for_inference(precision)
            hidden = inference.hidden_states(tokens_BT, cache=inference.allocate_cache(2, 13))
            logits[precision] = inference.logits(hidden).float()
    for precision in ("bf16", "int8"):
        error = (logits[precision] - logits["fp32"]).std() / logits["fp32"].std()
        assert 0 < error < 0.1, precision


def test_it_learns_and_norms_have_no_weight_decay() -> None:
    decoder = build(replace(GROUPED, dropout=0.1, activation_checkpointing=True)).train()
    groups = decoder.parameter_groups()
    assert all(parameter.ndim == 2 for parameter in groups["matrix"])
    assert len(groups["matrix"]) == 2 * 7
    assert len(groups["vector"]) == 2 * (2 + 4) + 1
    assert len(groups["embedding"]) == 2
    tokens_BT = some_tokens(VOCABULARY.size)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        hidden_NE = decoder.hidden_states(tokens_BT)[:, :-1].flatten(0, 1)
        targets_N = tokens_BT[:, 1:].flatten()
        loss, _ = decoder.loss_sums(
            hidden_NE, targets_N, torch.ones(len(targets_N)), torch.zeros_like(targets_N)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / len(targets_N))
    assert losses[0] == pytest.approx(torch.tensor(VOCABULARY.size).log().item(), rel=0.1)
    assert losses[-1] < 0.3 * losses[0]


def test_start_from_codebook_sets_the_image_rows_of_both_tables() -> None:
    decoder = build(TINY)
    before = decoder.embed_tokens.weight.clone()
    codebook = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    decoder.start_from_codebook(codebook, VOCABULARY)
    image = slice(VOCABULARY.image.start, VOCABULARY.image.stop)
    rows = decoder.embed_tokens.weight[image]
    assert torch.equal(rows, decoder.head_weight()[image])
    centred = codebook - codebook.mean(0)
    scale = torch.cdist(rows, rows)[0, 1] / torch.cdist(centred, centred)[0, 1]
    torch.testing.assert_close(torch.cdist(rows, rows), scale * torch.cdist(centred, centred))
    assert torch.equal(decoder.embed_tokens.weight[: image.start], before[: image.start])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "decoder.num_heads: 5 heads don't divide d_model 24"),
        ({"head_dim": 5}, "decoder.head_dim: is 5, must be even: it rotates"),
        ({"num_key_heads": 4}, "decoder.num_key_heads: 4 key heads don't divide 6 heads"),
        ({"qk_norm": "layernorm"}, "decoder.qk_norm: 'layernorm' is not known"),
        ({"qk_norm_groups": 4}, "decoder.qk_norm_groups: 4 norms don't divide 6 key heads"),
        ({"dropout": 1.0}, "decoder.dropout: is 1.0, must be in [0, 1)"),
        ({"rope_theta": 0.0}, "decoder.rope_theta: is 0.0, must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        replace(TINY, **options).check()
    assert str(raised.value).startswith(message)


def test_wrong_inputs_are_refused() -> None:
    decoder = build(TINY)
    with pytest.raises(DocumentError, match="25 tokens, but the decoder's context is 24"):
        decoder.hidden_states(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(CM3Error, match="3 codes, the vocabulary has 16"):
        decoder.start_from_codebook(torch.zeros(3, 4), VOCABULARY)
    with pytest.raises(CM3Error, match="the context is 24"):
        decoder.for_inference().allocate_cache(1, 25)
