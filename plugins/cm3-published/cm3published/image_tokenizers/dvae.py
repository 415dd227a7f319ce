"""DALL-E's discrete VAE (Ramesh et al. 2021, arXiv:2102.12092, appendix A).

Layers and names follow openai/DALL-E, `dall_e/encoder.py`, `decoder.py` and `utils.py`.

Legend: B pictures, C channels, H W pixels, Y X code grid, K codes, D code dimension.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Pixels in [0, 1] are mapped to [0.1, 0.9], where the distribution of its loss has a density.
EPS = 0.1
_GROUPS = 4
_BLOCK = re.compile(r"^encoder\.blocks\.group_1\.block_(\d+)\.")


class Conv(nn.Module):
    """A convolution that keeps the size, with DALL-E's names of weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.b = nn.Parameter(torch.empty(out_channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """A skip connection plus four convolutions, weighted by the depth."""

    def __init__(self, channels: tuple[int, int], kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        first, last = channels
        self.gain = gain
        self.id_path = Conv(first, last, 1) if first != last else nn.Identity()
        widths = [first, *[last // 4] * 3, last]
        self.res_path = nn.ModuleDict(
            {
                f"conv_{number}": Conv(a, b, kernel)
                for number, ((a, b), kernel) in enumerate(
                    zip(pairwise(widths), kernels, strict=True), start=1
                )
            }
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = x_BCHW
        for conv in self.res_path.values():
            h_BCHW = conv(F.relu(h_BCHW))
        out_BCHW: Tensor = self.id_path(x_BCHW) + self.gain * h_BCHW
        return out_BCHW


class Half(nn.Module):
    """The encoder, which halves the sides between its groups of blocks, or the decoder, which doubles
    them.

    Args:
        sizes: channels of the input, of its first layer, of each group, and of the output.
        num_blocks: number of blocks per group.
        encodes: whether it is the encoder.
    """

    def __init__(self, sizes: tuple[int, ...], num_blocks: int, *, encodes: bool) -> None:
        super().__init__()
        given, *widths, last = sizes
        self.encodes = encodes
        gain = 1 / (_GROUPS * num_blocks) ** 2
        kernels = (3, 3, 3, 1) if encodes else (1, 3, 3, 3)
        self.blocks = nn.ModuleDict({"input": Conv(given, widths[0], 7 if encodes else 1)})
        for number, (a, b) in enumerate(pairwise(widths), start=1):
            self.blocks[f"group_{number}"] = nn.ModuleDict(
                {
                    f"block_{place + 1}": Block((b if place else a, b), kernels, gain)
                    for place in range(num_blocks)
                }
            )
        self.blocks["output"] = nn.ModuleDict({"conv": Conv(widths[-1], last, 1)})

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the groups and the output layer; the caller runs `input`."""
        for number in range(1, _GROUPS + 1):
            if number > 1 and self.encodes:
                x_BCHW = F.max_pool2d(x_BCHW, 2)
            elif number > 1:
                x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
            group = self.blocks[f"group_{number}"]
            assert isinstance(group, nn.ModuleDict)
            for block in group.values():
                x_BCHW = block(x_BCHW)
        output = self.blocks["output"]
        assert isinstance(output, nn.ModuleDict)
        out_BCHW: Tensor = output["conv"](F.relu(x_BCHW))
        return out_BCHW


class DVAE(nn.Module):
    """Encodes pixels by the largest logit, and decodes codes to pixels."""

    def __init__(self, num_codes: int, width: int, first: int, num_blocks: int) -> None:
        super().__init__()
        self.encoder = Half(
            (3, width, *(width * 2**level for level in range(_GROUPS)), num_codes),
            num_blocks,
            encodes=True,
        )
        self.decoder = Half(
            (num_codes, first, *(width * 2**level for level in reversed(range(_GROUPS))), 6),
            num_blocks,
            encodes=False,
        )

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Map pixels in [-1, 1] [B, 3, H, W] to logits [B, K, Y, X]."""
        squeezed_BCHW = (1 - 2 * EPS) * (pixels_BCHW + 1) / 2 + EPS
        logits_BKYX: Tensor = self.encoder(self.encoder.blocks["input"](squeezed_BCHW))
        return logits_BKYX

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] [B, 3, H, W] as codes, int64 [B, Y, X]."""
        return self.features(pixels_BCHW).argmax(dim=1)

    def entries(self) -> Tensor:
        """Return the code vectors, fp32 [K, D]: the output of the decoder's first layer for each code."""
        first = self.decoder.blocks["input"]
        assert isinstance(first, Conv)
        return first.w[:, :, 0, 0].T

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Decode codes, int64 [B, Y, X], to pixels [B, 3, H, W] in [-1, 1]."""
        first = self.decoder.blocks["input"]
        assert isinstance(first, Conv)
        vectors_BDYX = (F.embedding(codes_BYX, self.entries()) + first.b).permute(0, 3, 1, 2)
        # the other three channels are the distribution's scales
        squeezed_BCHW: Tensor = self.decoder(vectors_BDYX)[:, :3].sigmoid()
        return ((squeezed_BCHW - EPS) / (1 - 2 * EPS)).clamp(0.0, 1.0) * 2 - 1


def dvae_names(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """Rename the tensors of one half to the names of `DVAE`.

    Args:
        tensors: named as in OpenAI's pickle, or as in transformers' `FlavaImageCodebook` (the encoder).
        side: "encoder" or "decoder".
    """
    prefix = "image_codebook."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.group\.block_", ".block_", name).replace(".res_path.path.", ".res_path.")
        name = re.sub(r"\.weight$", ".w", re.sub(r"\.bias$", ".b", name))
        renamed[f"{side}.{name}"] = tensor
    return renamed


def dvae_of(tensors: Mapping[str, Tensor]) -> tuple[DVAE, int]:
    """Return a network on the meta device with the sizes implied by the tensors, and its number of codes.

    Raises:
        KeyError: a required tensor is missing.
        ValueError: the tensors contradict each other.
    """
    width, channels, _, _ = tensors["encoder.blocks.input.w"].shape
    num_codes = tensors["encoder.blocks.output.conv.w"].shape[0]
    first = tensors["decoder.blocks.input.w"].shape[0]
    blocks = {int(match[1]) for name in tensors if (match := _BLOCK.match(name))}
    if channels != 3 or width % 4 or not blocks or len(blocks) > 64:
        raise ValueError(
            f"{channels} channels, {width} and {len(blocks)} blocks do not match a dVAE"
        )
    with torch.device("meta"):
        return DVAE(num_codes, width, first, len(blocks)), num_codes
