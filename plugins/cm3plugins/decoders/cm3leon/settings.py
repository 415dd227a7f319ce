"""Settings of the CM3leon decoder: plain values that need no registry, recipe or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cm3core.interfaces.reach import TEXT, Outside


@dataclass(kw_only=True)
class CM3LeonSettings:
    """Sizes and options. The defaults are the paper's 350M model (CM3leon paper, section 2.3).

    Args:
        context_length: maximum number of tokens in a sequence (paper: 4,096).
        num_layers: transformer blocks (paper: 24, 24, 32).
        d_model: width of the residual stream (paper: 1024, 1536, 4096).
        num_heads: attention heads, a divisor of `d_model` (16, 16, 32 in the OPT models of these
            sizes).
        d_ff: width of the feed-forward layer. None: 4 * d_model.
        activation: "relu" (OPT's launcher) or "gelu".
        dropout: dropout rate of the embeddings and both residual branches in training (paper: 0).
        tie_embeddings: the output projection is the token embedding (OPT's launcher; inferred for
            CM3leon).
        init_std: standard deviation of all matrices except the zero ones, truncated at 3 deviations. Narrow
            models need more than the paper's 0.006: about 0.02.
        position_init_std: the same for the learned positions.
        grid_positions: add learned row and column embeddings to the inputs of image codes. Not in the
            paper: a small model trained on little data doesn't learn positions within the picture without them.
        code_axes: axes of the image tokenizer's positions, name -> number of positions, such as {slot: 30, x: 99, y: 99}
            (cm3 describe image_tokenizer lists them): add a learned embedding for each axis to the inputs of image
            codes. Not in the paper.
        token_shift: keys see the token before, too: their input is x + (y - x) * m, with x and y the normalised inputs
            of the layer at this token and at the one before, and a learned m per channel and layer, 0.5 at first (RWKV).
            Not in the paper. A layer then recognises pairs of tokens; generation keeps half as much again per token.
        qk_norm: LayerNorm of queries and keys over the head dimension, with learned weights
            (Chameleon). Not in the paper.
        activation_checkpointing: recompute each block in the backward pass; saves memory, takes a third
            more time.
        codebook_scale: standard deviation of image code embeddings that are initialised from the tokenizer's
            codebook, in units of `init_std`.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "activation": TEXT,
    }

    context_length: int = 4096
    num_layers: int = 24
    d_model: int = 1024
    num_heads: int = 16
    d_ff: int | None = None
    activation: str = "relu"
    dropout: float = 0.0
    tie_embeddings: bool = True
    init_std: float = 0.006
    position_init_std: float = 0.0002
    grid_positions: bool = False
    code_axes: dict[str, int] = field(default_factory=dict)
    token_shift: bool = False
    qk_norm: bool = False
    activation_checkpointing: bool = False
    codebook_scale: float = 1.0
