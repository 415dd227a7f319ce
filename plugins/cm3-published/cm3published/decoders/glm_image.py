"""GLM-Image's decoder: blocks, rotary positions, the training decoder and the generation decoder.

x + norm(attention(norm(x))), then x + norm(SwiGLU(norm(x))). Equal to `GlmImageTextModel` of transformers (Apache-2.0), as
the tests check. Dimensions of queries and keys are permuted on conversion, so that the rotated pairs come first and
dimension d is rotated with d + D/2.

Legend: as in `cm3plugins.decoders.llama.model`; C codes of a picture, S pairs of dimensions (D/2).
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from cm3plugins.decoders.cache import CM3LeonCache, Reading
from cm3plugins.decoders.llama.model import (
    Block,
    LlamaDecoder,
    LlamaInference,
    RMSNorm,
    Rotary,
    Turned,
    by_head,
)
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.transformer import TransformerDecoder
from cm3published.decoders import GlmImageDecoderConfig


class GridsRotary(Rotary):
    """Rotation by three positions, see `GlmImageDecoderConfig`.

    >>> rotary = GridsRotary([[1, 2], [2, 2]], [1, 1, 1], 6, 10_000.0)
    >>> rotary.offsets_C3.tolist()
    [[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3]]
    """

    def __init__(
        self, grids: list[list[int]], sections: list[int], head_dim: int, theta: float
    ) -> None:
        super().__init__(head_dim, theta)
        with torch.device("cpu"):  # constants, also of a decoder that is built without weights
            self._set(grids, sections, head_dim, theta)

    def _set(
        self, grids: list[list[int]], sections: list[int], head_dim: int, theta: float
    ) -> None:
        offsets, start = [], 0
        for rows, columns in grids:
            places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
            offsets.append(start + torch.cat([torch.zeros(len(places), 1), places], dim=1).long())
            start += max(rows, columns)
        #: Of each code from the place of the first, int64.
        self.offsets_C3 = torch.cat(offsets)
        num_rotated = sum(sections)
        parts = torch.arange(3).repeat_interleave(torch.tensor(sections))
        rest = head_dim // 2 - num_rotated
        even = torch.arange(0, 2 * num_rotated, 2, dtype=torch.float32)
        frequency = 1.0 / (theta ** (even / (2 * num_rotated)))
        self.parts_S = torch.cat([parts, torch.zeros(rest, dtype=torch.long)])
        self.frequency_S = torch.cat([frequency, torch.zeros(rest)])

    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        position_BT3 = positions_BT[..., None].expand(*positions_BT.shape, 3)
        if cells_BT is not None:
            offset_BT3 = self.offsets_C3.to(cells_BT.device)[cells_BT.clamp(min=0)]
            of_code_BT3 = (positions_BT - cells_BT)[..., None] + offset_BT3
            position_BT3 = torch.where((cells_BT >= 0)[..., None], of_code_BT3, position_BT3)
        device = positions_BT.device
        angle_BTS = position_BT3[..., self.parts_S.to(device)] * self.frequency_S.to(device)
        angle_BT1D = angle_BTS.repeat(1, 1, 2)[:, :, None]
        return angle_BT1D.cos(), angle_BT1D.sin()

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        raise AssertionError("positions depend on the sequence")


class GlmBlock(Block):
    """Attention and SwiGLU, each normalised at its start and its end."""

    def __init__(self, config: LlamaSettings) -> None:
        super().__init__(config)
        self.attention_post_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ffn_post_norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, x_BTE: Tensor, context: Turned) -> Tensor:
        attended_BTE = self.attention(self.attention_norm(x_BTE), context)
        x_BTE = x_BTE + self._drop(self.attention_post_norm(attended_BTE))
        return x_BTE + self._drop(self.ffn_post_norm(self.feed_forward(self.ffn_norm(x_BTE))))


def no_logits(hidden: Tensor, ids: range) -> Tensor:
    """Return the logits [..., len(ids)] of ids without a row of the head: zeros."""
    return hidden.new_zeros(*hidden.shape[:-1], len(ids))


class GlmImageDecoder(LlamaDecoder):
    """GLM-Image's decoder; see `GlmImageDecoderConfig` for the options and `Decoder` for the methods."""

    block: ClassVar[type[Block]] = GlmBlock

    @property
    def sizes(self) -> GlmImageDecoderConfig:
        """`config`, typed."""
        return cast(GlmImageDecoderConfig, self.config)

    def make_rotary(self, grid: tuple[int, int]) -> Rotary:
        sizes = self.sizes
        return GridsRotary(sizes.grids, sizes.sections, sizes.head_size, sizes.rope_theta)

    def make_head(self) -> None:
        self.embed_output = nn.Embedding(self.sizes.head_ids, self.sizes.d_model)
        self.own_head = range(self.sizes.head_ids, self.vocab_size)

    def arranged(self, precision: str) -> GlmImageInference:
        return GlmImageInference(self, precision)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        weight = self.head_weight()
        return by_head(
            range(self.vocab_size) if ids is None else ids,
            range(self.sizes.head_ids, self.vocab_size),
            lambda rows: hidden @ weight[rows.start : rows.stop].to(hidden.dtype).T,
            lambda others: no_logits(hidden, others),
        )

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
        rows = self.sizes.head_ids
        other_N = targets_N >= rows
        loss, sums_G2 = TransformerDecoder.loss_sums(
            self,
            hidden_NE,
            targets_N.clamp(max=rows - 1),
            weights_N * ~other_N,
            groups_N,
            num_groups=num_groups,
            z_loss=z_loss,
        )
        nats = math.log(self.vocab_size - rows)  # of equal logits
        left_N = (weights_N * other_N).to(sums_G2.dtype)
        of_others_N2 = torch.stack([left_N * nats, left_N], dim=1)
        sums_G2 = sums_G2.index_add(0, groups_N.long(), of_others_N2)
        return loss + (left_N.sum() * (nats + z_loss * nats**2)).to(loss.dtype), sums_G2


class GlmImageInference(LlamaInference):
    """A snapshot of a decoder's weights, laid out for `Engine`."""

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        own = self.decoder.own_head
        assert own is not None
        return by_head(
            range(self.vocab_size) if ids is None else ids,
            own,
            lambda rows: self.rows_of_head(hidden, rows),
            lambda others: no_logits(hidden, others),
        )

    def through_layers(
        self,
        x_ME: Tensor,
        positions_BT: Tensor,
        cells_BT: Tensor | None,
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        turn = self.decoder.rotary.of_tokens(positions_BT, cells_BT)
        for number, layer in enumerate(self._layers):
            block = cast(GlmBlock, layer.block)
            normed_ME = block.attention_norm(x_ME)
            attended_ME = self._attention(number, layer, normed_ME, turn, cache, reading)
            x_ME += block.attention_post_norm(attended_ME)
            x_ME += block.ffn_post_norm(self._feed_forward(layer, block.ffn_norm(x_ME)))
        normed: Tensor = self.decoder.norm(x_ME)
        return normed
