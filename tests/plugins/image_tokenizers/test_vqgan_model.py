"""The VQGAN network: taming's layout, the quantiser by hand, parity with two independent
implementations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3plugins.image_tokenizers.vqgan.model import VectorQuantizer, VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture

#: The paper's tokenizer: 256 px, f8, 8,192 codes.
F8 = VQGANArchitecture(
    resolution=256,
    ch=128,
    ch_mult=(1, 1, 2, 4),
    num_res_blocks=2,
    z_channels=256,
    embed_dim=256,
    codebook_size=8192,
    patch_size=1,
    norm_groups=32,
)
#: A tiny network of taming's layout with attention at the coarsest level.
TINY = VQGANArchitecture(
    resolution=16,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(8,),
    z_channels=8,
    embed_dim=4,
    codebook_size=32,
    patch_size=1,
    norm_groups=32,
)


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def res(inputs: int, outputs: int) -> int:
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    return (
        2 * inputs + conv(inputs, outputs, 3) + 2 * outputs + conv(outputs, outputs, 3) + shortcut
    )


def test_parameters_of_the_papers_size() -> None:
    """Every layer of the f8 model counted by hand from the recipe of spec 2.1."""
    with torch.device("meta"):
        model = VQModel(F8)
    middle = 2 * res(512, 512) + 2 * 512 + 4 * conv(512, 512, 1)
    encoder = (
        conv(3, 128, 3)
        + 4 * res(128, 128)
        + 2 * conv(128, 128, 3)
        + res(128, 256)
        + res(256, 256)
        + conv(256, 256, 3)
        + res(256, 512)
        + res(512, 512)
        + middle
        + 2 * 512
        + conv(512, 256, 3)
    )
    decoder = (
        conv(256, 512, 3)
        + middle
        + 3 * res(512, 512)
        + conv(512, 512, 3)
        + res(512, 256)
        + 2 * res(256, 256)
        + conv(256, 256, 3)
        + res(256, 128)
        + 2 * res(128, 128)
        + conv(128, 128, 3)
        + 3 * res(128, 128)
        + 2 * 128
        + conv(128, 3, 3)
    )
    assert (
        sum(p.numel() for p in model.parameters())
        == encoder + decoder + 2 * conv(256, 256, 1) + 8192 * 256
    )
    assert F8.downsampling == 8


def test_names_are_tamings() -> None:
    """A public checkpoint (vqgan f8, peers.md C1, C2) has exactly such keys; `up.0` is the finest
    level."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in VQModel(F8).state_dict().items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.1.norm2.bias": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.block.1.conv2.weight": (512, 512, 3, 3),
        "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
        "quantize.embedding.weight": (8192, 256),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.up.0.block.2.conv1.weight": (128, 128, 3, 3),
        "decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.1.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert expected.items() <= shapes.items()
    assert "encoder.down.3.downsample.conv.weight" not in shapes
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    with torch.device("meta"):
        names = set(VQModel(TINY).state_dict())
    assert {
        "encoder.down.1.attn.0.norm.weight",
        "encoder.down.1.attn.0.q.weight",
        "decoder.up.1.attn.1.k.bias",
    } <= names
    assert not any(name.startswith(("encoder.down.0.attn", "decoder.up.0.attn")) for name in names)


def hand_quantizer(learn: bool = True) -> VectorQuantizer:
    quantizer = VectorQuantizer(3, 2, beta=0.25, l2_normalize=False)
    quantizer.embedding.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
    quantizer.learn_codebook = learn
    return quantizer


def test_nearest_code_by_hand() -> None:
    """Squared distances of (0.6, 0.2) to the codes: 0.40, 0.20, 8.20; of (0, 1.4): 1.96, 2.96,
    2.56."""
    z = torch.tensor([[0.6, 0.0], [0.2, 1.4]]).view(1, 2, 1, 2)
    quantized = hand_quantizer()(z)
    assert quantized.codes_BYX.tolist() == [[[1, 0]]]
    assert quantized.z_q_BDYX.view(2, 2).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    # mean of squared errors (0.16 + 0.04 + 0 + 1.96) / 4 = 0.54, once for the codes and beta times
    # for the encoder
    assert quantized.loss.item() == pytest.approx(0.54 * 1.25)


def test_gradient_passes_straight_through() -> None:
    """The encoder gets the decoder's gradient as if there were no quantiser, plus the
    commitment's."""
    z = torch.tensor([[0.6, 0.0], [0.2, 1.4]]).view(1, 2, 1, 2).requires_grad_()
    quantizer = hand_quantizer()
    quantized = quantizer(z)
    upstream = torch.tensor([[3.0, -1.0], [0.5, 2.0]]).view(1, 2, 1, 2)
    (gradient,) = torch.autograd.grad((quantized.z_q_BDYX * upstream).sum(), z, retain_graph=True)
    assert torch.equal(gradient, upstream)
    commitment, codes = torch.autograd.grad(quantized.loss, [z, quantizer.embedding.weight])
    # d/dz of 0.25 * mean((z - e)^2) = 0.125 (z - e)
    assert torch.allclose(commitment.view(2, 2), 0.125 * torch.tensor([[-0.4, 0.0], [0.2, 1.4]]))
    # d/de of mean((e - z)^2) = 0.5 (e - z), summed over the positions of each code
    assert torch.allclose(codes, torch.tensor([[0.0, -0.7], [0.2, -0.1], [0.0, 0.0]]))


def test_moving_averages_leave_no_gradient_to_the_codes() -> None:
    quantizer = hand_quantizer(learn=False)
    z = torch.rand(1, 2, 2, 2, requires_grad=True)
    quantizer(z).loss.backward()
    assert quantizer.embedding.weight.grad is None


def test_l2_normalized_lookup_ignores_length() -> None:
    quantizer = VectorQuantizer(2, 2, beta=0.25, l2_normalize=True)
    quantizer.embedding.weight.data.copy_(torch.tensor([[10.0, 0.0], [0.0, 0.1]]))
    quantized = quantizer(torch.tensor([9.0, 10.0]).view(1, 2, 1, 1))
    # by direction; plain squared distances are 101 and 179.01
    assert quantized.codes_BYX.item() == 1
    assert torch.allclose(quantizer.lookup(quantized.codes_BYX).flatten(), torch.tensor([0.0, 1.0]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5))
def test_nearest_is_brute_force(seed: int, num_codes: int, dim: int) -> None:
    """The chosen code is as near as the nearest by explicit differences in fp64."""
    generator = torch.Generator().manual_seed(seed)
    quantizer = VectorQuantizer(num_codes, dim, beta=0.25, l2_normalize=False)
    quantizer.embedding.weight.data.copy_(torch.randn(num_codes, dim, generator=generator))
    z = torch.randn(1, dim, 3, 4, generator=generator)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, dim).double()
    distances = (rows - quantizer.embedding.weight.double()).square().sum(-1)
    chosen = distances.gather(1, quantizer(z).codes_BYX.view(-1, 1)).squeeze(1)
    assert torch.allclose(chosen, distances.min(1).values, atol=1e-5)


def test_quantiser_stays_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        quantized = hand_quantizer()(torch.rand(1, 2, 2, 2).bfloat16())
    assert quantized.z_q_BDYX.dtype == torch.float32


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_keep_the_geometry(patch_size: int) -> None:
    """Squares of pixels as channels lower the resolution like a level does, and come back as
    pixels."""
    arch = VQGANArchitecture(
        resolution=16,
        ch=8,
        ch_mult=(1, 2),
        z_channels=4,
        embed_dim=4,
        codebook_size=8,
        patch_size=patch_size,
        norm_groups=4,
    )
    model = VQModel(arch).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    side = 16 // (2 * patch_size)
    codes = model.encode(pixels)
    assert codes.shape == (2, side, side)
    assert model.decode(codes).shape == pixels.shape
    reconstruction, quantized = model(pixels)
    assert torch.equal(quantized.codes_BYX, codes)
    assert torch.allclose(reconstruction, model.decode(codes), atol=1e-5)


def test_encoder_and_codes_equal_transformers_chameleon() -> None:
    """Weights copied key by key: the codes are equal, bit for bit."""
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(
        embed_dim=4,
        num_embeddings=32,
        latent_channels=8,
        resolution=16,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[8],
    )
    oracle = ChameleonVQVAE(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = VQModel(TINY).eval()
    missing, unexpected = model.load_state_dict(oracle.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("decoder.") for name in missing)
    pixels = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        expected = oracle.encode(pixels)
        features = expected.last_hidden_state
        assert torch.allclose(
            model.encoder(pixels), features, rtol=1e-4, atol=1e-4 * features.abs().max().item()
        )
        codes = model.encode(pixels)
    assert torch.equal(codes.flatten(), expected.image_tokens.flatten())
    assert codes.unique().numel() > 4


def test_decoder_equals_transformers_janus() -> None:
    """Janus numbers `up` from the coarsest level and attends there; its lookup is on the unit
    sphere."""
    from transformers import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=32,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        num_patches=8,
    )
    oracle = JanusVQVAE(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    arch = VQGANArchitecture(**{**vars(TINY), "l2_normalize_codes": True})
    model = VQModel(arch).eval()
    state = {
        name.replace("decoder.up.0.", "decoder.up.x.")
        .replace("decoder.up.1.", "decoder.up.0.")
        .replace("up.x", "up.1"): t
        for name, t in oracle.state_dict().items()
    }
    model.load_state_dict(state)
    codes = torch.randint(32, (2, 64))
    with torch.inference_mode():
        expected = oracle.decode(codes)
        found = model.decode(codes.view(2, 8, 8))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
