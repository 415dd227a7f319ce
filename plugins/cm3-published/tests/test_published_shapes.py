"""Published tokenizers at their true sizes: names and shapes of every tensor, without their memory; and
CM3leon's recipe with a file of gumbel_f8's shape."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from cm3apps.cli.main import main
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3published.image_tokenizers import config as configs
from cm3published.image_tokenizers.dvae import dvae_names, dvae_of
from cm3published.image_tokenizers.model import empty
from cm3published.image_tokenizers.names import Sizes, sizes_of, tamings

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """A network as its publisher's configuration states it (`ddconfig`, `n_embed`, `embed_dim`)."""

    ch: int
    ch_mult: tuple[int, ...]
    attended: tuple[int, ...]
    codes: int
    dim: int
    z: int
    blocks: int = 2
    logits: bool = False
    spatial: bool = False

    def shapes(self) -> Shapes:
        """Names and shapes as taming's modules make them, written from its description."""
        shapes: Shapes = {}

        def layer(name: str, *shape: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

        def norm(name: str, width: int, decoder: bool) -> None:
            if decoder and self.spatial:
                layer(f"{name}.norm_layer", width)
                layer(f"{name}.conv_y", width, self.dim, 1, 1)
                layer(f"{name}.conv_b", width, self.dim, 1, 1)
            else:
                layer(f"{name}", width)

        def block(name: str, first: int, last: int) -> None:
            norm(f"{name}.norm1", first, name.startswith("decoder"))
            layer(f"{name}.conv1", last, first, 3, 3)
            norm(f"{name}.norm2", last, name.startswith("decoder"))
            layer(f"{name}.conv2", last, last, 3, 3)
            if first != last:
                layer(f"{name}.nin_shortcut", last, first, 1, 1)

        def attention(name: str, width: int) -> None:
            norm(f"{name}.norm", width, name.startswith("decoder"))
            for part in ("q", "k", "v", "proj_out"):
                layer(f"{name}.{part}", width, width, 1, 1)

        def middle(name: str, width: int) -> None:
            block(f"{name}.block_1", width, width)
            attention(f"{name}.attn_1", width)
            block(f"{name}.block_2", width, width)

        widths = [self.ch * mult for mult in self.ch_mult]
        top = len(widths) - 1
        layer("encoder.conv_in", self.ch, 3, 3, 3)
        width = self.ch
        for level, wide in enumerate(widths):
            for number in range(self.blocks):
                block(f"encoder.down.{level}.block.{number}", width, wide)
                width = wide
                if level in self.attended:
                    attention(f"encoder.down.{level}.attn.{number}", wide)
            if level < top:
                layer(f"encoder.down.{level}.downsample.conv", wide, wide, 3, 3)
        middle("encoder.mid", width)
        layer("encoder.norm_out", width)
        layer("encoder.conv_out", self.z, width, 3, 3)
        layer("decoder.conv_in", width, self.z, 3, 3)
        middle("decoder.mid", width)
        for level in range(top, -1, -1):
            for number in range(self.blocks + 1):
                block(f"decoder.up.{level}.block.{number}", width, widths[level])
                width = widths[level]
                if level in self.attended:
                    attention(f"decoder.up.{level}.attn.{number}", width)
            if level:
                layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
        norm("decoder.norm_out", width, True)
        layer("decoder.conv_out", 3, width, 3, 3)
        layer("quant_conv", self.dim, self.z, 1, 1)
        layer("post_quant_conv", self.z, self.dim, 1, 1)
        if self.logits:
            layer("quantize.proj", self.codes, self.dim, 1, 1)
            shapes["quantize.embed.weight"] = self.codes, self.dim
        else:
            shapes["quantize.embedding.weight"] = self.codes, self.dim
        return shapes


F8, F16 = (1, 2, 2, 4), (1, 1, 2, 2, 4)
GUMBEL_F8 = Published(128, (1, 1, 2, 4), (3,), 8192, 256, 256, logits=True)
PUBLISHED: dict[str, tuple[Any, Published]] = {
    "gumbel_f8": (configs.TamingConfig, GUMBEL_F8),
    "coco_oi_f16": (configs.TamingConfig, Published(128, F16, (4,), 8192, 256, 256)),
    "imagenet_f16_1024": (configs.TamingConfig, Published(128, F16, (4,), 1024, 256, 256)),
    "imagenet_f16_16384": (configs.TamingConfig, Published(128, F16, (4,), 16_384, 256, 256)),
    "vq_f8": (configs.LDMConfig, Published(128, F8, (3,), 16_384, 4, 4)),
    "vq_f8_n256": (configs.LDMConfig, Published(128, F8, (3,), 256, 4, 4)),
    "vq_f16": (configs.LDMConfig, Published(128, F16, (4,), 16_384, 8, 8)),
    "chameleon": (configs.ChameleonVQConfig, Published(128, F16, (), 8192, 256, 256)),
    "vq_8": (configs.LlamaGenVQConfig, Published(128, F8, (3,), 16_384, 8, 256)),
    "vq_16": (configs.LlamaGenVQConfig, Published(128, F16, (4,), 16_384, 8, 256)),
    "ibq_1024": (configs.IBQConfig, Published(128, F16, (4,), 1024, 256, 256, 4)),
    "ibq_8192": (configs.IBQConfig, Published(128, F16, (4,), 8192, 256, 256, 4)),
    "ibq_16384": (configs.IBQConfig, Published(128, F16, (4,), 16_384, 256, 256, 4)),
    "ibq_262144": (configs.IBQConfig, Published(128, F16, (4,), 262_144, 256, 256, 4)),
    "emu3_5": (configs.IBQConfig, Published(256, F16, (4,), 131_072, 256, 256, 4)),
    "movqgan_67M": (configs.MoVQConfig, Published(128, F8, (3,), 16_384, 4, 4, spatial=True)),
    "movqgan_102M": (configs.MoVQConfig, Published(128, F8, (3,), 16_384, 4, 4, 4, spatial=True)),
    "movqgan_270M": (configs.MoVQConfig, Published(256, F8, (3,), 16_384, 4, 4, spatial=True)),
}


def weightless(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def assert_takes_all(state: dict[str, Tensor], quantizer: str) -> Sizes:
    """Every tensor has a place in the network that the shapes imply, and every place a tensor."""
    sizes = sizes_of(state)
    ours = {name: tuple(t.shape) for name, t in empty(sizes, quantizer).state_dict().items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in state.items()}
    return sizes


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_tensor_has_a_place(model: str) -> None:
    config_class, published = PUBLISHED[model]
    facts = config_class(model=model).facts
    sizes = assert_takes_all(tamings(weightless(published.shapes())), facts.quantizer)
    found = sizes.arch.codebook_size, sizes.arch.downsampling, sizes.network
    assert found == (facts.num_codes, facts.downsampling, facts.network)
    assert sizes.gumbel == (facts.quantizer == "gumbel")


def test_every_published_vqgan_was_compared() -> None:
    classes = {config_class for config_class, _ in PUBLISHED.values()}
    assert {model for one in classes for model in one.published} - {"kandinsky"} == set(PUBLISHED)


@pytest.mark.parametrize(
    ("model", "tensors", "millions"),
    [("vq_16", 343, 71.9), ("vq_8", 299, 70.1), ("movqgan_67M", 0, 67), ("movqgan_102M", 0, 102)],
)
def test_sizes_are_those_that_publishers_state(model: str, tensors: int, millions: float) -> None:
    shapes = PUBLISHED[model][1].shapes()
    assert not tensors or len(shapes) == tensors
    assert sum(prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(millions, rel=0.015)


def test_kandinskys_network_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = VQModel(
            down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
            block_out_channels=(128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=4,
            num_vq_embeddings=16_384,
            vq_embed_dim=4,
            norm_type="spatial",
        )
    state = tamings(theirs.state_dict())
    assert assert_takes_all(state, "l2").network == "movq"
    ours = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert ours == PUBLISHED["movqgan_67M"][1].shapes()


def test_emu3s_network_of_transformers() -> None:
    with torch.device("meta"):
        theirs = Emu3VQVAE(Emu3VQVAEConfig())
    sizes = assert_takes_all(tamings(theirs.state_dict()), "l2")
    assert (sizes.network, sizes.halvings, sizes.arch.codebook_size) == ("emu3", 2, 32_768)
    assert sizes.arch.downsampling == 8


def test_dall_es_network_of_transformers() -> None:
    """The encoder's is FLAVA's; the decoder has 76 tensors and 43.8M parameters."""
    with torch.device("meta"):
        encoder = dvae_names(FlavaImageCodebook(FlavaImageCodebookConfig()).state_dict(), "encoder")
    first = {"decoder.blocks.input.w": torch.empty(128, 8192, 1, 1, device="meta")}
    model, num_codes = dvae_of(encoder | first)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert num_codes == 8192
    theirs = {name: tuple(tensor.shape) for name, tensor in encoder.items()}
    assert {name: shape for name, shape in ours.items() if name in theirs} == theirs
    decoder = {name: shape for name, shape in ours.items() if name.startswith("decoder.")}
    assert len(theirs) == 74
    assert len(decoder) == 76
    assert sum(prod(shape) for shape in theirs.values()) / 1e6 == pytest.approx(53.8, abs=0.05)
    assert sum(prod(shape) for shape in decoder.values()) / 1e6 == pytest.approx(43.8, abs=0.05)


# ---- CM3leon's recipe with gumbel_f8


def test_gumbel_f8_fits_cm3leons_recipe() -> None:
    """256 px are 1,024 of 8,192 codes, the vocabulary's; no other key is needed."""
    recipe = compose(
        "cm3leon-350m",
        ["image_tokenizer=taming", "image_tokenizer.weights=last.ckpt"],
        registry=load_registry(),
    )
    tokenizer = recipe.image_tokenizer
    tokenizer.check()
    assert (tokenizer.image_size, tokenizer.grid) == ((256, 256), (32, 32))
    assert tokenizer.codebook_size == 8192


@pytest.mark.slow
def test_cm3leon_trains_on_gumbel_f8(tmp_path: Path) -> None:
    """A file of its names and shapes, in float16; the decoder is small, the picture is not square."""
    generator = torch.Generator().manual_seed(0)
    state = collections.OrderedDict(
        (name, (0.02 * torch.randn(shape, generator=generator)).half())
        for name, shape in GUMBEL_F8.shapes().items()
    )
    torch.save({"epoch": 12, "state_dict": state, "loops": {}}, tmp_path / "last.ckpt")
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 256, (128, 96, 3), dtype=np.uint8)
        Image.fromarray(picture).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"noise {number}")
    run = tmp_path / "run"
    tokenizer = ["image_tokenizer=taming", f"image_tokenizer.weights={tmp_path / 'last.ckpt'}"]
    small = [
        "image_tokenizer.resolution=128",
        "image_tokenizer.width=96",
        "dataset=folder",
        f"dataset.path={data}",
        "text_tokenizer=byte",
        "retriever=none",
        "embedder=null",
        "decoder.num_layers=1",
        "decoder.d_model=32",
        "decoder.num_heads=2",
        "decoder.d_ff=32",
        "decoder.context_length=512",
        "train.steps=1",
        "train.warmup_steps=1",
        "train.batch_rows=1",
        "train.accumulate=1",
    ]
    assert main(["train", "cm3leon-350m", *tokenizer, *small, "-o", str(run), "--quiet"]) == 0
