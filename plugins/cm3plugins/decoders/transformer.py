"""What the transformers here share in training: blocks one after another, embeddings and the head.

A decoder adds its blocks, what they share in a forward pass, and its final normalisation.

Legend: B rows, T tokens, N tokens of a batch, E model dimension, V ids.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cm3core.errors import DocumentError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, InferenceDecoder
from cm3core.vocab import Vocabulary
from cm3kernels import linear_cross_entropy
from cm3plugins.decoders.adapters import refuse_adapters
from cm3plugins.decoders.codebook_start import codebook_rows


class TransformerSettings(Protocol):
    """The settings that are read here."""

    context_length: int
    d_model: int
    init_std: float
    codebook_scale: float
    tie_embeddings: bool
    activation_checkpointing: bool


@dataclass
class Context:
    """Shared by all blocks of one forward: the backend and the visibility."""

    attention: AttentionBackend
    kv_start_BT: Tensor | None
    plan: Any


class TransformerDecoder(nn.Module, Decoder):
    """Embeddings, blocks, a final normalisation, and a head that may be the embeddings.

    Args:
        settings: sizes.
        vocab_size: number of ids.
        attention: what computes attention.
        num_rows: rows of the embeddings and the head. None: one for each id.
    """

    def __init__(
        self,
        settings: TransformerSettings,
        vocab_size: int,
        attention: AttentionBackend,
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.backend = settings, attention
        self.context_length, self.vocab_size = settings.context_length, vocab_size
        self.embed_tokens = nn.Embedding(
            vocab_size if num_rows is None else num_rows, settings.d_model
        )

    def make_head(self) -> None:
        """Add the head's own weight, unless it is the embeddings'.

        Called after the layers are made: random numbers are drawn in the order of the parameters.
        """
        rows, width = self.embed_tokens.weight.shape
        self.embed_output = None if self.settings.tie_embeddings else nn.Embedding(rows, width)

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, each called with the residual stream [B, T, E] and the context."""

    def context(self, shared: Context, positions_BT: Tensor, cells_BT: Tensor | None) -> Context:
        """What the blocks are given: `shared`, or that with more in it."""
        return shared

    @abstractmethod
    def normed(self, x_BTE: Tensor) -> Tensor:
        """The final normalisation."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """What enters the first block, [B, T, E]."""

    @abstractmethod
    def arranged(self, precision: str) -> InferenceDecoder:
        """See `for_inference`."""

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
        plan = self.backend.plan(num_queries=T, num_keys=T, kv_start_BT=kv_start_BT)
        context = self.context(Context(self.backend, kv_start_BT, plan), positions_BT, cells_BT)
        x_BTE = self.embed(tokens_BT, positions_BT, cells_BT)
        for block in self.blocks():
            if self.settings.activation_checkpointing and self.training:
                x_BTE = checkpoint(block, x_BTE, context, use_reentrant=False)
            else:
                x_BTE = block(x_BTE, context)
        return self.normed(x_BTE)

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

    @abstractmethod
    def faster_precisions(self) -> tuple[str, ...]: ...

    def for_inference(self, precision: str = "auto") -> InferenceDecoder:
        refuse_adapters(self)
        return self.arranged(precision)

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
        std = self.settings.codebook_scale * self.settings.init_std
        rows_E = codebook_rows(codebook, vocabulary, self.settings.d_model, std)
        for weight in {id(w): w for w in (self.embed_tokens.weight, self.head_weight())}.values():
            weight[vocabulary.image.start : vocabulary.image.stop] = rows_E.to(weight)
