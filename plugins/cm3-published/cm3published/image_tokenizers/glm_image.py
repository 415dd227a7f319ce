"""`GlmImageTokenizer`: the vision transformer and the codebook with which GLM-Image reads pictures.

Equal to `GlmImageVisionModel` and `GlmImageVQVAE` of transformers (Apache-2.0), with their names, as the tests check.
Pictures are resized as by `GlmImageImageProcessor`: to half their sides, with 16 pixels a code.

Legend: N pictures, B pictures of a batch, H W pixels, P pixels of a patch's side, Y X grid, T = Y * X patches, E width, K
codes, D code dimension, n codes of both grids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3core.picture_form import PictureForm
from cm3plugins.image_tokenizers.by_network import NetworkTokenizer
from cm3plugins.trained.tensor_files import open_tensors
from cm3plugins.trained.weights_file import check_finite
from cm3published.image_tokenizers import SAVED
from cm3published.image_tokenizers.glm_config import GlmImageVQConfig

#: CLIP's mean and deviation of pixels in [0, 1], by channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
#: Prefixes of the tensors in transformers' files.
PREFIXES = ("visual.", "vqmodel.")
_BLOCK = re.compile(r"visual\.blocks\.(\d+)\.")


class Attention(nn.Module):
    """Attention of all patches to all, with a bias in each projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        parts = rearrange(
            self.qkv(x_BTE), "B T (three H D) -> three B H T D", three=3, H=self.num_heads
        )
        attended_BHTD = F.scaled_dot_product_attention(*parts.unbind(0))
        return cast(Tensor, self.proj(rearrange(attended_BHTD, "B H T D -> B T (H D)")))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, inner: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width, num_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x_BTE: Tensor) -> Tensor:
        x_BTE = x_BTE + self.attn(self.norm1(x_BTE))
        inner_BTF = F.gelu(self.mlp["fc1"](self.norm2(x_BTE)))
        return cast(Tensor, x_BTE + self.mlp["fc2"](inner_BTF))


class Vision(nn.Module):
    """Patches and their places -> features, without a last norm.

    Args:
        width, inner: widths of the stream and of the MLPs.
        depth: number of blocks.
        num_places: places of a side of the square table, which is interpolated to the grid.
        patch: pixels of a patch's side.
        config: heads and eps.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        depth: int,
        num_places: int,
        patch: int,
        config: GlmImageVQConfig,
    ) -> None:
        super().__init__()
        self.num_places, self.patch = num_places, patch
        self.embeddings = nn.ModuleDict({"position_embedding": nn.Embedding(num_places**2, width)})
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        heads, eps = config.num_heads, config.norm_eps
        self.blocks = nn.ModuleList(Block(width, inner, heads, eps) for _ in range(depth))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return features [B, E, Y, X] of normalised pixels."""
        x_BEYX = self.patch_embed["proj"](pixels_BCHW)
        table_EYX = rearrange(
            cast(Tensor, self.embeddings["position_embedding"].weight),
            "(Y X) E -> 1 E Y X",
            Y=self.num_places,
        )
        size = tuple(x_BEYX.shape[-2:])
        x_BEYX = x_BEYX + F.interpolate(table_EYX, size, mode="bilinear", align_corners=False)
        x_BTE = rearrange(x_BEYX, "B E Y X -> B (Y X) E")
        for block in self.blocks:
            x_BTE = block(x_BTE)
        features_BEYX: Tensor = rearrange(x_BTE, "B (Y X) E -> B E Y X", Y=size[0])
        return features_BEYX


class GlmImageNetwork(nn.Module):
    """Encodes pixels as the codes of both grids, and shows codes as colours."""

    def __init__(self, vision: Vision, width: int, dim: int, config: GlmImageVQConfig) -> None:
        super().__init__()
        self.visual, self.grids = vision, config.grids
        table = nn.Embedding(config.num_codes, dim)
        self.vqmodel = nn.ModuleDict(
            {
                "quantize": nn.ModuleDict({"embedding": table}),
                "quant_conv": nn.Conv2d(width, dim, 1),
            }
        )

    def entries(self) -> Tensor:
        """Return the code vectors, which are compared on the unit sphere, [K, D]."""
        quantize = cast(nn.ModuleDict, self.vqmodel["quantize"])
        return F.normalize(cast(Tensor, quantize["embedding"].weight).float(), dim=-1)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Return codes int64 [B, 1, n] of pixels in [-1, 1]."""
        levels = ((pixels_BCHW + 1.0) * 127.5).round()
        codes = [self.codes_of(self.resized(levels, grid)).flatten(1) for grid in self.grids]
        return torch.cat(codes, dim=1)[:, None]

    def resized(self, levels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return normalised pixels of a grid, from pixels 0..255."""
        size = [side * self.visual.patch for side in grid]
        made = F.interpolate(levels_BCHW, size, mode="bicubic", antialias=True, align_corners=False)
        mean, deviation = (made.new_tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
        return (made.clamp(0, 255).round() / 255.0 - mean) / deviation

    def codes_of(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the nearest codes int64 [B, Y, X] of normalised pixels."""
        features_BDYX = self.vqmodel["quant_conv"](self.visual(pixels_BCHW))
        vectors_BYXD = F.normalize(rearrange(features_BDYX, "B D Y X -> B Y X D"), dim=-1)
        return (vectors_BYXD @ self.entries().T).argmax(-1)

    def decode(self, codes_B1n: Tensor) -> Tensor:
        """Return squares [B, 3, H, W] in [-1, 1] in the colours of the picture's codes; the preview is not shown."""
        preview, (rows, columns) = self.grids
        codes_BYX = codes_B1n[:, 0, preview[0] * preview[1] :].view(-1, rows, columns)
        colours_BCYX = self.colours()[codes_BYX].permute(0, 3, 1, 2)
        return F.interpolate(colours_BCYX, scale_factor=32, mode="nearest")

    def colours(self) -> Tensor:
        """Return a colour in [-1, 1] of each code [K, 3]: ranks of its vector along three fixed directions."""
        entries_KD = self.entries()
        generator = torch.Generator().manual_seed(0)
        directions_D3 = torch.randn(entries_KD.shape[1], 3, generator=generator).to(entries_KD)
        ranks_K3 = (entries_KD @ directions_D3).argsort(0).argsort(0)
        return ranks_K3.float() / max(1, len(entries_KD) - 1) * 2.0 - 1.0


class GlmImageTokenizer(NetworkTokenizer):
    """Encodes pixels as GLM-Image's codes; see `GlmImageVQConfig`."""

    batch_pixels: ClassVar[int] = 1024 * 1024

    def __init__(self, network: GlmImageNetwork, config: GlmImageVQConfig) -> None:
        super().__init__(network)
        self.network, self.config = network, config

    @property
    def image_size(self) -> tuple[int, int]:
        return self.config.image_size

    @property
    def form(self) -> PictureForm:
        return self.config.form

    @property
    def codebook_size(self) -> int:
        return self.config.num_codes

    def facts_of_codes(self) -> str:
        """Return what defines the codes besides the weights."""
        return f"glm_image {self.image_size} {self.config.num_heads} {self.config.norm_eps}"

    def save(self, folder: Path) -> None:
        """Write the tensors with transformers' names, in fp32."""
        tensors = {
            name: tensor.cpu().contiguous().clone()
            for name, tensor in self.network.state_dict().items()
        }
        with atomic_path(folder / SAVED) as temporary:
            save_file(tensors, temporary)


def read_network(path: Path, config: GlmImageVQConfig) -> GlmImageNetwork:
    """Read the network with its weights; nothing in the file is executed.

    Raises:
        CheckpointError: the file can't be read, or belongs to another network.
    """
    with open_tensors(path) as file:
        state = {name: tensor.float() for name, tensor in file.all().items()}
    check_finite(state, path)
    try:
        with torch.device("meta"):
            network = empty_network(state, config)
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        if problem := _difference(state, wanted):
            raise ValueError(problem)
    except (KeyError, ValueError) as error:
        cause = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            str(path),
            f"does not hold the image tokenizer of GLM-Image ({cause})",
            "convert GLM-Image again (cm3 convert), and use the recipe that came of it",
        ) from error
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def empty_network(state: Mapping[str, Tensor], config: GlmImageVQConfig) -> GlmImageNetwork:
    """Return a network of the tensors' sizes; raises KeyError or ValueError."""
    width, _, patch, _ = state["visual.patch_embed.proj.weight"].shape
    inner = len(state["visual.blocks.0.mlp.fc1.weight"])
    places = len(state["visual.embeddings.position_embedding.weight"])
    num_places = round(places**0.5)
    depth = len({match[1] for name in state if (match := _BLOCK.match(name))})
    num_codes, dim = state["vqmodel.quantize.embedding.weight"].shape
    if num_codes != config.num_codes or num_places**2 != places or width % config.num_heads:
        raise ValueError(
            f"{num_codes:,} codes, {places:,} places and a width of {width}, but the recipe has "
            f"{config.num_codes:,} codes and {config.num_heads} heads"
        )
    vision = Vision(width, inner, depth, num_places, patch, config)
    return GlmImageNetwork(vision, width, dim, config)


def _difference(state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> str:
    """Return a tensor that is missing, not known or of another shape; "": none."""
    for name in sorted(state.keys() ^ wanted.keys()):
        return f"{name} is {'missing' if name in wanted else 'not known'}"
    for name, shape in wanted.items():
        if state[name].shape != shape:
            return f"{name} is {list(state[name].shape)}, not {list(shape)}"
    return ""
