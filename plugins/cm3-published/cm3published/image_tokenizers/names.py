"""Tensor names of VQ networks in published files, and the sizes implied by the tensors.

Our names are taming's. Latent diffusion, Chameleon, IBQ, MoVQGAN and Emu3 use the same names; LlamaGen, Janus,
diffusers and transformers' Emu3 use others, and most of those number the decoder's levels from the
coarsest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture

#: Prefixes of the tokenizer in larger models: Janus, its version and Chameleon's in
#: transformers.
PREFIXES = ("gen_vision_model.", "model.vqmodel.", "vqmodel.", "vq_model.")
#: Training tensors that are not part of the network, and LlamaGen's counter of codes. MoVQGAN's own
#: code also reads the weights next to the averages `ema_*`.
IGNORED = ("loss.", "discriminator.", "lpips.", "quantize.codebook_used", "ema_")
#: BatchNorm's batch counter.
_COUNT = ".num_batches_tracked"
#: Prefix of IBQ's moving averages of the weights, whose names have no dots.
_AVERAGES = "model_ema."
#: Layers of taming's network; every file has one of them, under some name.
_LLAMAGEN = (
    (r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
_DIFFUSERS = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.attentions\.", r"decoder.up.\1.attn."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.(group|spatial)_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
_TRANSFORMERS_EMU3 = (
    (r"\.down_block\.down\.", ".down."),
    (r"\.up_block\.up\.", ".up."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)
_LEVEL = re.compile(r"^decoder\.up\.(\d+)\.")
_ATTENTION = re.compile(r"\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight$")


def tamings(tensors: Mapping[str, Tensor], *, averaged: bool = False) -> dict[str, Tensor]:
    """Rename a tokenizer's tensors to taming's names, dropping training tensors.

    Args:
        tensors: tensors of the file.
        averaged: use the moving averages of the weights if the file has them.
    """
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            break
    if averaged and any(name.startswith(_AVERAGES) for name in tensors):
        tensors = _averages(tensors)
    renames: tuple[tuple[str, str], ...] = ()
    if any(name.startswith("encoder.conv_blocks.") for name in tensors):
        renames = _LLAMAGEN
    elif any(name.startswith("encoder.down_blocks.") for name in tensors):
        renames = _DIFFUSERS
    elif any(name.startswith("encoder.down_block.") for name in tensors):
        renames = _TRANSFORMERS_EMU3
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(IGNORED) or name.endswith(_COUNT):
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        # diffusers' attention uses matrices instead of taming's 1x1 convolutions
        matrix = tensor.ndim == 2 and _ATTENTION.search(name) is not None
        renamed[name] = tensor[:, :, None, None] if matrix else tensor
    return _finest_first(renamed)


def _averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace tensors by their averages; averages without a tensor keep their names."""
    averages = {
        name.removeprefix(_AVERAGES): tensor
        for name, tensor in tensors.items()
        if name.startswith(_AVERAGES)
    }
    for count in ("decay", "num_updates"):
        averages.pop(count, None)
    taken = {
        name: averages.pop(name.replace(".", ""), tensor)
        for name, tensor in tensors.items()
        if not name.startswith(_AVERAGES)
    }
    of_losses = tuple(part.replace(".", "") for part in IGNORED)
    return taken | {
        f"{_AVERAGES}{name}": tensor
        for name, tensor in averages.items()
        if not name.startswith(of_losses)
    }


def _finest_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renumber the decoder's levels from the finest, which does not upsample."""
    levels = {int(match[1]) for name in tensors if (match := _LEVEL.match(name))}
    if len(levels) < 2 or "decoder.up.0.upsample.conv.weight" not in tensors:
        return dict(tensors)
    last = max(levels)
    return {
        _LEVEL.sub(lambda match: f"decoder.up.{last - int(match[1])}.", name): tensor
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class Sizes:
    """The network implied by tensors.

    Args:
        arch: its architecture.
        gumbel: whether a layer computes logits of codes.
        network: see `Published`.
        halvings: number of halvings of a still video's frames (Emu3).
    """

    arch: VQGANArchitecture
    gumbel: bool
    network: str
    halvings: int = 0


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """Infer the sizes from tensors with taming's names.

    Raises:
        KeyError: a required tensor is missing.
        ValueError: the tensors contradict each other.
    """
    first = tensors["encoder.conv_in.weight"]
    levels = 1 + max(
        int(match[1]) for name in tensors if (match := re.match(r"encoder\.down\.(\d+)\.", name))
    )
    ch = first.shape[0]
    widths = [
        tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)
    ]
    if first.shape[1] != 3 or any(width % ch for width in widths):
        raise ValueError(f"channels {first.shape[1]}, {ch}, {widths} do not match a VQGAN")
    blocks = {
        int(match[1])
        for name in tensors
        if (match := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name))
    }
    gumbel = "quantize.proj.weight" in tensors
    codebook = tensors["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    halvings = {name.split(".")[2] for name in tensors if name.startswith("encoder.time_conv.")}
    spatial = any(name.startswith("decoder.norm_out.conv_y.") for name in tensors)
    if (halvings and not spatial) or len(halvings) > 8:
        raise ValueError("its layers over time do not match Emu3's network")
    # a nominal resolution identifies levels; the network runs at any resolution
    nominal = 2**levels
    return Sizes(
        VQGANArchitecture(
            resolution=nominal,
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=len(blocks),
            attn_resolutions=tuple(
                nominal >> level
                for level in range(levels)
                if f"encoder.down.{level}.attn.0.q.weight" in tensors
            ),
            z_channels=tensors["encoder.conv_out.weight"].shape[0],
            embed_dim=codebook.shape[1],
            codebook_size=codebook.shape[0],
            patch_size=1,
            norm_groups=32,
        ),
        gumbel,
        "emu3" if halvings else "movq" if spatial else "vqgan",
        len(halvings),
    )
