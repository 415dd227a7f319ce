"""Published image tokenizers: equal to diffusers', transformers' Chameleon and Janus on random
weights under each publisher's names; what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from cm3core.errors import CheckpointError, RecipeError
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.by_network import to_input
from cm3published.image_tokenizers.config import (
    ChameleonVQConfig,
    LDMConfig,
    LlamaGenVQConfig,
    PublicVQConfig,
    TamingConfig,
)
from cm3published.image_tokenizers.tokenizer import PublicTokenizer
from messages import tells
from published_networks import (
    TINY,
    diffusers_model,
    lightning,
    noisy,
    pictures,
    pixels_of,
    taming_names,
)


def assert_equals_diffusers(tokenizer: PublicTokenizer, model: VQModel) -> None:
    inputs = to_input(pictures())
    with torch.no_grad():
        features = model.encode(inputs).latents
        _, _, (_, _, codes) = model.quantize(features)
        expected = model.decode(features).sample
    ours = tokenizer.model.features(inputs)
    assert (ours - features).abs().max() <= 1e-5 * features.abs().max()
    codes_NYX = codes.view(3, 8, 8)
    assert np.array_equal(tokenizer.encode(pictures()).ravel(), codes.numpy().ravel())
    assert len(set(codes.tolist())) > 5, "the comparison says something"
    decoded = pixels_of(tokenizer, codes_NYX)
    assert (decoded - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("level_attention", [False, True])
@pytest.mark.parametrize("config", [TamingConfig(model="coco_oi_f16", **TINY), LDMConfig(**TINY)])
def test_tamings_files_equal_diffusers(
    tmp_path: Path, config: PublicVQConfig, level_attention: bool
) -> None:
    model = diffusers_model(level_attention=level_attention)
    file = lightning(tmp_path / "last.ckpt", taming_names(model.state_dict()))
    with torch.no_grad():
        assert_equals_diffusers(replace(config, weights=str(file)).build(), model)


def test_diffusers_own_files_are_read(tmp_path: Path) -> None:
    model = diffusers_model(level_attention=True, embed_dim=4)
    save_file(model.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    config = LDMConfig(weights=str(tmp_path / "diffusion_pytorch_model.safetensors"), **TINY)
    with torch.no_grad():
        assert_equals_diffusers(config.build(), model)


def gumbel_state() -> dict[str, Tensor]:
    """taming's GumbelVQ: the network of the others, logits, and code vectors."""
    state = taming_names(diffusers_model(level_attention=True).state_dict())
    del state["quantize.embedding.weight"]
    generator = torch.Generator().manual_seed(2)
    return state | {
        "quantize.proj.weight": torch.randn(24, 6, 1, 1, generator=generator),
        "quantize.proj.bias": torch.randn(24, generator=generator),
        "quantize.embed.weight": torch.randn(24, 6, generator=generator),
    }


def test_gumbel_takes_the_largest_logit(tmp_path: Path) -> None:
    """By hand: features of diffusers' encoder times the projection; vectors through its decoder."""
    state, model = gumbel_state(), diffusers_model(level_attention=True)
    file = lightning(tmp_path / "last.ckpt", state)
    tokenizer = TamingConfig(weights=str(file), **TINY).build()
    with torch.no_grad():
        features_NDYX = model.encode(to_input(pictures())).latents
        logits = torch.einsum(
            "ndyx,kd->nyxk", features_NDYX, state["quantize.proj.weight"][:, :, 0, 0]
        )
        codes_NYX = (logits + state["quantize.proj.bias"]).argmax(-1)
        vectors = state["quantize.embed.weight"][codes_NYX].permute(0, 3, 1, 2)
        expected = model.decode(vectors, force_not_quantize=True).sample
    codes = tokenizer.encode(pictures())
    assert np.array_equal(codes.reshape(3, 8, 8), codes_NYX.numpy())
    assert len(set(codes.ravel().tolist())) > 5
    decoded = pixels_of(tokenizer, codes_NYX)
    assert (decoded - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(tokenizer.codebook(), state["quantize.embed.weight"])
    assert np.array_equal(tokenizer.encode(pictures()), codes), "no noise"


def test_chameleons_encoder_equals_transformers(tmp_path: Path) -> None:
    """transformers has no decoder; that is diffusers', compared above."""
    torch.manual_seed(0)
    theirs = noisy(
        ChameleonVQVAE(
            ChameleonVQVAEConfig(
                embed_dim=6,
                num_embeddings=24,
                latent_channels=6,
                resolution=16,
                base_channels=32,
                channel_multiplier=[1, 2],
                num_res_blocks=2,
                attn_resolutions=[],
            )
        )
    )
    decoder = {
        name: tensor
        for name, tensor in taming_names(
            diffusers_model(level_attention=False).state_dict()
        ).items()
        if name.startswith("decoder.")
    }
    file = lightning(tmp_path / "vqgan.ckpt", dict(theirs.state_dict()) | decoder)
    tokenizer = ChameleonVQConfig(weights=str(file), **TINY).build()
    with torch.no_grad():
        codes = theirs.encode(to_input(pictures())).image_tokens
    assert np.array_equal(tokenizer.encode(pictures()).ravel(), codes.numpy().ravel())
    assert len(set(codes.ravel().tolist())) > 5


def janus() -> JanusVQVAE:
    """Janus' tokenizer with code vectors of length 1, as LlamaGen initialises them.

    transformers compares with the vectors as they are, and LlamaGen on the unit sphere: the nearest
    are the same if the vectors have equal lengths.
    """
    torch.manual_seed(0)
    model = noisy(
        JanusVQVAE(
            JanusVQVAEConfig(
                embed_dim=8,
                num_embeddings=24,
                latent_channels=6,
                base_channels=32,
                channel_multiplier=[1, 2],
                num_res_blocks=2,
                num_patches=8,
            )
        )
    )
    with torch.no_grad():
        weight = model.quantize.embedding.weight
        weight.copy_(torch.nn.functional.normalize(weight, dim=-1))
    return model


def llamagen_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of Janus -> LlamaGen's."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"(encoder\.down|decoder\.up)\.(\d)\.block\.", r"\1.\2.res.", name)
        name = re.sub(r"(encoder)\.down\.|(decoder)\.up\.", r"\1\2.conv_blocks.", name)
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{part}.", f".mid.{number}.")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("names", ["llamagen", "janus", "transformers"])
def test_llamagen_equals_janus_of_transformers(tmp_path: Path, names: str) -> None:
    theirs = janus()
    state = dict(theirs.state_dict())
    if names == "llamagen":
        content = llamagen_names(state) | {"quantize.codebook_used": torch.zeros(64)}
        torch.save({"model": content, "optimizer": {}}, tmp_path / "weights.pt")
    elif names == "janus":
        prefixed = {f"gen_vision_model.{key}": t for key, t in llamagen_names(state).items()}
        torch.save(prefixed | {"lm_head.weight": torch.zeros(2)}, tmp_path / "weights.pt")
    else:
        prefixed = {f"model.vqmodel.{name}": t.contiguous() for name, t in state.items()}
        save_file(prefixed | {"lm_head.weight": torch.zeros(2)}, tmp_path / "weights.pt")
        (tmp_path / "weights.pt").rename(tmp_path / "model.safetensors")
    file = next(tmp_path.iterdir())
    tokenizer = LlamaGenVQConfig(weights=str(file), **TINY).build()
    with torch.no_grad():
        codes = theirs.encode(to_input(pictures())).image_tokens.view(3, 64)
        expected = theirs.decode(codes)
    assert np.array_equal(tokenizer.encode(pictures()), codes.numpy())
    assert len(set(codes.ravel().tolist())) > 5
    decoded = pixels_of(tokenizer, codes.view(3, 8, 8))
    assert (decoded - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.allclose(tokenizer.codebook().norm(dim=1), torch.ones(24))


def test_llamagen_compares_on_the_unit_sphere(tmp_path: Path) -> None:
    """By hand, with code vectors of different lengths."""
    theirs = janus()
    with torch.no_grad():
        lengths = torch.linspace(0.2, 3.0, 24)[:, None]
        theirs.quantize.embedding.weight.mul_(lengths)
        features_NDYX = theirs.quant_conv(theirs.encoder(to_input(pictures())))
        vectors = theirs.quantize.embedding.weight
        cosines = torch.einsum(
            "ndyx,kd->nkyx", features_NDYX, vectors / vectors.norm(dim=1)[:, None]
        )
    torch.save({"model": llamagen_names(dict(theirs.state_dict()))}, tmp_path / "a.pt")
    tokenizer = LlamaGenVQConfig(weights=str(tmp_path / "a.pt"), **TINY).build()
    assert np.array_equal(tokenizer.encode(pictures()), cosines.argmax(1).flatten(1).numpy())


# ---- as a component


@pytest.fixture(scope="module")
def gumbel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lightning(tmp_path_factory.mktemp("taming") / "last.ckpt", gumbel_state())


class TestTaming(ImageTokenizerContract):
    @pytest.fixture(autouse=True)
    def _weights(self, gumbel_file: Path) -> None:
        type(self).config = TamingConfig(weights=str(gumbel_file), **TINY)

    def waive_decoded_pictures_are_the_encoded_ones(self) -> str:
        return "its weights are random"

    config = TamingConfig(**TINY)


def test_pictures_may_have_any_size(gumbel_file: Path) -> None:
    config = TamingConfig(weights=str(gumbel_file), **(TINY | {"resolution": 20, "width": 12}))
    assert (config.grid, config.image_size) == ((10, 6), (20, 12))
    tokenizer = config.build()
    codes = tokenizer.encode(pictures(20, 12))
    assert codes.shape == (3, 60)
    assert tokenizer.decode(codes).shape == (3, 20, 12, 3)
    square = TamingConfig(weights=str(gumbel_file), **TINY).build()
    assert square.fingerprint != tokenizer.fingerprint


def test_a_saved_copy_needs_no_publisher(gumbel_file: Path, tmp_path: Path) -> None:
    config = TamingConfig(weights=str(gumbel_file), **TINY)
    tokenizer = config.build()
    tokenizer.save(tmp_path)
    again = replace(config, weights="gone.ckpt").load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    codes = tokenizer.encode(pictures())
    assert np.array_equal(again.encode(pictures()), codes)
    assert np.array_equal(again.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize(
    ("config", "grid", "codes", "downsampling"),
    [
        (TamingConfig(), (32, 32), 8192, 8),
        (TamingConfig(model="imagenet_f16_16384"), (16, 16), 16_384, 16),
        (TamingConfig(model="imagenet_f16_1024"), (16, 16), 1024, 16),
        (TamingConfig(model="coco_oi_f16", width=512), (16, 32), 8192, 16),
        (LDMConfig(), (32, 32), 16_384, 8),
        (LDMConfig(model="vq_f8_n256"), (32, 32), 256, 8),
        (LDMConfig(model="vq_f16"), (16, 16), 16_384, 16),
        (ChameleonVQConfig(), (32, 32), 8192, 16),
        (LlamaGenVQConfig(), (16, 16), 16_384, 16),
        (LlamaGenVQConfig(model="vq_8", resolution=384), (48, 48), 16_384, 8),
    ],
)
def test_published_sizes(
    config: PublicVQConfig, grid: tuple[int, int], codes: int, downsampling: int
) -> None:
    config.check()
    assert (config.grid, config.codebook_size) == (grid, codes)
    assert config.facts.downsampling == downsampling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gumbel"}, "image_tokenizer.model: 'gumbel' is not known"),
        ({"resolution": 100}, "image_tokenizer.resolution: is 100, must be a multiple of"),
        ({"width": 12}, "image_tokenizer.width: is 12, must be a multiple of"),
        ({"downsampling": 6}, "image_tokenizer.downsampling: is 6, must be a power of 2"),
        ({"num_codes": 0}, "image_tokenizer.num_codes: is 0, must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        TamingConfig(**options).check()
    assert str(raised.value).startswith(message)


def refusal(config: PublicVQConfig) -> str:
    with pytest.raises(CheckpointError) as raised:
        config.build()
    return str(raised.value)


def test_other_files_are_refused_by_name(gumbel_file: Path, tmp_path: Path) -> None:
    assert tells(refusal(TamingConfig()), "image_tokenizer.weights: is null: the ... 'gumbel_f8'")
    where = str(gumbel_file)
    assert tells(
        refusal(TamingConfig(model="coco_oi_f16", weights=where, **TINY)),
        f"{where}: has 24 codes of 2 ... expects 24 of 2",
    )
    assert "SHA-256" in refusal(TamingConfig(weights=where, weights_sha256="0" * 64, **TINY))
    state = gumbel_state()

    def changed(**changes: Any) -> str:
        content = {name: t for name, t in state.items() if changes.get(name, t) is not None}
        content |= {name: t for name, t in changes.items() if t is not None}
        return refusal(TamingConfig(weights=str(lightning(tmp_path / "a.ckpt", content)), **TINY))

    assert "encoder.conv_in.weight is missing" in changed(**{"encoder.conv_in.weight": None})
    assert "decoder.norm_out.bias is missing" in changed(**{"decoder.norm_out.bias": None})
    assert "more.weight is not used" in changed(**{"more.weight": torch.zeros(1)})
    assert "quant_conv.bias is [5], not [6]" in changed(**{"quant_conv.bias": torch.zeros(5)})
    assert "quant_conv.bias contains NaN" in changed(
        **{"quant_conv.bias": torch.full((6,), torch.nan)}
    )
    encoder = {name: t for name, t in state.items() if not name.startswith("decoder.")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    assert "has no decoder" in refusal(
        TamingConfig(weights=str(tmp_path / "encoder.safetensors"), **TINY)
    )


def test_the_error_names_the_model_that_the_file_is_of(tmp_path: Path) -> None:
    """A file of 16,384 codes of 16 px, given as gumbel_f8."""
    state = taming_names(diffusers_model(level_attention=False).state_dict())
    for level in range(2, 5):
        state |= {
            f"encoder.down.{level}.{name.partition('.1.')[2]}": tensor
            for name, tensor in state.items()
            if name.startswith("encoder.down.1.")
        }
    state["quantize.embedding.weight"] = torch.zeros(16_384, 6)
    message = refusal(TamingConfig(weights=str(lightning(tmp_path / "a.ckpt", state))))
    assert tells(message, "... has 16,384 codes of 16 ... expects 8,192")
    assert message.endswith("next: set image_tokenizer.model=imagenet_f16_16384")
