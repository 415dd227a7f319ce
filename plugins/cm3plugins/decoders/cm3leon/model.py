"""The CM3leon decoder, read top to bottom: cache, attention, block, model.

CM3leon paper, section 2.3: a decoder-only transformer as OPT / GPT-3 (pre-LN, learned absolute positions), without biases,
dropout or learnable normalisation; truncated normal initialisation of 0.006 with both residual outputs at zero. Details the
paper leaves open follow facebookresearch/metaseq (branch scaling_racm3, flags `disable_bias`, `disable_affine_ln`): LayerNorm
eps 1e-5, a final LayerNorm, no sqrt(d_model) on embeddings, ReLU, output projection tied to the embedding. metaseq's position
table has two rows more that nothing ever reads (fairseq's padding offset); ours starts at 0 and has `context_length` rows.

Legend: B rows, T tokens, S key slots, L layers, H heads, K key heads (= H), D head dimension, E model dimension, V ids,
X rows of another selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, KVCache
from cm3core.vocab import Vocabulary
from cm3plugins.decoders.cm3leon import CM3LeonConfig

LAYER_NORM_EPS = 1e-5


class Matrices(NamedTuple):
    """A block's weights as the factors of products on the right: [in, out]."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


class CM3LeonCache(KVCache):
    """Preallocated keys and values, [L, B, K, S + 1, D] (a head's keys side by side: the CPU reads them up to three times as
    fast); each row is as long as it is.

    The slot after the last takes what a ragged chunk writes past a full row's end; it is never counted as held.
    `held_at_most` is the longest row's length as the host knows it: exact on the CPU, an upper bound elsewhere, so that
    attention reads no more slots than needed and nothing waits for the device. `matrices`, if any, is the blocks' weights in
    the layout that multiplies few tokens fastest; a cache belongs to the weights that filled it.
    """

    def __init__(self, keys_LBKSD: Tensor, values_LBKSD: Tensor, length_B: Tensor, held_at_most: int,
                 matrices: list[Matrices] | None) -> None:
        self.keys_LBKSD, self.values_LBKSD = keys_LBKSD, values_LBKSD
        self._length_B, self.held_at_most, self.matrices = length_B, held_at_most, matrices
        self._num_written = 0  # tokens a row by the last forward, not yet counted by `advance`

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.keys_LBKSD.shape[3] - 1

    @property
    def length_B(self) -> Tensor:
        return self._length_B

    def select(self, rows: Tensor) -> CM3LeonCache:
        L, _, K, S, D = self.keys_LBKSD.shape
        length_X = self._length_B[rows]
        used = _longest(length_X, otherwise=self.held_at_most)
        copies = []
        for memory_LBKSD in (self.keys_LBKSD, self.values_LBKSD):
            copies.append(memory_LBKSD.new_zeros(L, len(rows), K, S, D))
            copies[-1][..., :used, :] = memory_LBKSD[..., :used, :].index_select(1, rows)
        return CM3LeonCache(copies[0], copies[1], length_X, used, self.matrices)

    def advance(self, count_B: Tensor) -> None:
        self._length_B = self._length_B + count_B.to(self._length_B)
        longest = _longest(self._length_B, otherwise=min(self.held_at_most + self._num_written, self.capacity))
        if longest > self.capacity:
            raise GenerationError("key-value cache", f"a row of {longest} tokens in a cache of {self.capacity}",
                                  "ask for fewer tokens, or allocate a longer cache")
        self.held_at_most, self._num_written = longest, 0

    def begin(self, num_tokens: int) -> tuple[Tensor, Tensor, int]:
        """Of the `num_tokens` about to be written to each row: positions [B, T], flat slots [B * T * K], slots to read."""
        self._num_written = num_tokens
        B, K, S = self.keys_LBKSD.shape[1:4]
        positions_BT = self._length_B[:, None] + torch.arange(num_tokens, device=self._length_B.device)
        first_B1K = torch.arange(0, B * K * S, S, device=positions_BT.device).view(B, 1, K)
        slots_BTK = first_B1K + positions_BT.clamp(max=S - 1)[..., None]
        return positions_BT, slots_BTK.flatten(), min(self.held_at_most + num_tokens, S)

    def write(self, layer: int, slots: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> None:
        """Put one layer's new keys and values where `begin` said."""
        for memory_LBKSD, new_BTKD in ((self.keys_LBKSD, k_BTKD), (self.values_LBKSD, v_BTKD)):
            memory_LBKSD[layer].flatten(0, 2).index_copy_(0, slots, new_BTKD.flatten(0, 2).to(memory_LBKSD.dtype))

    def read(self, layer: int, num_keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """One layer's first `num_keys` keys and values, views [B, S, K, D]."""
        k_BSKD, v_BSKD = (memory_LBKSD[layer, :, :, :num_keys].transpose(1, 2).to(dtype)
                          for memory_LBKSD in (self.keys_LBKSD, self.values_LBKSD))
        return k_BSKD, v_BSKD


def _longest(length_B: Tensor, otherwise: int) -> int:
    """The greatest length where the host can look without waiting for a device, else the bound given."""
    if length_B.device.type != "cpu":
        return otherwise
    return int(length_B.max()) if len(length_B) else 0


@dataclass
class Context:
    """What all blocks of one forward share: the backend, who sees whom, and where the cache is read and written."""

    attention: AttentionBackend
    kv_start_BT: Tensor | None
    offset_B: Tensor | None
    plan: Any
    cache: CM3LeonCache | None = None
    slots: Tensor | None = None
    num_keys: int = 0

    @property
    def matrices(self) -> list[Matrices] | None:
        """The cache's copy of the weights, if it has one."""
        return None if self.cache is None else self.cache.matrices

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Attention of new tokens on themselves and on what the cache holds."""
        if self.cache is not None and self.slots is not None:
            self.cache.write(layer, self.slots, k_BTKD, v_BTKD)
            if self.offset_B is not None:
                k_BTKD, v_BTKD = self.cache.read(layer, self.num_keys, q_BTHD.dtype)
        return self.attention.attend(q_BTHD, k_BTKD, v_BTKD, kv_start_BT=self.kv_start_BT, offset_B=self.offset_B,
                                     plan=self.plan)


class Block(nn.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)). The second matrix of both branches starts at zero."""

    def __init__(self, config: CM3LeonConfig, layer: int) -> None:
        super().__init__()
        E, F_ = config.d_model, config.d_ff or 4 * config.d_model
        self.layer, self.num_heads, self.dropout = layer, config.num_heads, config.dropout
        self.activation: Callable[[Tensor], Tensor] = getattr(F, config.activation)
        self.q_proj = nn.Linear(E, E, bias=False)
        self.k_proj = nn.Linear(E, E, bias=False)
        self.v_proj = nn.Linear(E, E, bias=False)
        self.out_proj = nn.Linear(E, E, bias=False)
        self.fc1 = nn.Linear(E, F_, bias=False)
        self.fc2 = nn.Linear(F_, E, bias=False)
        D = E // config.num_heads
        self.q_norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()

    def matrices(self) -> Matrices:
        """Views of the weights."""
        linears = (self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.fc1, self.fc2)
        return Matrices(*(linear.weight.T for linear in linears))

    def forward(self, x_BTE: Tensor, context: Context) -> Tensor:
        weights = self.matrices() if context.matrices is None else context.matrices[self.layer]
        x_BTE = x_BTE + F.dropout(self.attention(layer_norm(x_BTE), weights, context), self.dropout, self.training)
        hidden_BTF = self.activation(layer_norm(x_BTE) @ weights.up)
        return x_BTE + F.dropout(hidden_BTF @ weights.down, self.dropout, self.training)

    def attention(self, x_BTE: Tensor, weights: Matrices, context: Context) -> Tensor:
        heads = (*x_BTE.shape[:2], self.num_heads, -1)
        q_BTHD = self.q_norm((x_BTE @ weights.query).view(heads))
        k_BTKD = self.k_norm((x_BTE @ weights.key).view(heads))
        v_BTKD = (x_BTE @ weights.value).view(heads)
        return context.attend(self.layer, q_BTHD, k_BTKD, v_BTKD).flatten(2) @ weights.out


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without weight or bias."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Normal of mean 0, cut at 3 standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3.0 * std, b=3.0 * std)


class CM3LeonDecoder(nn.Module, Decoder):
    """The decoder-only transformer of CM3leon. See `CM3LeonConfig` for the options, `Decoder` for the calls."""

    def __init__(self, config: CM3LeonConfig, vocab_size: int, attention: AttentionBackend, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.backend, self.grid = config, attention, grid
        self.context_length, self.vocab_size = config.context_length, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.context_length, config.d_model)
        if config.grid_positions:
            self.embed_rows = nn.Embedding(grid[0], config.d_model)
            self.embed_columns = nn.Embedding(grid[1], config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.embed_output = None if config.tie_embeddings else nn.Embedding(vocab_size, config.d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the paper says; the order of draws is the order of the parameters."""
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("_norm.weight"):
                nn.init.ones_(parameter)
            else:
                positions = name == "embed_positions.weight"
                truncated_normal_(parameter, self.config.position_init_std if positions else self.config.init_std)

    def forward(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        """`hidden_states`, under the name that torch's wrappers (DDP, FSDP, compile) call."""
        return self.hidden_states(tokens_BT, **options)

    def hidden_states(self, tokens_BT: Tensor, *, positions_BT: Tensor | None = None, cells_BT: Tensor | None = None,
                      kv_start_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        assert cache is None or isinstance(cache, CM3LeonCache), "a cache comes from this decoder's allocate_cache"
        default_positions_BT, context = self.context(tokens_BT, kv_start_BT, cache, own_positions=positions_BT is not None)
        x_BTE = self.embed(tokens_BT, default_positions_BT if positions_BT is None else positions_BT, cells_BT)
        for block in self.blocks():
            if self.config.activation_checkpointing and self.training:
                x_BTE = checkpoint(block, x_BTE, context, use_reentrant=False)
            else:
                x_BTE = block(x_BTE, context)
        return layer_norm(x_BTE)

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def context(self, tokens_BT: Tensor, kv_start_BT: Tensor | None, cache: CM3LeonCache | None, *,
                own_positions: bool) -> tuple[Tensor, Context]:
        """Default positions, and what the blocks share. A cache that holds nothing yet is attended to as if there were none."""
        T = tokens_BT.shape[1]
        if cache is None:
            if not own_positions and self.context_length < T:
                raise DocumentError("sequence", f"{T} tokens, the decoder's context is {self.context_length}",
                                    "shorten the texts, retrieve fewer documents, or train with a longer context_length")
            positions_BT = torch.arange(T, device=tokens_BT.device)[None]
            offset_B, slots, num_keys = None, None, T
        else:
            num_held = cache.held_at_most
            positions_BT, slots, num_keys = cache.begin(T)
            offset_B = cache.length_B if num_held else None
            num_keys = num_keys if num_held else T
            positions_BT = positions_BT.clamp(max=self.context_length - 1)  # past the end only padding of ragged chunks
        plan = self.backend.plan(num_queries=T, num_keys=num_keys, kv_start_BT=kv_start_BT, offset_B=offset_B)
        return positions_BT, Context(self.backend, kv_start_BT, offset_B, plan, cache, slots, num_keys)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Token + position (+ row + column of an image code's cell)."""
        x_BTE = self.embed_tokens(tokens_BT) + self.embed_positions(positions_BT)
        if self.config.grid_positions and cells_BT is not None:
            raster_BT = cells_BT.clamp(min=0)
            grid_BTE = self.embed_rows(raster_BT // self.grid[1]) + self.embed_columns(raster_BT % self.grid[1])
            x_BTE = x_BTE + grid_BTE * (cells_BT >= 0)[..., None].to(grid_BTE.dtype)
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.embed_output is None else self.embed_output.weight

    def allocate_cache(self, num_rows: int, max_length: int, dtype: torch.dtype | None = None) -> CM3LeonCache:
        if max_length > self.context_length:
            raise GenerationError("prompt", f"{max_length} tokens with what is to be generated, the context is "
                                  f"{self.context_length}", "shorten the prompt, retrieve fewer documents, or generate less")
        config, weight = self.config, self.embed_tokens.weight
        shape = (config.num_layers, num_rows, config.num_heads, max_length + 1, config.d_model // config.num_heads)
        keys, values = (torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device) for _ in range(2))
        matrices = None
        if weight.device.type == "cpu":  # twice as fast for a few tokens as nn.Linear's layout
            with torch.no_grad():
                matrices = [Matrices(*(matrix.contiguous() for matrix in block.matrices())) for block in self.blocks()]
        return CM3LeonCache(keys, values, torch.zeros(num_rows, dtype=torch.int64, device=weight.device), 0, matrices)

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:
        """Image codes' embeddings: the code vectors, centred, through a fixed random orthogonal projection, scaled as a whole
        to `codebook_scale` times the deviation of the other embeddings. Distances between codes keep their proportions.

        Args:
            codebook: floating [num_image, dim].
            vocabulary: where the image codes' rows are.
        """
        if codebook.shape[0] != vocabulary.num_image:
            raise DocumentError("codebook", f"{codebook.shape[0]} codes, the vocabulary has {vocabulary.num_image}",
                                "use the image tokenizer that the vocabulary was made for")
        E, dim = self.config.d_model, codebook.shape[1]
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(max(E, dim), max(E, dim), generator=generator, dtype=torch.float64)
        projection_CE = torch.linalg.qr(square).Q[:dim, :E]
        codes = codebook.detach().to("cpu", torch.float64)
        rows_E = (codes - codes.mean(0)) @ projection_CE
        rows_E *= self.config.codebook_scale * self.config.init_std / rows_E.std().clamp(min=1e-12)
        for weight in {id(w): w for w in (self.embed_tokens.weight, self.head_weight())}.values():
            weight[vocabulary.image.start:vocabulary.image.stop] = rows_E.to(weight)
