"""DALL-E's image tokenizer: equal to FLAVA's and to its description, on random weights; files that are refused."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3core.errors import RecipeError
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.by_network import to_input
from cm3published.image_tokenizers.config import (
    DalleConfig,
)
from messages import tells
from published_networks import (
    assert_near,
    pictures,
    pixels_of,
    refusal,
)
from tiny_dall_e import dall_e_names, decoder_tensors, flava, squeezed


class Conv2d(nn.Module):
    """A stand-in for `dall_e.utils.Conv2d`, which keeps facts about itself next to its weights."""

    __module__ = "dall_e.utils"

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.n_in, self.device, self.requires_grad = weight.shape[1], torch.device("cpu"), False
        self.w, self.b = nn.Parameter(weight), nn.Parameter(bias)


def dall_e_module(tensors: dict[str, Tensor]) -> nn.Module:
    """Modules of an unknown package, whose weights have these names."""
    top = nn.Sequential()
    for name in (name.removesuffix(".w") for name in tensors if name.endswith(".w")):
        *parents, last = name.split(".")
        module: nn.Module = top
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Sequential())
                module._modules[parent].add_module("relu_1", nn.ReLU())
            module = module._modules[parent]
        module.add_module(last, Conv2d(tensors[f"{name}.w"], tensors[f"{name}.b"]))
    return top


def save_pickle(module: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As OpenAI's files: a pickled module of a package that isn't there when it is read."""
    package, utils = types.ModuleType("dall_e"), types.ModuleType("dall_e.utils")
    utils.Conv2d = Conv2d  # type: ignore[attr-defined]  # a stand-in
    with monkeypatch.context() as while_saving:
        while_saving.setitem(sys.modules, "dall_e", package)
        while_saving.setitem(sys.modules, "dall_e.utils", utils)
        torch.save(module, path)
    return path


def decoded(w: dict[str, Tensor], codes_NYX: Tensor) -> Tensor:
    """Pixels in [0, 1] of DALL-E's decoder, from the description of its layers."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, w[f"{name}.w"], w[f"{name}.b"], padding="same")

    x = conv("blocks.input", F.one_hot(codes_NYX, 24).permute(0, 3, 1, 2).float())
    for number in range(1, 5):
        for block in (1, 2):
            at, h = f"blocks.group_{number}.block_{block}", x
            for layer in range(1, 5):
                h = conv(f"{at}.res_path.conv_{layer}", h.relu())
            x = (conv(f"{at}.id_path", x) if f"{at}.id_path.w" in w else x) + h / 64
        if number < 4:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    mean = conv("blocks.output.conv", x.relu())[:, :3].sigmoid()
    return ((mean - 0.1) / 0.8).clamp(0, 1)


DALLE: dict[str, Any] = {"num_codes": 24, "resolution": 16}


@pytest.fixture(scope="module")
def dall_e_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dall_e")
    with pytest.MonkeyPatch.context() as monkeypatch:
        encoder = dall_e_module(dall_e_names(dict(flava().state_dict())))
        decoder = dall_e_module(decoder_tensors())
        return (
            save_pickle(encoder, folder / "encoder.pkl", monkeypatch),
            save_pickle(decoder, folder / "decoder.pkl", monkeypatch),
        )


def dall_e_config(files: tuple[Path, Path]) -> DalleConfig:
    return DalleConfig(weights=str(files[0]), decoder_weights=str(files[1]), **DALLE)


@pytest.mark.parametrize("encoder", ["pickle", "transformers", "whole flava"])
def test_dall_e_equals_flava_and_its_description(
    tmp_path: Path, dall_e_files: tuple[Path, Path], encoder: str
) -> None:
    theirs, config = flava(), dall_e_config(dall_e_files)
    if encoder != "pickle":
        prefix = "image_codebook." if encoder == "whole flava" else ""
        state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
        more = {"logit_scale": torch.zeros(1)} if prefix else {}
        save_file(state | more, tmp_path / "model.safetensors")
        config = replace(config, weights=str(tmp_path / "model.safetensors"))
    tokenizer = config.build()
    with torch.no_grad():
        logits, codes_NYX = theirs(squeezed()), theirs.get_codebook_indices(squeezed())
        assert_near(tokenizer.model.features(to_input(pictures())), logits)
    assert np.array_equal(tokenizer.encode(pictures()), codes_NYX.flatten(1).numpy())
    assert len(set(codes_NYX.ravel().tolist())) > 2
    some_NYX = torch.arange(12).view(3, 2, 2) * 2
    assert_near((pixels_of(tokenizer, some_NYX) + 1) / 2, decoded(decoder_tensors(), some_NYX))
    assert torch.equal(tokenizer.codebook(), decoder_tensors()["blocks.input.w"][:, :, 0, 0].T)
    tokenizer.save(tmp_path)
    again = replace(config, weights=None, decoder_weights=None).load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint


def test_dall_es_files_are_refused_by_name(
    tmp_path: Path, dall_e_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dall_e_config(dall_e_files)
    assert tells(
        refusal(replace(config, decoder_weights=None)),
        "image_tokenizer.decoder_weights: is null: the ... DALL",
    )
    swapped = replace(config, weights=config.decoder_weights, decoder_weights=config.weights)
    assert "is not a VQ tokenizer" in refusal(swapped)
    assert "correct image_tokenizer.decoder_weights_sha256" in refusal(
        replace(config, decoder_weights_sha256="0" * 64)
    )
    assert "has 24 codes, but the recipe expects 8,192" in refusal(replace(config, num_codes=None))
    assert "there is no such file" in refusal(replace(config, decoder_weights="gone.pkl"))
    tensors = decoder_tensors()
    del tensors["blocks.group_2.block_1.id_path.w"], tensors["blocks.group_2.block_1.id_path.b"]
    file = save_pickle(dall_e_module(tensors), tmp_path / "decoder.pkl", monkeypatch)
    assert "decoder.blocks.group_2.block_1.id_path.w is missing" in refusal(
        replace(config, decoder_weights=str(file))
    )
    with pytest.raises(RecipeError, match=r"image_tokenizer.downsampling: is 16, must be 8"):
        replace(config, downsampling=16).check()


class TestDalle(ImageTokenizerContract):
    config = DalleConfig(**DALLE)

    @pytest.fixture(autouse=True)
    def _weights(self, dall_e_files: tuple[Path, Path]) -> None:
        type(self).config = dall_e_config(dall_e_files)

    def waive_decoded_pictures_are_the_encoded_ones(self) -> str:
        return "its weights are random"
