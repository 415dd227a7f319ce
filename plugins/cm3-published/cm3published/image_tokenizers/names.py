"""Names of a VQ network's tensors in the files of others, and the sizes that the tensors imply.

taming's names are ours. Latent diffusion, Chameleon, IBQ, MoVQGAN and Emu3 have the same; LlamaGen,
Janus, diffusers and transformers' Emu3 have others, and most of those count the decoder's levels from
the coarsest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture

#: Prefixes below which larger models keep their tokenizer: Janus, its version and Chameleon's in
#: transformers.
PREFIXES = ("gen_vision_model.", "model.vqmodel.", "vqmodel.", "vq_model.")
#: Parts of a training that are no part of the network, and LlamaGen's count of codes. MoVQGAN's own
#: code reads the weights beside the averages `ema_*` too.
IGNORED = ("loss.", "discriminator.", "lpips.", "quantize.codebook_used", "ema_")
#: BatchNorm's count of the batches that its statistics are of.
_COUNT = ".num_batches_tracked"
#: Below it are IBQ's moving averages of the weights, under their names without dots.
_AVERAGES = "model_ema."
#: Layers of taming's network, one of which every file has under this name or another.
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
    """The tensors of a tokenizer under taming's names, without those of a training.

    Args:
        tensors: of the file.
        averaged: take the moving averages of the weights where the file has them.
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
        # diffusers' attention has matrices where taming has 1x1 convolutions
        matrix = tensor.ndim == 2 and _ATTENTION.search(name) is not None
        renamed[name] = tensor[:, :, None, None] if matrix else tensor
    return _finest_first(renamed)


def _averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their averages in their place; averages of nothing keep their names."""
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
    """The same with the decoder's levels counted from the finest, the one that does not enlarge."""
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
    """The network that tensors are of.

    Args:
        arch: its shape.
        gumbel: whether codes are drawn by logits of a layer's own.
        network: see `Published`.
        halvings: of a still video's frames (Emu3).
    """

    arch: VQGANArchitecture
    gumbel: bool
    network: str
    halvings: int = 0


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """The sizes that tensors under taming's names imply.

    Raises:
        KeyError: one that every such network has is missing.
        ValueError: they contradict each other.
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
        raise ValueError(f"channels {first.shape[1]}, {ch}, {widths} are not of a VQGAN")
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
        raise ValueError("its layers over time are not of Emu3's network")
    # levels are told by a nominal resolution; the network runs at any
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
