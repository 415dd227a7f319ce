"""The CM3leon decoder for training. Its block is in `block.py`, generation in `inference.py`.

CM3leon paper, section 2.3: a decoder-only transformer like OPT / GPT-3 (pre-LN, learned absolute
positions), without biases, dropout or learnable normalisation; truncated normal initialisation of
0.006 with both residual outputs at zero. Details the paper leaves open follow
facebookresearch/metaseq (branch scaling_racm3, flags `disable_bias`, `disable_affine_ln`):
LayerNorm eps 1e-5, a final LayerNorm, no sqrt(d_model) on embeddings, ReLU, output projection tied
to the embedding. metaseq's position table has two extra rows that are never read (fairseq's padding
offset); ours starts at 0 and has `context_length` rows.

Legend: B rows, T tokens, E model dimension.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.interfaces.attention import AttentionBackend
from cm3kernels.few_rows import DecoderStep
from cm3plugins.decoders.cm3leon.block import Block
from cm3plugins.decoders.cm3leon.inference import CM3LeonInference
from cm3plugins.decoders.cm3leon.products import layer_norm
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings
from cm3plugins.decoders.faster import faster_precisions
from cm3plugins.decoders.packed import can_compile
from cm3plugins.decoders.transformer import TransformerDecoder


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Normal with mean 0, truncated at 3 standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3.0 * std, b=3.0 * std)


class CM3LeonDecoder(TransformerDecoder):
    """The decoder-only transformer of CM3leon.

    See `CM3LeonConfig` for the options, `Decoder` for the calls.
    """

    def __init__(
        self,
        config: CM3LeonSettings,
        vocab_size: int,
        attention: AttentionBackend,
        grid: tuple[int, int],
    ) -> None:
        super().__init__(config, vocab_size, attention)
        self.config, self.grid = config, grid
        self.embed_positions = nn.Embedding(config.context_length, config.d_model)
        if config.grid_positions:
            self.embed_rows = nn.Embedding(grid[0], config.d_model)
            self.embed_columns = nn.Embedding(grid[1], config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.make_head()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in the paper; random numbers are drawn in the order of the parameters."""
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("_norm.weight"):
                nn.init.ones_(parameter)
            else:
                positions = name == "embed_positions.weight"
                truncated_normal_(
                    parameter, self.config.position_init_std if positions else self.config.init_std
                )

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Token + position (+ row + column of an image code's cell)."""
        x_BTE = self.embed_tokens(tokens_BT)
        if x_BTE.device.type == "cpu":  # stored in bfloat16: sums are not
            x_BTE = x_BTE.to(torch.promote_types(x_BTE.dtype, torch.float32))
        x_BTE = x_BTE + self.embed_positions(positions_BT)
        if self.config.grid_positions and cells_BT is not None:
            raster_BT = cells_BT.clamp(min=0)
            grid_BTE = self.embed_rows(raster_BT // self.grid[1]) + self.embed_columns(
                raster_BT % self.grid[1]
            )
            x_BTE = x_BTE + grid_BTE * (cells_BT >= 0)[..., None].to(grid_BTE.dtype)
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def normed(self, x_BTE: Tensor) -> Tensor:
        return layer_norm(x_BTE)

    def faster_precisions(self) -> tuple[str, ...]:
        head_dim = self.config.d_model // self.config.num_heads
        return faster_precisions(self, lambda: DecoderStep.takes(head_dim) and can_compile())

    def arranged(self, precision: str) -> CM3LeonInference:
        return CM3LeonInference(self, precision)
