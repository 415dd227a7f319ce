"""Sizes of a Chameleon, as Meta's `params.json` and Hugging Face's `config.json` state them. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3core.errors import CheckpointError

#: Ids of the tokenizer that Meta publishes. transformers' defaults (1 and 2) are wrong.
BOS, PAD, EOS = 0, 1, 2
#: Tokens that Chameleon was trained with. Neither form of its files says so.
CONTEXT_LENGTH = 4096


@dataclass(frozen=True)
class Facts:
    """Sizes and options of the decoder.

    `num_key_heads` are the heads of keys and values, `d_ff` the width of the feed-forward layer.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    d_ff: int
    norm_eps: float
    rope_theta: float
    swin_norm: bool
    context_length: int = CONTEXT_LENGTH

    @property
    def head_dim(self) -> int:
        """Dimension of a head."""
        return self.d_model // self.num_heads

    def check(self, place: str) -> None:
        """Raise `CheckpointError` if the numbers can't be those of a model."""
        numbers = (self.vocab_size, self.d_model, self.num_layers, self.num_heads, self.d_ff)
        fits = min(*numbers, self.num_key_heads) > 0 and self.norm_eps > 0 and self.rope_theta > 0
        fits = fits and self.d_model % (2 * self.num_heads) == 0
        if not fits or self.num_heads % self.num_key_heads:
            raise CheckpointError(place, f"states impossible sizes: {self}", "copy the file again")


def ffn_width(dim: int, multiple_of: int, multiplier: float) -> int:
    """Width of Meta's feed-forward layer.

    >>> ffn_width(4096, 256, 1.0), ffn_width(8192, 256, 1.0)
    (11008, 22016)
    """
    width = int(multiplier * int(2 * 4 * dim / 3))
    return multiple_of * -(-width // multiple_of)


def from_params(params: Mapping[str, Any], place: str, *, vocab_size: int) -> Facts:
    """The facts of Meta's parameters, files merged; the number of ids is that of the tensors."""
    with _readable(place):
        dim, heads = int(params["dim"]), int(params["n_heads"])
        multiplier = params.get("ffn_dim_multiplier")
        facts = Facts(
            vocab_size=vocab_size,
            d_model=dim,
            num_layers=int(params["n_layers"]),
            num_heads=heads,
            num_key_heads=int(params.get("n_kv_heads") or heads),
            d_ff=ffn_width(
                dim,
                int(params.get("multiple_of", 256)),
                1.0 if multiplier is None else float(multiplier),
            ),
            norm_eps=float(params.get("norm_eps", 1e-5)),
            rope_theta=float(params.get("rope_theta", 10_000.0)),
            swin_norm=bool(params.get("swin_norm", False)),
        )
        if not params.get("qk_normalization", True):
            raise ValueError("qk_normalization is false, and Chameleon has it")
    facts.check(place)
    return facts


def to_params(facts: Facts) -> dict[str, Any]:
    """Meta's parameters, from which `from_params` gives the same facts."""
    multiple, multiplier = 256, 1.0
    if ffn_width(facts.d_model, multiple, multiplier) != facts.d_ff:
        # rounded down later, so half is added
        multiple, multiplier = 1, (facts.d_ff + 0.5) / int(2 * 4 * facts.d_model / 3)
    return {
        "dim": facts.d_model,
        "n_layers": facts.num_layers,
        "n_heads": facts.num_heads,
        "n_kv_heads": facts.num_key_heads,
        "multiple_of": multiple,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": facts.norm_eps,
        "rope_theta": facts.rope_theta,
        "qk_normalization": True,
        "swin_norm": facts.swin_norm,
        "vocab_size": facts.vocab_size,
    }


def from_config(config: Mapping[str, Any], place: str) -> Facts:
    """The facts of a `config.json`; versions of transformers differ in where `rope_theta` is."""
    with _readable(place):
        if config.get("model_type") != "chameleon":
            raise ValueError(f"model_type is {config.get('model_type')!r}, not 'chameleon'")
        rope = config.get("rope_parameters") or {}
        scaling = config.get("rope_scaling") or {}
        kind = rope.get("rope_type", scaling.get("rope_type", scaling.get("type", "default")))
        if kind != "default":
            raise ValueError(f"rope_type is {kind!r}, and Meta's files know one sort only")
        heads = int(config["num_attention_heads"])
        facts = Facts(
            vocab_size=int(config["vocab_size"]),
            d_model=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_key_heads=int(config.get("num_key_value_heads") or heads),
            d_ff=int(config["intermediate_size"]),
            norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            swin_norm=bool(config.get("swin_norm", False)),
            context_length=int(config.get("max_position_embeddings", CONTEXT_LENGTH)),
        )
    facts.check(place)
    return facts


def to_config(facts: Facts, dtype: str) -> dict[str, Any]:
    """A `config.json` for transformers 4 and 5."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.d_model,
        "intermediate_size": facts.d_ff,
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_key_heads,
        "hidden_act": "silu",
        "max_position_embeddings": facts.context_length,
        "rms_norm_eps": facts.norm_eps,
        "rope_theta": facts.rope_theta,
        "rope_parameters": {"rope_theta": facts.rope_theta, "rope_type": "default"},
        "swin_norm": facts.swin_norm,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "torch_dtype": dtype,
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `CheckpointError` if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "there is no such file", "copy it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"is not JSON ({error})", "copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(str(path), "is no object of JSON", "copy it again")
    return values


class _readable:  # noqa: N801 (a context, read as a word)
    """Context that reports a missing or wrong value of a file of sizes."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, AttributeError, OverflowError)):
            cause = f"lacks {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(self.place, cause, "copy the file again") from error
