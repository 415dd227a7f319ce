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
from cm3plugins.decoders.llama.block import Block, RMSNorm, Turned
from cm3plugins.decoders.llama.inference import LlamaInference
from cm3plugins.decoders.llama.rotary import GridRotary, Rotary, SequenceRotary
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.packed import faster_precisions
from cm3plugins.decoders.transformer import Context, TransformerDecoder


class LlamaDecoder(TransformerDecoder):
    """A Llama-style decoder; see `LlamaConfig` for the options, `Decoder` for the calls."""

    def __init__(
        self,
        config: LlamaSettings,
        vocab_size: int,
        attention: AttentionBackend,
        grid: tuple[int, int],
    ) -> None:
        super().__init__(config, vocab_size, attention)
        self.config = config
        self.rotary: Rotary = (
            GridRotary(grid, config.head_size, config.rope_theta)
            if config.rope == "2d"
            else SequenceRotary(config.context_length, config.head_size, config.rope_theta)
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.make_head()
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
        return cast(Tensor, self.embed_tokens(tokens_BT))

    def parameter_groups(self) -> dict[str, list[Any]]:
        """As the default; norms are vectors, whatever their shape."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.named_parameters():
            vector = parameter.ndim < 2 or "norm" in name
            groups["vector" if vector else "embedding" if "embed" in name else "matrix"].append(
                parameter
            )
        return groups
