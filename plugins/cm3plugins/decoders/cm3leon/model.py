"""The CM3leon decoder for training. Its block is in `block.py`, generation in `inference.py`.

CM3leon paper, section 2.3: a decoder-only transformer like OPT / GPT-3 (pre-LN, learned absolute
positions), without biases, dropout or learnable normalisation; truncated normal initialisation of
0.006 with both residual outputs at zero. Details the paper leaves open follow
facebookresearch/metaseq (branch scaling_racm3, flags `disable_bias`, `disable_affine_ln`):
LayerNorm eps 1e-5, a final LayerNorm, no sqrt(d_model) on embeddings, ReLU, output projection tied
to the embedding. metaseq's position table has two extra rows that are never read (fairseq's padding
offset); ours starts at 0 and has `context_length` rows.

Legend: B rows, T tokens, N tokens of a batch, E model dimension, V ids.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cm3core.errors import DocumentError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder
from cm3core.vocab import Vocabulary
from cm3kernels import linear_cross_entropy
from cm3plugins.decoders.adapters import refuse_adapters
from cm3plugins.decoders.cm3leon.block import Block, Context
from cm3plugins.decoders.cm3leon.inference import CM3LeonInference
from cm3plugins.decoders.cm3leon.products import layer_norm
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings
from cm3plugins.decoders.codebook_start import codebook_rows


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Normal with mean 0, truncated at 3 standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3.0 * std, b=3.0 * std)


class CM3LeonDecoder(nn.Module, Decoder):
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
        super().__init__()
        self.config, self.backend, self.grid = config, attention, grid
        self.context_length, self.vocab_size = config.context_length, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.context_length, config.d_model)
        if config.grid_positions:
            self.embed_rows = nn.Embedding(grid[0], config.d_model)
            self.embed_columns = nn.Embedding(grid[1], config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.embed_output = (
            None if config.tie_embeddings else nn.Embedding(vocab_size, config.d_model)
        )
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

    def forward(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        """`hidden_states`, under the name that torch's wrappers (DDP, FSDP, compile) call."""
        return self.hidden_states(tokens_BT, **options)

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
    ) -> Tensor:
        T = tokens_BT.shape[1]
        if positions_BT is None:
            if self.context_length < T:
                raise DocumentError(
                    "sequence",
                    f"{T} tokens, but the decoder's context is {self.context_length}",
                    "shorten the texts, retrieve fewer documents, or train with a longer "
                    "context_length",
                )
            positions_BT = torch.arange(T, device=tokens_BT.device)[None]
        context = Context(
            self.backend,
            kv_start_BT,
            self.backend.plan(num_queries=T, num_keys=T, kv_start_BT=kv_start_BT),
        )
        x_BTE = self.embed(tokens_BT, positions_BT, cells_BT)
        for block in self.blocks():
            if self.config.activation_checkpointing and self.training:
                x_BTE = checkpoint(block, x_BTE, context, use_reentrant=False)
            else:
                x_BTE = block(x_BTE, context)
        return layer_norm(x_BTE)

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Token + position (+ row + column of an image code's cell)."""
        x_BTE = self.embed_tokens(tokens_BT) + self.embed_positions(positions_BT)
        if self.config.grid_positions and cells_BT is not None:
            raster_BT = cells_BT.clamp(min=0)
            grid_BTE = self.embed_rows(raster_BT // self.grid[1]) + self.embed_columns(
                raster_BT % self.grid[1]
            )
            x_BTE = x_BTE + grid_BTE * (cells_BT >= 0)[..., None].to(grid_BTE.dtype)
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.embed_output is None else self.embed_output.weight

    def loss_sums(
        self,
        hidden_NE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        groups_N: Tensor,
        *,
        num_groups: int = 4,
        z_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            hidden_NE,
            self.head_weight(),
            targets_N,
            weights_N,
            groups_N,
            num_groups=num_groups,
            z_loss=z_loss,
        )

    def for_inference(self, precision: str = "auto") -> CM3LeonInference:
        refuse_adapters(self)
        return CM3LeonInference(self, precision)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:
        """Initialise the embeddings of image codes from the tokenizer's code vectors.

        The vectors are centred, projected by a fixed random orthogonal matrix, and scaled as a
        whole to `codebook_scale` times the deviation of the other embeddings. Distances between
        codes keep their proportions.

        Args:
            codebook: floating [num_image, dim].
            vocabulary: where the image codes' rows are.
        """
        rows_E = codebook_rows(
            codebook,
            vocabulary,
            self.config.d_model,
            self.config.codebook_scale * self.config.init_std,
        )
        for weight in {id(w): w for w in (self.embed_tokens.weight, self.head_weight())}.values():
            weight[vocabulary.image.start : vocabulary.image.stop] = rows_E.to(weight)
