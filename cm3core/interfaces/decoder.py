"""Kind `decoder`: the decoder-only transformer, tokens (+ cache) -> hidden states -> logits of a
range of ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.errors import GenerationError
from cm3core.interfaces.component import ComponentConfig
from cm3core.vocab import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from cm3core.interfaces.attention import AttentionBackend


@dataclass(kw_only=True)
class DecoderConfig(ComponentConfig):
    """Base of decoders' configs.

    Args:
        context_length: most tokens in a sequence (paper: 4,096).
    """

    kind: ClassVar[str] = "decoder"
    context_length: int = 4096

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> Decoder:
        """Return the decoder, weights initialised from torch's global generator, on torch's default
        device.

        `grid` is the image tokenizer's (rows, columns); decoders without grid positions ignore
        it."""
        raise NotImplementedError

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int | None:
        """Parameters of what `build` returns, by arithmetic: asked before building, so that absurd
        sizes are refused in time.

        None: not known; then nothing is refused."""
        return None


class KVCache(ABC):
    """Keys and values of what a decoder has read, for rows of different lengths. It is changed in
    place.

    Rows are independent. The engine forks them (candidates of one prompt), drops finished ones and
    lets new ones join. What forked rows have in common may be kept once.
    """

    @property
    @abstractmethod
    def length_B(self) -> Tensor:
        """int64 [B]: tokens that each row holds; on the device, so that nothing synchronises."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """The rows become `rows` of the present ones, in this order; a row named more than once is
        forked."""

    @abstractmethod
    def join(self, other: KVCache) -> None:
        """Append the rows of `other`, of the same decoder, which must not be used afterwards."""

    @abstractmethod
    def reserve(self, more_B: Sequence[int]) -> None:
        """See to it that each row can take so many tokens more than it holds."""

    @abstractmethod
    def advance(self, count_B: Sequence[int]) -> None:
        """Count so many of the tokens just written to each row as held (a ragged chunk writes more
        than it keeps).

        Raises `GenerationError` where a row would hold more than it has room for."""

    #: Whether a forward of one token a row can be recorded once and replayed: then it takes lengths
    #: from `length_B` (always the same tensor) and from nothing on the host, and the two methods
    #: below are what `advance` by one is made of.
    can_be_recorded: bool = False

    def count_on_device(self) -> None:
        """Count one token more of each row in `length_B`."""
        raise NotImplementedError

    def count_on_host(self) -> None:
        """Count one token more of each row in whatever the host keeps."""
        raise NotImplementedError


class Decoder(ABC):
    """A decoder-only transformer; implementations are also `torch.nn.Module`s.

    Legend: B rows, T tokens, E model dimension, V ids. A decoder hands out hidden states; its head
    is a second call over a range of ids, so that training can fuse the loss and decoding computes
    only what the grammar allows.
    """

    context_length: int
    vocab_size: int

    # what callers use of nn.Module, which can't be a base here: this module imports no torch
    if TYPE_CHECKING:
        training: bool

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

        def named_parameters(
            self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
        ) -> Iterator[tuple[str, nn.Parameter]]: ...

    @abstractmethod
    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, E], normalised, ready for the head.

        Args:
            tokens_BT: int64 ids.
            positions_BT: int64, 0..context_length-1. None: 0..T-1, after the row's length when
                there is a cache.
            cells_BT: int64; raster index of an image code in its picture, -1 elsewhere. None: all
                -1.
            kv_start_BT: int64; first position in the row that each token sees (documents packed
                into one row). None: 0. Not with a cache.
            cache: keys and values are written at each row's length; the caller calls
                `cache.advance` afterwards. Padding of a ragged chunk may reach past the end of a
                row or of the context: it is never counted, and may be dropped.
        """

    @abstractmethod
    def head_weight(self) -> Tensor:
        """[V, E]: logits are hidden @ head_weight.T (training's fused loss takes it)."""

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """Logits [..., len(ids)] of hidden states [..., E]; `ids` a step-1 range, None: all V."""
        weight = self.head_weight()
        return hidden @ (weight if ids is None else weight[ids.start : ids.stop]).to(hidden.dtype).T

    @abstractmethod
    def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
        """An empty cache of `num_rows` rows of at most `max_length` tokens, on the decoder's
        device."""

    def cache_bytes(self, num_tokens: int) -> int:
        """Bytes of `num_tokens` tokens of one row in a cache; the engine bounds memory by it. 0
        (the default): not known."""
        return 0

    def for_inference(self, precision: str = "auto") -> Decoder:
        """This decoder arranged for generation: weights laid out for few tokens at a time, or of
        fewer bits.

        It keeps the weights of this moment. The default is the decoder itself, which suits "auto"
        only.

        Args:
            precision: "auto" (the dtype that the weights have), "fp32", "bf16" or "int8" (weights,
                a scale for each output, and inputs, a scale for each row, where that is faster).

        Raises:
            GenerationError: a precision that this decoder, or this machine, doesn't do.
        """
        if precision != "auto":
            raise GenerationError(
                "precision",
                f"{type(self).__name__} has weights of one kind only, not {precision!r}",
                "use auto",
            )
        return self

    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:  # noqa: B027  # optional, not abstract
        """Start the image codes' embeddings from the tokenizer's code vectors [num_image, dim], so
        that codes that look alike begin alike. Optional: the default does nothing."""

    def parameter_groups(self) -> dict[str, list[Any]]:
        """Parameters by optimiser treatment: "matrix" (2-D weights inside layers), "embedding" and
        "vector" (the rest).

        Weight decay applies to "matrix"; Muon, where the recipe asks for it, too. The default sorts
        by name and rank."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.named_parameters():
            kind = "embedding" if "embed" in name else "matrix" if parameter.ndim >= 2 else "vector"
            groups[kind].append(parameter)
        return groups
