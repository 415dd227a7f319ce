"""How torchtitan divides the decoder's parameters and activations by tensors (Megatron-style) and tokens.

Columns of the projections into heads and into the inner layer, rows of those back; ids of the embeddings and the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import spmd_types as spmd
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.models.common.decoder_sharding import (
    colwise_config,
    dense_activation_placement,
    dense_param_placement,
    dense_sequence_parallel_placement,
    norm_config,
    pre_lm_head_norm_config,
    rowwise_config,
    set_gqa_inner_attention_local_map,
)
from torchtitan.models.llama3.parallelize import parallelize_llama
from torchtitan.protocols.sharding import LocalMapConfig, ShardingConfig

if TYPE_CHECKING:
    from cm3titan.model import Block, CM3LeonModel, Embeddings


def parallelize(model: nn.Module, **options: Any) -> nn.Module:
    """torchtitan's division of a dense decoder, for gloo as well, which can't scale a sum while it is made."""
    divided: nn.Module = parallelize_llama(model, **options)
    if torch.distributed.get_backend() == "gloo":
        for module in divided.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    return divided


def set_sharding(config: CM3LeonModel.Config, *, enable_sp: bool) -> None:
    """Set the layout of every part. Axes of size 1 change nothing.

    Args:
        config: changed in place.
        enable_sp: divide activations between the projections by tokens (sequence parallelism).
    """
    _set_embeddings(config.tok_embeddings, enable_sp=enable_sp)
    for layer in config.layers:
        _set_block(layer, enable_sp=enable_sp)
    config.norm.sharding_config = pre_lm_head_norm_config(enable_sp=enable_sp)
    whole = dense_activation_placement(tp=spmd.R)
    by_ids = dense_activation_placement(tp=spmd.S(-1))
    config.lm_head.sharding_config = ShardingConfig(
        state_shardings={"weight": dense_param_placement(tp=spmd.S(0))},
        in_src_shardings={"input": whole},
        in_dst_shardings={"input": whole},
        out_src_shardings=by_ids,
        out_dst_shardings=by_ids,
    )


def _set_embeddings(config: Embeddings.Config, *, enable_sp: bool) -> None:
    """The table of ids is divided, so its rows are summed over processes; the small tables are whole in each."""
    whole, same = dense_activation_placement(tp=spmd.R), dense_activation_placement(tp=spmd.I)
    config.tokens.sharding_config = ShardingConfig(
        state_shardings={"weight": dense_param_placement(tp=spmd.S(0))},
        in_src_shardings={"input": whole},
        in_dst_shardings={"input": whole},
        out_src_shardings=dense_activation_placement(tp=spmd.P),
        out_dst_shardings=same,
        local_map=LocalMapConfig(in_grad_placements=None),
    )
    places = config.places
    for table in (places.positions, places.rows, places.columns):
        if table is not None:
            table.sharding_config = ShardingConfig(
                state_shardings={"weight": dense_param_placement(tp=spmd.I)}
            )
    places.sharding_config = ShardingConfig(
        in_src_shardings={"positions": whole, "cells": whole},
        in_dst_shardings={"positions": whole, "cells": whole},
        out_src_shardings=same,
        local_map=LocalMapConfig(in_grad_placements=None),
    )
    config.sharding_config = ShardingConfig(
        out_src_shardings=same,
        out_dst_shardings=dense_sequence_parallel_placement() if enable_sp else same,
    )


def _set_block(config: Block.Config, *, enable_sp: bool) -> None:
    outside = (
        dense_sequence_parallel_placement() if enable_sp else dense_activation_placement(tp=spmd.I)
    )
    gathered = ShardingConfig(
        in_src_shardings={"x": outside},
        in_dst_shardings={"x": dense_activation_placement(tp=spmd.R)},
    )
    config.attention_norm.sharding_config = norm_config(enable_sp=enable_sp)
    config.ffn_norm.sharding_config = norm_config(enable_sp=enable_sp)
    attention, feed_forward = config.attention, config.feed_forward
    attention.sharding_config = feed_forward.sharding_config = gathered
    for into in (attention.q_proj, attention.k_proj, attention.v_proj, feed_forward.fc1):
        into.sharding_config = colwise_config()
    for back in (attention.out_proj, feed_forward.fc2):
        back.sharding_config = rowwise_config(output_sp=enable_sp)
    set_gqa_inner_attention_local_map(attention.inner_attention)
    heads = dense_activation_placement(tp=spmd.S(2))
    for norm in (attention.q_norm, attention.k_norm):
        if norm is not None:
            norm.sharding_config = ShardingConfig(
                state_shardings={"weight": dense_param_placement(tp=spmd.R)},
                in_src_shardings={"input": heads},
                in_dst_shardings={"input": heads},
                out_src_shardings=heads,
                out_dst_shardings=heads,
            )
