"""The llama decoder: the kit's laws, its sizes, what it learns and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cm3core.errors import CM3Error, DocumentError, RecipeError
from cm3core.interfaces.decoder import Decoder
from cm3kits.decoder import DecoderContract
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders import cache as pool
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.decoders.llama.model import LlamaDecoder, LlamaInference
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from kit_variants import Variant
from profiles import examples

TINY = LlamaConfig(num_layers=2, d_model=24, num_heads=6, d_ff=40, context_length=24)
GROUPED = replace(TINY, num_key_heads=2)
VOCABULARY = CM3LeonVocabulary(num_text=30, num_image=16, num_sentinels=4)
SDPA = SDPAAttentionConfig().build()


def build(config: LlamaConfig, seed: int = 0) -> LlamaDecoder:
    torch.manual_seed(seed)
    return config.build(VOCABULARY, SDPA, (4, 4))


class TestLlama(DecoderContract):
    config = TINY


class TestGroupedOnSDPA(Variant, DecoderContract):
    attention = SDPA
    config = GROUPED


class TestSwinNormsAndBiases(Variant, DecoderContract):
    attention = SDPA
    config = replace(
        GROUPED, swin_norm=True, qkv_bias=True, qk_norm="rms_norm", qk_norm_groups=2, head_dim=6
    )


class TestGridPositions(Variant, DecoderContract):
    """Queries and keys of image codes only, turned by row and column."""

    config = replace(GROUPED, rope="2d", qk_norm="none", head_dim=8)


class TestAxesOfCodes(Variant, DecoderContract):
    config = replace(GROUPED, code_axes={"slot": 3, "x": 5})


class TestTokenShift(Variant, DecoderContract):
    attention = SDPA
    config = replace(TINY, token_shift=True, qkv_bias=True, code_axes={"slot": 3, "x": 5})


class TestTokenShiftAsOnADevice(Variant, DecoderContract):
    def make(self) -> Decoder:
        torch.manual_seed(0)
        made = SharingLlama(
            replace(TINY, token_shift=True), self.vocabulary.size, self.attention, self.grid
        )
        made.on_cpu = False
        return made


class TestTiedWithoutQueryNorms(Variant, DecoderContract):
    config = replace(GROUPED, qk_norm="none", tie_embeddings=True)


OWN_CODES = replace(GROUPED, qk_norm="none", code_embed_dim=5, code_head_dim=20)


class TestOwnCodes(DecoderContract):
    """Image codes with embeddings and a head of their own, ids of texts and sentinels around them."""

    config = OWN_CODES


class TestOwnCodesTied(Variant, DecoderContract):
    config = replace(OWN_CODES, tie_embeddings=True)


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
    max_examples = examples(5)

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
        {"code_embed_dim": 5, "code_head_dim": 20},
        {"code_embed_dim": 5, "code_head_dim": 20, "tie_embeddings": True},
    ],
)
def test_parameters_are_counted_without_building(options: dict[str, Any]) -> None:
    config = replace(TINY, **options)
    assert config.num_parameters(VOCABULARY, (4, 4)) == sum(
        parameter.numel() for parameter in build(config).parameters()
    )


def test_bytes_of_the_cache_are_those_of_the_decoders() -> None:
    inference = build(GROUPED).for_inference("fp32")
    assert GROUPED.cache_bytes(7, 4) == inference.cache_bytes(7) == 7 * 2 * 2 * (2 * 4) * 4


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
    chameleon = CM3LeonVocabulary(num_text=57_340, num_image=8_192, num_sentinels=1)
    assert chameleon.size == 65_536
    count = config.num_parameters(chameleon, (32, 32))
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


def some_tokens(vocab_size: int) -> Tensor:
    return torch.randint(4, vocab_size, (2, 13), generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_head_of_codes_in_fewer_bits(precision: str) -> None:
    """Both heads, and a slice over their border, are near those in float32."""
    config = replace(
        OWN_CODES, d_model=64, num_heads=4, d_ff=64, code_embed_dim=8, code_head_dim=64
    )
    decoder = build(replace(config, init_std=0.2)).eval()
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    own = decoder.own_head
    assert own is not None
    arranged, exact = decoder.for_inference(precision), decoder.for_inference("fp32")
    for ids in (None, own, range(own.start - 3, own.stop + 2), range(own.start)):
        expected = exact.logits(hidden, ids)
        found = arranged.logits(hidden, ids).float()
        assert found.shape == expected.shape
        assert (found - expected).std() < 0.05 * expected.std()


def test_codes_begin_as_the_codebook() -> None:
    decoder = build(OWN_CODES)
    head = decoder.head_weight().clone()
    assert decoder.codes_in is not None
    codebook = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    decoder.start_from_codebook(codebook, VOCABULARY)
    own = torch.cdist(codebook.double(), codebook.double()).flatten()
    weight = decoder.codes_in.embed.weight.detach().double()
    found = torch.cdist(weight, weight).flatten()
    assert torch.corrcoef(torch.stack([own, found]))[0, 1] > 0.999
    assert torch.equal(decoder.head_weight(), head)


def test_one_of_the_two_alone_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        replace(TINY, code_embed_dim=8).check()
    assert "decoder.code_head_dim" in str(caught.value)
    assert "set together with decoder.code_embed_dim" in str(caught.value)


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
        ({"num_heads": 5}, "decoder.num_heads: 5 heads don't divide d_model = 24"),
        ({"head_dim": 5}, "decoder.head_dim: is 5, must be even, for rotary positions"),
        ({"num_key_heads": 4}, "decoder.num_key_heads: 4 key heads don't divide 6 heads"),
        ({"qk_norm": "layernorm"}, "decoder.qk_norm: 'layernorm' is not known"),
        ({"qk_norm_groups": 4}, "decoder.qk_norm_groups: 4 norms don't divide 6 key heads"),
        ({"dropout": 1.0}, "decoder.dropout: is 1.0, must be in [0, 1)"),
        ({"rope": "3d"}, "decoder.rope: '3d' is not known"),
        ({"rope": "2d", "head_dim": 6}, "decoder.head_dim: is 6, must be a multiple of 4: half"),
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
    with pytest.raises(CM3Error, match="3 codes, but the vocabulary has 16"):
        decoder.start_from_codebook(torch.zeros(3, 4), VOCABULARY)
    with pytest.raises(CM3Error, match="the context is 24"):
        decoder.for_inference().allocate_cache(1, 25)


class DefaultLoss(LlamaDecoder):
    """With the interface's own loss."""

    def loss_sums(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return Decoder.loss_sums(self, *tensors, **options)


class TestOwnCodesWithTheDefaultLoss(DecoderContract):
    max_examples = 5

    def make(self) -> Decoder:
        torch.manual_seed(0)
        config, image = OWN_CODES, self.vocabulary.image
        return DefaultLoss(config, self.vocabulary.size, self.attention, self.grid, image)
