"""The Llama-style decoder for training. Its block is in `block.py`, generation in `inference.py`.

x + attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)) (Touvron et al. 2023, arXiv:2302.13971), with
rotary positions (Su et al. 2021, arXiv:2104.09864), grouped-query attention (Ainslie et al. 2023,
arXiv:2305.13245) and, if asked for, normalised queries and keys and the norms of Swin v2 at the end
of each branch (Chameleon, arXiv:2405.09818, section 2.3). Written from those papers; equal to
transformers' Chameleon and Llama, which the tests compare.

A head's dimension d is rotated together with d + D/2, as in transformers; files of Meta, which
rotate d with d + 1, are permuted when they are converted.

Legend: B rows, T tokens, N tokens of a batch, D head dimension, E model dimension, V ids.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cm3core.errors import DocumentError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder
from cm3core.vocab import Vocabulary
from cm3kernels import linear_cross_entropy
from cm3plugins.decoders.adapters import refuse_adapters
from cm3plugins.decoders.codebook_start import codebook_rows
from cm3plugins.decoders.llama.block import Block, Context, RMSNorm
from cm3plugins.decoders.llama.inference import LlamaInference
from cm3plugins.decoders.llama.rotary import Rotary
from cm3plugins.decoders.llama.settings import LlamaSettings


class LlamaDecoder(nn.Module, Decoder):
    """A Llama-style decoder; see `LlamaConfig` for the options, `Decoder` for the calls."""

    def __init__(self, config: LlamaSettings, vocab_size: int, attention: AttentionBackend) -> None:
        super().__init__()
        self.config, self.backend = config, attention
        self.context_length, self.vocab_size = config.context_length, vocab_size
        self.rotary = Rotary(config.context_length, config.head_size, config.rope_theta)
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.embed_output = (
            None if config.tie_embeddings else nn.Embedding(vocab_size, config.d_model)
        )
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
            self.rotary.at(positions_BT),
        )
        x_BTE = self.embed(tokens_BT, positions_BT, cells_BT)
        for block in self.blocks():
            if self.config.activation_checkpointing and self.training:
                x_BTE = checkpoint(block, x_BTE, context, use_reentrant=False)
            else:
                x_BTE = block(x_BTE, context)
        return cast(Tensor, self.norm(x_BTE))

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """The tokens' embeddings: positions only rotate queries and keys, cells count for nothing."""
        return cast(Tensor, self.embed_tokens(tokens_BT))

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

    def for_inference(self, precision: str = "auto") -> LlamaInference:
        refuse_adapters(self)
        return LlamaInference(self, precision)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:
        """Initialise the embeddings of image codes from the tokenizer's codebook [num_image, dim]."""
        std = self.config.codebook_scale * self.config.init_std
        rows_E = codebook_rows(codebook, vocabulary, self.config.d_model, std)
        for weight in {id(w): w for w in (self.embed_tokens.weight, self.head_weight())}.values():
            weight[vocabulary.image.start : vocabulary.image.stop] = rows_E.to(weight)

    def parameter_groups(self) -> dict[str, list[Any]]:
        """As the default; norms are vectors, whatever their shape."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.named_parameters():
            vector = parameter.ndim < 2 or "norm" in name
            groups["vector" if vector else "embedding" if "embed" in name else "matrix"].append(
                parameter
            )
        return groups
