"""The Llama-style decoder for training. Its block is in `block.py`, generation in `inference.py`.

x + attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)) (Touvron et al. 2023, arXiv:2302.13971), with
rotary positions (Su et al. 2021, arXiv:2104.09864), of the sequence or of a picture's cells (LlamaGen,
arXiv:2406.06525), grouped-query attention (Ainslie et al. 2023,
arXiv:2305.13245) and, if asked for, normalised queries and keys and the norms of Swin v2 at the end
of each branch (Chameleon, arXiv:2405.09818, section 2.3). Written from those papers; equal to
transformers' Chameleon and Llama, which the tests compare.

A head's dimension d is rotated together with d + D/2, as in transformers; files of Meta, which
rotate d with d + 1, are permuted when they are converted.

Legend: B rows, T tokens, D head dimension, E model dimension.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from cm3core.interfaces.attention import AttentionBackend
from cm3core.vocab import Vocabulary
from cm3kernels import linear_cross_entropy
from cm3plugins.decoders.codebook_start import codebook_rows
from cm3plugins.decoders.faster import faster_precisions
from cm3plugins.decoders.llama.block import Block, RMSNorm, Turned
from cm3plugins.decoders.llama.codes import CodeEmbedding, CodeHead, by_head, table_rows
from cm3plugins.decoders.llama.inference import LlamaInference
from cm3plugins.decoders.llama.rotary import GridRotary, Rotary, SequenceRotary
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.transformer import Context, TransformerDecoder


class LlamaDecoder(TransformerDecoder):
    """A Llama-style decoder; see `LlamaConfig` for the options, `Decoder` for the calls."""

    def __init__(
        self,
        config: LlamaSettings,
        vocab_size: int,
        attention: AttentionBackend,
        grid: tuple[int, int],
        image: range = range(0),
    ) -> None:
        own = image if config.has_own_codes else range(0)
        super().__init__(config, vocab_size, attention, vocab_size - len(own))
        self.config = config
        self.own_head = own if config.has_own_codes else None
        self.rotary: Rotary = (
            GridRotary(grid, config.head_size, config.rope_theta)
            if config.rope == "2d"
            else SequenceRotary(config.context_length, config.head_size, config.rope_theta)
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.make_head()
        self.codes_in: CodeEmbedding | None = None
        self.codes_out: CodeHead | None = None
        if config.code_embed_dim is not None and config.code_head_dim is not None:
            self.codes_in = CodeEmbedding(len(own), config.code_embed_dim, config.d_model)
            self.codes_out = CodeHead(config.d_model, config.code_head_dim, len(own))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise; random numbers are drawn in the order of the parameters."""
        residual = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                std = self.config.init_std
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= residual
                nn.init.trunc_normal_(parameter, std=std, a=-3.0 * std, b=3.0 * std)

    def context(self, shared: Context, positions_BT: Tensor, cells_BT: Tensor | None) -> Turned:
        turn = self.rotary.of_tokens(positions_BT, cells_BT)
        return Turned(shared.attention, shared.kv_start_BT, shared.plan, turn)

    def normed(self, x_BTE: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x_BTE))

    def faster_precisions(self) -> tuple[str, ...]:
        return faster_precisions(self)

    def arranged(self, precision: str) -> LlamaInference:
        return LlamaInference(self, precision)

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """The tokens' embeddings: positions and cells only rotate queries and keys."""
        if self.own_head is None or self.codes_in is None:
            return cast(Tensor, self.embed_tokens(tokens_BT))
        own = self.own_head
        is_code_BT1 = ((tokens_BT >= own.start) & (tokens_BT < own.stop))[..., None]
        codes_BT = (tokens_BT - own.start).clamp(0, len(own) - 1)
        others_BTE = self.embed_tokens(table_rows(tokens_BT, own))
        return torch.where(is_code_BT1, self.codes_in(codes_BT), others_BTE)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        own, head = self.own_head, self.codes_out
        if own is None or head is None:
            return super().logits(hidden, ids)
        weight = self.head_weight()

        def others(rows: range) -> Tensor:
            return hidden @ weight[rows.start : rows.stop].to(hidden.dtype).T

        ids = range(self.vocab_size) if ids is None else ids
        return by_head(ids, own, others, lambda codes: head(hidden, slice(codes.start, codes.stop)))

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
        own, head = self.own_head, self.codes_out
        if own is None or head is None:
            return super().loss_sums(
                hidden_NE, targets_N, weights_N, groups_N, num_groups=num_groups, z_loss=z_loss
            )
        is_code_N = (targets_N >= own.start) & (targets_N < own.stop)
        inner_NW = head.inner(hidden_NE)
        # the last layer's bias, as a column that reads a one
        weight_CW = torch.cat([head.fc2.weight, head.fc2.bias[:, None]], dim=1)
        inner_NW = torch.cat([inner_NW, torch.ones_like(inner_NW[:, :1])], dim=1)
        codes_N = (targets_N - own.start).clamp(0, len(own) - 1)
        parts = (
            (hidden_NE, self.head_weight(), table_rows(targets_N, own), ~is_code_N),
            (inner_NW, weight_CW, codes_N, is_code_N),
        )
        sums = [
            linear_cross_entropy(
                state, weight, rows, weights_N * chosen, groups_N,
                num_groups=num_groups, z_loss=z_loss,
            )
            for state, weight, rows, chosen in parts
        ]  # fmt: skip  # one argument a line is harder to read
        return sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:
        """As other decoders do; codes' own embeddings begin as the code vectors, and their head stays
        as it is."""
        if self.codes_in is None:
            super().start_from_codebook(codebook, vocabulary)
            return
        weight = self.codes_in.embed.weight
        std = self.config.codebook_scale * self.config.init_std
        weight.copy_(codebook_rows(codebook, vocabulary, weight.shape[1], std))

    def parameter_groups(self) -> dict[str, list[Any]]:
        """As the default; norms are vectors, whatever their shape."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.named_parameters():
            vector = parameter.ndim < 2 or "norm" in name
            table = "embed" in name or name == "codes_out.fc2.weight"
            groups["vector" if vector else "embedding" if table else "matrix"].append(parameter)
        return groups
