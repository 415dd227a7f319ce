"""IBQ, MoVQGAN and Emu3's tokenizers: equal to diffusers', transformers' Emu3 and to formulas, on random
weights under each publisher's names; what is refused. DALL-E's: `test_dall_e`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.by_network import to_input
from cm3published.image_tokenizers import model as public_model
from cm3published.image_tokenizers.config import (
    DalleConfig,
    Emu3VQConfig,
    IBQConfig,
    LDMConfig,
    MoVQConfig,
    PublicVQConfig,
)
from messages import tells
from published_networks import (
    TINY,
    assert_near,
    diffusers_model,
    lightning,
    noisy,
    pictures,
    pixels_of,
    refusal,
    taming_names,
)

# ---- IBQ


def ibq_state() -> dict[str, Tensor]:
    """Its network has four blocks a level; codes of different lengths tell products from distances."""
    state = taming_names(diffusers_model(level_attention=True, num_blocks=4).state_dict())
    state["quantize.embedding.weight"] *= torch.linspace(0.2, 3.0, 24)[:, None]
    return state


@pytest.mark.parametrize("products", [2**25, 100])
def test_ibq_takes_the_largest_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: int
) -> None:
    """By hand, on the features of diffusers' encoder; pixels are those of its decoder."""
    monkeypatch.setattr(public_model, "_PRODUCTS", products)
    state, theirs = ibq_state(), diffusers_model(level_attention=True, num_blocks=4)
    file = lightning(tmp_path / "imagenet256_16384.ckpt", state)
    tokenizer = IBQConfig(weights=str(file), **TINY).build()
    vectors_KD = state["quantize.embedding.weight"]
    with torch.no_grad():
        features_NDYX = theirs.encode(to_input(pictures())).latents
        codes_NYX = torch.einsum("ndyx,kd->nkyx", features_NDYX, vectors_KD).argmax(1)
        chosen_NDYX = vectors_KD[codes_NYX].permute(0, 3, 1, 2)
        expected = theirs.decode(chosen_NDYX, force_not_quantize=True).sample
    codes = tokenizer.encode(pictures())
    assert np.array_equal(codes.reshape(3, 8, 8), codes_NYX.numpy())
    assert len(set(codes.ravel().tolist())) > 3
    assert_near(pixels_of(tokenizer, codes_NYX), expected)
    nearest = LDMConfig(weights=str(file), **TINY).build()
    assert not np.array_equal(nearest.encode(pictures()), codes)


def test_ibq_reads_the_averages_of_its_weights(tmp_path: Path) -> None:
    """Below `model_ema`, names without dots; those of the losses and the counts are left out."""
    state = ibq_state()
    last = {name: tensor + 1.0 for name, tensor in state.items()}
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
    counts = {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.lossdiscriminatormain0weight": torch.zeros(2),
    }
    file = lightning(tmp_path / "a.ckpt", last | averages | counts)
    tokenizer = IBQConfig(weights=str(file), **TINY).build()
    for name, tensor in tokenizer.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    stray = {"model_ema.encodermore": torch.zeros(1)}
    file = lightning(tmp_path / "b.ckpt", last | averages | stray)
    assert "model_ema.encodermore is not used" in refusal(IBQConfig(weights=str(file), **TINY))
    # a publisher without averages: they are no part of the network
    file = lightning(tmp_path / "c.ckpt", last | averages)
    assert "is not used" in refusal(LDMConfig(weights=str(file), **TINY))


# ---- MoVQGAN


@pytest.mark.parametrize("names", ["movqgan", "diffusers"])
@pytest.mark.parametrize("level_attention", [False, True])
def test_movqgan_equals_diffusers(tmp_path: Path, names: str, level_attention: bool) -> None:
    theirs = diffusers_model(level_attention=level_attention, embed_dim=4, norm_type="spatial")
    if names == "movqgan":
        file = tmp_path / "movqgan_270M.ckpt"
        content = taming_names(theirs.state_dict())
        assert "decoder.up.0.block.2.norm2.norm_layer.weight" in content
        assert "decoder.mid.attn_1.norm.conv_y.weight" in content
        torch.save(content | {"ema_decoder.conv_inweight": torch.zeros(1)}, file)
    else:
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file(theirs.state_dict(), file)
    tokenizer = MoVQConfig(weights=str(file), **TINY).build()
    with torch.no_grad():
        features = theirs.encode(to_input(pictures())).latents
        _, _, (_, _, codes) = theirs.quantize(features)
        expected = theirs.decode(features).sample
        assert_near(tokenizer.model.features(to_input(pictures())), features)
    assert np.array_equal(tokenizer.encode(pictures()).ravel(), codes.numpy().ravel())
    assert len(set(codes.tolist())) > 5
    assert_near(pixels_of(tokenizer, codes.view(3, 8, 8)), expected)


# ---- Emu3


def emu3(*, halvings: int = 2) -> Emu3VQVAE:
    torch.manual_seed(0)
    config = Emu3VQVAEConfig(
        codebook_size=24,
        embed_dim=4,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=2,
        attn_resolutions=[1],
        hidden_size=64,
        temporal_downsample_factor=2**halvings,
    )
    model = noisy(Emu3VQVAE(config))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model


def emu3_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> those of BAAI's own file."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("down_block.down", "down").replace("up_block.up", "up")
        name = name.replace("middle_block.attn_norm", "mid.attn_1.norm")
        name = name.replace("middle_block", "mid")
        name = re.sub(r"attn_norms\.(\d)", r"attn.\1.norm", name)
        if match := re.search(r"(attn(?:_1|\.\d))\.(q|k|v|out)_proj\.(\w+)$", name):
            part = "proj_out" if match[2] == "out" else match[2]
            name = f"{name[: match.start()]}{match[1]}.{part}.{match[3]}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[name] = tensor.contiguous()
    return renamed


@pytest.mark.parametrize(
    ("names", "halvings"),
    [
        ("emu3", 1),
        ("transformers", 2),
        ("whole model", 1),
        pytest.param("emu3", 2, marks=pytest.mark.slow),
        pytest.param("transformers", 1, marks=pytest.mark.slow),
        pytest.param("whole model", 2, marks=pytest.mark.slow),
    ],
)
def test_emu3_equals_transformers(tmp_path: Path, names: str, halvings: int) -> None:
    theirs = emu3(halvings=halvings)
    state = dict(theirs.state_dict())
    if names == "emu3":
        state = emu3_names(state)
        assert "encoder.down.1.attn.0.norm.weight" in state
        assert "decoder.up.1.attn.2.norm.conv_b.bias" in state
        assert "decoder.time_res_stack.1.norm2.num_batches_tracked" in state
    elif names == "whole model":
        state = {f"model.vqmodel.{name}": tensor for name, tensor in state.items()}
        state["lm_head.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "model.safetensors")
    config = Emu3VQConfig(weights=str(tmp_path / "model.safetensors"), **TINY)
    tokenizer = config.build()
    with torch.no_grad():
        given = theirs.encode(to_input(pictures()), image_sizes=torch.tensor([[16, 16]] * 3))
        codes_NYX = torch.stack(list(given.image_tokens))
        expected = theirs.decode(codes_NYX)
        assert_near(
            tokenizer.model.encoder(to_input(pictures())), given.last_hidden_state.squeeze(1)
        )
    assert np.array_equal(tokenizer.encode(pictures()), codes_NYX.flatten(1).numpy())
    assert len(set(codes_NYX.ravel().tolist())) > 3
    assert_near(pixels_of(tokenizer, codes_NYX), expected)
    tokenizer.save(tmp_path)
    again = replace(config, weights=None).load(tmp_path)
    assert np.array_equal(
        again.decode(tokenizer.encode(pictures())), tokenizer.decode(tokenizer.encode(pictures()))
    )


# ---- as components


def _movq_file(folder: Path) -> Path:
    theirs = diffusers_model(level_attention=True, embed_dim=4, norm_type="spatial")
    save_file(theirs.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


class TestMoVQ(ImageTokenizerContract):
    config = MoVQConfig(**TINY)

    @pytest.fixture(autouse=True)
    def _weights(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = _movq_file(tmp_path_factory.mktemp("movq"))
        type(self).config = MoVQConfig(weights=str(file), **TINY)

    def waive_decoded_pictures_are_the_encoded_ones(self) -> str:
        return "its weights are random"


@pytest.mark.parametrize(
    ("config", "grid", "codes", "downsampling"),
    [
        (IBQConfig(), (16, 16), 16_384, 16),
        (IBQConfig(model="ibq_262144", resolution=512, width=256), (32, 16), 262_144, 16),
        (IBQConfig(model="emu3_5"), (32, 32), 131_072, 16),
        (MoVQConfig(), (32, 32), 16_384, 8),
        (MoVQConfig(model="kandinsky", resolution=512), (64, 64), 16_384, 8),
        (Emu3VQConfig(), (64, 64), 32_768, 8),
        (DalleConfig(), (32, 32), 8_192, 8),
    ],
)
def test_published_sizes(
    config: PublicVQConfig, grid: tuple[int, int], codes: int, downsampling: int
) -> None:
    config.check()
    assert (config.grid, config.codebook_size) == (grid, codes)
    assert config.facts.downsampling == downsampling


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    file = _movq_file(tmp_path)
    assert tells(
        refusal(LDMConfig(weights=str(file), **TINY)),
        f"{file}: has 24 codes of 2 ... MoVQGAN ... expects 24",
    )
    assert "in Emu3's network" in refusal(Emu3VQConfig(weights=str(file), **TINY))
    state = emu3_names(dict(emu3().state_dict()))
    missing = "decoder.time_res_stack.0.norm1.running_var"
    save_file({n: t for n, t in state.items() if n != missing}, tmp_path / "emu3.safetensors")
    assert f"{missing} is missing" in refusal(
        Emu3VQConfig(weights=str(tmp_path / "emu3.safetensors"), **TINY)
    )
