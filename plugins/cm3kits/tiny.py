"""Parts of a small model without files: `TinyDecoder` with its cache, an image tokenizer with a few greys, and a memory
of pictures with its codes.

Every token affects all later ones, so a likelihood or a reranker based on the decoder distinguishes
inputs. Legend: B rows, T tokens, S cached keys, L layers, E model dimension, H heads, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cm3core.document import Codes, IntArray, PixelArray, Text
from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import Decoder, KVCache
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.interfaces.sampler import ModelParts
from cm3core.vocab import Vocabulary
from cm3kits.samples import ListSource

_NUM_LAYERS, _WIDTH, _NUM_HEADS = 2, 16, 2
_HEAD_WIDTH = _WIDTH // _NUM_HEADS


class TinyCache(KVCache):
    """Keys and values, separate for each row."""

    def __init__(self, num_rows: int, max_length: int, like: Tensor) -> None:
        self.held = like.new_zeros(_NUM_LAYERS, 2, num_rows, max_length, _NUM_HEADS, _HEAD_WIDTH)
        self._length_B = torch.zeros(num_rows, dtype=torch.int64, device=like.device)

    @property
    def length_B(self) -> Tensor:
        """Cached tokens per row."""
        return self._length_B

    def write(self, layer: int, k_BTHD: Tensor, v_BTHD: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to each row, if there is room; return all of the layer's keys and values."""
        for row, start in enumerate(self._length_B.tolist()):
            count = min(k_BTHD.shape[1], self.held.shape[3] - start)
            self.held[layer, 0, row, start : start + count] = k_BTHD[row, :count]
            self.held[layer, 1, row, start : start + count] = v_BTHD[row, :count]
        return self.held[layer, 0], self.held[layer, 1]

    def select(self, rows: Sequence[int]) -> None:
        """Fork, drop and reorder rows."""
        self.held, self._length_B = self.held[:, :, list(rows)], self._length_B[list(rows)]

    def join(self, other: KVCache) -> None:
        """Append the rows of another `TinyCache`."""
        assert isinstance(other, TinyCache)
        size = max(self.held.shape[3], other.held.shape[3])
        self.held = torch.cat([_grown(self.held, size), _grown(other.held, size)], dim=2)
        self._length_B = torch.cat([self._length_B, other._length_B])

    def reserve(self, more_B: Sequence[int]) -> None:
        """Make room."""
        self.held = _grown(
            self.held, int((self._length_B + self._length_B.new_tensor(more_B)).max())
        )

    def advance(self, count_B: Sequence[int]) -> None:
        """Mark tokens as cached."""
        length_B = self._length_B + self._length_B.new_tensor(count_B)
        if int(length_B.max()) > self.held.shape[3]:
            raise GenerationError(
                "cache",
                f"has room for {self.held.shape[3]} tokens per row, not {int(length_B.max())}",
                "reserve more",
            )
        self._length_B = length_B


def _grown(held: Tensor, size: int) -> Tensor:
    return nn.functional.pad(held, (0, 0, 0, 0, 0, max(0, size - held.shape[3])))


class TinyDecoder(nn.Module, Decoder):
    """Two pre-norm layers of width 16 with learned positions; the head is the embedding.

    Args:
        vocab_size: number of ids.
        attention: backend of its layers.
        context_length: maximum tokens per row.
    """

    def __init__(
        self, vocab_size: int, attention: AttentionBackend, context_length: int = 64
    ) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.attention = vocab_size, context_length, attention
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.35 * torch.randn(shape, generator=generator))

        self.embedding, self.position_embedding = (
            weight(vocab_size, _WIDTH),
            weight(context_length, _WIDTH),
        )
        self.qkv = nn.ParameterList([weight(_WIDTH, 3 * _WIDTH) for _ in range(_NUM_LAYERS)])
        self.out = nn.ParameterList([weight(_WIDTH, _WIDTH) for _ in range(_NUM_LAYERS)])
        self.inner = nn.ParameterList([weight(_WIDTH, 2 * _WIDTH) for _ in range(_NUM_LAYERS)])
        self.outer = nn.ParameterList([weight(2 * _WIDTH, _WIDTH) for _ in range(_NUM_LAYERS)])

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return final hidden states [B, T, E]; see `Decoder.hidden_states`."""
        B, T = tokens_BT.shape
        offset_B = None if cache is None else cache.length_B
        if positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device)[None] + (
                0 if offset_B is None else offset_B[:, None]
            )
        # padding of a chunk may reach past the context
        positions_BT = positions_BT.clamp(max=self.context_length - 1)
        x_BTE = self.embedding[tokens_BT] + self.position_embedding[positions_BT]
        for layer, (qkv, out, inner, outer) in enumerate(
            zip(self.qkv, self.out, self.inner, self.outer, strict=True)
        ):
            q, k, v = ((_norm(x_BTE) @ qkv).view(B, T, 3, _NUM_HEADS, _HEAD_WIDTH)).unbind(2)
            if cache is not None:
                k, v = cast(TinyCache, cache).write(layer, k, v)
            seen_BTHD = self.attention.attend(q, k, v, kv_start_BT=kv_start_BT, offset_B=offset_B)
            x_BTE = x_BTE + seen_BTHD.reshape(B, T, _WIDTH) @ out
            x_BTE = x_BTE + (_norm(x_BTE) @ inner).relu() @ outer
        return _norm(x_BTE)

    def head_weight(self) -> Tensor:
        """The embedding [V, E]."""
        return self.embedding

    def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
        """An empty `TinyCache`."""
        return TinyCache(num_rows, max_length, self.embedding)


def _norm(x_BTE: Tensor) -> Tensor:
    return nn.functional.layer_norm(x_BTE, x_BTE.shape[-1:])


class GreySquares(ImageTokenizer):
    """One code per pixel: the nearest of evenly spaced greys."""

    def __init__(self, grid: tuple[int, int], codebook_size: int) -> None:
        self._grid, self._codebook_size = grid, codebook_size

    @property
    def image_size(self) -> tuple[int, int]:
        """A pixel for each code."""
        return self._grid

    @property
    def grid(self) -> tuple[int, int]:
        """As given."""
        return self._grid

    @property
    def codebook_size(self) -> int:
        """As given."""
        return self._codebook_size

    @property
    def fingerprint(self) -> str:
        """Of its sizes."""
        return f"grey squares {self._grid} {self._codebook_size}"

    def codebook(self) -> torch.Tensor:
        """The greys, 0..1, float32 [codebook_size, 1]."""
        return torch.linspace(0, 1, self._codebook_size)[:, None]

    @cached_property
    def _greys(self) -> IntArray:
        return np.linspace(0, 255, self._codebook_size).round().astype(np.int32)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        grey_Nc = pixels_NHWC.astype(np.int32).mean(axis=3).reshape(len(pixels_NHWC), -1)
        nearest_Nc: IntArray = np.abs(grey_Nc[:, :, None] - self._greys).argmin(2).astype(np.int32)
        return nearest_Nc

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        grey_NHW = self._greys[codes_Nc].astype(np.uint8).reshape(-1, *self._grid)
        return np.repeat(grey_NHW[..., None], 3, axis=3)


def example_parts(
    *, grid: tuple[int, int], num_codes: int, first_code: int, num_pictures: int = 12
) -> ModelParts:
    """A model's parts.

    Args:
        grid: of its pictures.
        num_codes: of its image tokenizer.
        first_code: id of image code 0.
        num_pictures: in its memory.
    """
    codes_Nc = np.random.default_rng(0).integers(
        0, num_codes, (num_pictures, grid[0] * grid[1]), np.int32
    )
    memory = ListSource(
        [(Text(f"picture {i}"), Codes(codes, grid)) for i, codes in enumerate(codes_Nc)]
    )
    codes = range(first_code, first_code + num_codes)
    vocabulary = Vocabulary(codes.stop, (range(1, first_code),), codes, {"pad": 0}, first_text=1)
    return ModelParts(GreySquares(grid, num_codes), vocabulary, lambda: memory)
