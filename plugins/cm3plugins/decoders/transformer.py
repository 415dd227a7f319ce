"""Base of transformers in training: a stack of blocks, embeddings and the head.

A decoder adds its blocks, their shared inputs of a forward pass, and its final normalisation. Several products of the
same input are joined where that is faster (`projections`). Embeddings of image codes can start as the tokenizer's code
vectors, so that similar codes start similar (`codebook_rows`). Generation rearranges weights, including adapters such as
peft's LoRA (`merged_weight`): peft's layers have a `base_layer` (token adapters an `original_module`), and state whether
they are merged or disabled.

Legend: B rows, T tokens, N tokens of a batch, E model dimension (inputs of a product), V ids.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, InferenceDecoder
from cm3core.vocab import Vocabulary
from cm3kernels import linear_cross_entropy

#: Share of the token before in the input of a key, before training (`token_shift`).
FIRST_MIX = 0.5


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
    """Inputs shared by all blocks of a forward pass: the backend and the visibility."""

    attention: AttentionBackend
    kv_start_BT: Tensor | None
    plan: Any


class AxisEmbeddings(nn.Module):
    """Embeddings of image codes' positions on the tokenizer's axes, see `PictureForm.cells`.

    Args:
        axes: name -> number of positions.
        num_codes: of a picture's array.
        width: E.
    """

    def __init__(self, axes: Mapping[str, int], num_codes: int, width: int) -> None:
        super().__init__()
        self.axes, self.num_codes = dict(axes), num_codes
        self.tables = nn.ModuleDict({name: nn.Embedding(n, width) for name, n in axes.items()})

    def forward(self, cells_BT: Tensor) -> Tensor:
        """The sum over the axes, [B, T, E]; zeros for tokens that are not image codes."""
        position_BT = cells_BT.clamp(min=0) // self.num_codes
        found = []
        for name, size in reversed(self.axes.items()):
            found.append(self.tables[name](position_BT % size))
            position_BT = position_BT // size
        return cast(Tensor, sum(found[1:], found[0]) * (cells_BT >= 0)[..., None])


class TransformerDecoder(nn.Module, Decoder):
    """Embeddings, blocks, a final normalisation, and a head that may be the embeddings.

    Args:
        settings: sizes.
        vocab_size: number of ids.
        attention: the attention backend.
        num_rows: rows of the embeddings and the head. None: one per id.
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
        """Add the head's own weight, unless it is tied to the embeddings.

        Call it after the layers are created: random numbers are drawn in the order of the parameters.
        """
        rows, width = self.embed_tokens.weight.shape
        self.embed_output = None if self.settings.tie_embeddings else nn.Embedding(rows, width)

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, each called with the residual stream [B, T, E] and the context."""

    def context(self, shared: Context, positions_BT: Tensor, cells_BT: Tensor | None) -> Context:
        """The blocks' context: `shared`, or an extended copy."""
        return shared

    @abstractmethod
    def normed(self, x_BTE: Tensor) -> Tensor:
        """The final normalisation."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Input of the first block, [B, T, E]."""

    @abstractmethod
    def arranged(self, precision: str) -> InferenceDecoder:
        """See `for_inference`."""

    def forward(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        """Same as `hidden_states`; torch's wrappers (DDP, FSDP, compile) call this name."""
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


def before(x_BTE: Tensor, kv_start_BT: Tensor | None) -> Tensor:
    """The token before each; zeros before the first token of a row, or of a sequence in it (`kv_start_BT`)."""
    before_BTE = F.pad(x_BTE, (0, 0, 1, 0))[:, :-1]
    if kv_start_BT is None:
        return before_BTE
    first_BT = kv_start_BT == torch.arange(x_BTE.shape[1], device=x_BTE.device)
    return before_BTE.masked_fill(first_BT[..., None], 0)


def mixed(x: Tensor, before: Tensor, mix_E: Tensor) -> Tensor:
    """The input of keys with `token_shift`."""
    return x + (before - x) * mix_E.to(x.dtype)


def projections(x_BTE: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Return the layers' products of the same input.

    On a GPU one product with all weights computes them, see `joined`. For three projections of the same
    normalised stream, this saves 14 of a block's launches in a training step under autocast, and two
    casts of the stream with their gradients. Layers other than plain linear ones (adapters) are called one
    after another. So are all layers on a CPU, where launches and casts cost little.
    """
    if x_BTE.is_cuda and all(type(layer) is nn.Linear for layer in layers):
        linear = cast(Sequence[nn.Linear], layers)
        if len({layer.bias is None for layer in linear}) == 1:
            return joined(x_BTE, linear)
    return [layer(x_BTE) for layer in layers]


def shifted_projections(
    x_BTE: Tensor,
    layers: tuple[nn.Module, nn.Module, nn.Module],
    mix_E: Tensor | None,
    kv_start_BT: Tensor | None,
) -> Sequence[Tensor]:
    """Queries, keys and values of the same input.

    Args:
        x_BTE: the normalised input.
        layers: that project to queries, keys and values.
        mix_E: the share of the token before in the input of keys (`token_shift`). None: no shift.
        kv_start_BT: see `Decoder.hidden_states`.
    """
    if mix_E is None:
        return projections(x_BTE, layers)
    queries, keys, values = layers
    q_BTE, v_BTE = projections(x_BTE, (queries, values))
    return q_BTE, keys(mixed(x_BTE, before(x_BTE, kv_start_BT), mix_E)), v_BTE


def joined(x_BTE: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return the products from one call, as views of one tensor [B, T, all outputs].

    The weights are concatenated in each call and stay separate parameters: with thousands of tokens this
    costs little compared to the product.
    """
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    products = F.linear(x_BTE, torch.cat(weights), torch.cat(biases) if biases else None)
    return cast(Sequence[Tensor], products.split([layer.out_features for layer in layers], -1))


def codebook_rows(codebook: Tensor, vocabulary: Vocabulary, width: int, std: float) -> Tensor:
    """Return the code vectors, centred, projected by a fixed random orthogonal matrix, and scaled.

    One factor scales them all, so that distances between codes keep their proportions.

    Args:
        codebook: floating [num_image, dim].
        vocabulary: the vocabulary of these image codes.
        width: width of the embeddings.
        std: standard deviation of the result.

    Returns:
        Float64 [num_image, width], in the order of their ids.
    """
    if codebook.shape[0] != vocabulary.num_image:
        raise DocumentError(
            "codebook",
            f"{codebook.shape[0]} codes, but the vocabulary has {vocabulary.num_image}",
            "use the image tokenizer that the vocabulary was made for",
        )
    dim = codebook.shape[1]
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(max(width, dim), max(width, dim), generator=generator, dtype=torch.float64)
    projection_CE = torch.linalg.qr(square).Q[:dim, :width]
    codes = codebook.detach().to("cpu", torch.float64)
    rows_E: Tensor = (codes - codes.mean(0)) @ projection_CE
    rows_E *= std / rows_E.std().clamp(min=1e-12)
    if vocabulary.codes_in_order:
        return rows_E
    ids = np.arange(vocabulary.image.start, vocabulary.image.stop)
    return rows_E[torch.from_numpy(vocabulary.to_codes(ids)).long()]


def _unmerged(module: nn.Module) -> bool:
    """Whether an active adapter is not merged into the module's weight."""
    wraps = hasattr(module, "base_layer") or hasattr(module, "token_adapter")
    return wraps and not (
        getattr(module, "merged", False) or getattr(module, "disable_adapters", False)
    )


def merged_weight(linear: nn.Module) -> Tensor:
    """Return a linear layer's weight with its adapter merged in; the layer is unchanged.

    Args:
        linear: `torch.nn.Linear`, or peft's layer around one.

    Returns:
        The layer's own tensor [outputs, inputs], or a new one if an adapter was merged.
    """
    if not _unmerged(linear):
        return cast(Tensor, linear.weight)
    copied: Any = deepcopy(linear)  # merging and unmerging would leave a rounding error
    copied.merge()
    return cast(Tensor, copied.get_base_layer().weight)


def refuse_adapters(decoder: nn.Module) -> None:
    """Raise `GenerationError` for an active adapter that `merged_weight` can't merge: one of an embedding,
    or one without peft's `merge`."""
    for name, module in decoder.named_modules():
        mergeable = isinstance(getattr(module, "base_layer", None), nn.Linear) and hasattr(
            module, "merge"
        )
        if _unmerged(module) and not mergeable:
            raise GenerationError(
                f"decoder, {name}",
                "has an unmerged adapter, which generation would ignore",
                "merge it first: module.merge() of each such module, or peft's merge_and_unload",
            )
