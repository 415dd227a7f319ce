"""Kind `decoder`: the decoder-only transformer, tokens -> hidden states -> logits.

`Decoder` is for training. `InferenceDecoder`, returned by its `for_inference`, is for generation:
it reads tokens into a cache, and may hold the same weights in another layout or precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.errors import GenerationError
from cm3core.interfaces.component import ComponentConfig
from cm3core.vocab import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from cm3core.interfaces.attention import AttentionBackend, AttentionConfig

#: Maximum bytes of one chunk's float32 logits in the default loss.
LOSS_CHUNK_BYTES = 32 << 20
#: The same on a GPU, where caches don't matter and large products are faster.
LOSS_CHUNK_BYTES_ON_GPU = 1 << 30


@dataclass(kw_only=True)
class DecoderConfig(ComponentConfig):
    """Base of decoders' configs.

    Args:
        context_length: maximum tokens in a sequence (paper: 4,096).
    """

    kind: ClassVar[str] = "decoder"
    #: Keys that affect a decoder's training, but not its output with given weights: they may
    #: differ between a run and the model that it starts from (`train.start_from`).
    training_keys: ClassVar[tuple[str, ...]] = ()
    #: Whether `build` on torch's device "meta" gives a decoder whose parameters (its only tensors) can
    #: be replaced by those of a file (`load_state_dict(assign=True)`), each in float32 or bfloat16.
    builds_without_weights: ClassVar[bool] = False
    #: Number of codes of one place of a picture that the decoder predicts in one forward pass. 1: one code after the
    #: other, which serves every form of pictures (`cm3core.picture_form`).
    codes_together: ClassVar[int] = 1
    context_length: int = 4096

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> Decoder:
        """Return the decoder on torch's default device.

        Weights are initialised from torch's global generator. `grid` is the image tokenizer's
        (rows, columns); decoders without grid positions ignore it."""
        raise NotImplementedError

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` if the decoder can't predict such pictures. By default it can predict all.

        Light, and called before anything is built.

        Args:
            grid: the image tokenizer's (rows, codes of a row).
            codebook_size: its number of codes.
        """

    def position_axes(self) -> Mapping[str, int]:
        """Return the axes of codes' positions that the decoder takes, name -> size; by default none. They are in its
        cells, in this order: see `PictureForm.cells`."""
        return {}

    def cache_bytes(self, num_tokens: int, itemsize: int) -> int | None:
        """Return the bytes that generation keeps for this many tokens, at `itemsize` bytes per value, by
        arithmetic; None (the default): unknown."""
        return None

    def attention_head_dim(self) -> int | None:
        """Return the dimension of an attention head; None (the default): unknown."""
        return None

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int | None:
        """Return the number of parameters that `build` would create, by arithmetic.

        Called before building, so that absurd sizes are refused in time. None: unknown,
        and nothing is refused."""
        return None

    def training_memory(
        self, vocabulary: Vocabulary, grid: tuple[int, int], one_pass: TrainingPass
    ) -> TrainingMemory | None:
        """Return the memory that training with passes of this size needs, by arithmetic.

        `cm3 recipe check` warns of recipes that exceed the machine; `cm3 train` refuses them. None: unknown, and only
        the parameters are counted."""
        return None


class KVCache(ABC):
    """Keys and values of the tokens a decoder has read, in rows of different lengths.

    Methods change it in place. Rows are independent: the engine forks them (candidates of one
    prompt), drops finished ones and joins new ones. Data shared by forked rows may be stored once.
    """

    @property
    @abstractmethod
    def length_B(self) -> Tensor:
        """Number of tokens in each row, int64 [B]; on the device, to avoid synchronisation."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep `rows` of the current rows, in this order; a row named more than once is forked.

        If the number of rows grows, the caller calls `reserve` before writing more."""

    @abstractmethod
    def join(self, other: KVCache) -> None:
        """Append the rows of `other`, of the same decoder, which must not be used afterwards."""

    @abstractmethod
    def reserve(self, more_B: Sequence[int]) -> None:
        """Make room in each row for this many more tokens."""

    @abstractmethod
    def advance(self, count_B: Sequence[int]) -> None:
        """Count this many of the tokens just written to each row as kept.

        A ragged chunk writes more tokens than it keeps. Raises `GenerationError` if a row would
        exceed its room."""

    #: Whether one chunk may be counted by several calls of `advance`: codes are drawn several at a time only then, since
    #: the last ones of a chunk are guesses.
    counts_in_parts: bool = False

    #: Whether `copy` is implemented: rows can then be kept for later prompts.
    can_be_copied: bool = False

    def copy(self, row: int, length: int) -> KVCache:
        """Return the first `length` tokens of a row (between one and its length) as a cache with
        one row, unaffected by later changes of this one."""
        raise NotImplementedError  # only needed if `can_be_copied`

    #: Whether a forward pass of one token per row can be recorded once and replayed. It must then take
    #: lengths only from `length_B` (always the same tensor) and nothing from the host, and `advance`
    #: by one must consist of the two methods below.
    can_be_recorded: bool = False

    def count_on_device(self) -> None:
        """Increase each row's count in `length_B` by one."""
        raise NotImplementedError

    def count_on_host(self) -> None:
        """Increase each row's count on the host by one."""
        raise NotImplementedError


class InferenceDecoder(ABC):
    """A decoder for generation: a snapshot of the weights, and caches that it fills.

    Legend: B rows, T tokens, E model dimension, V ids.
    """

    context_length: int
    vocab_size: int
    #: A forward pass over n tokens takes a time proportional to `rows_at_once` + n: how many tokens take as long as
    #: what every pass does (reading the weights, calling operations). It decides whether guessing ahead pays where
    #: nobody asked for it, and changes no result. 0: not known, and nothing is guessed.
    rows_at_once: float = 0

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of tokens, caches and hidden states."""

    @abstractmethod
    def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
        """Return an empty cache on the device: `num_rows` rows of at most `max_length` tokens."""

    def cache_bytes(self, num_tokens: int) -> int:
        """Return the bytes that `num_tokens` tokens of one row take in a cache.

        Used to bound memory. 0 (the default): unknown."""
        return 0

    def weight_bytes(self) -> int | None:
        """Return the memory used by the weights in bytes, including those of the decoder that this one was
        made from, but not pages of mapped files. None (the default): unknown."""
        return None

    @abstractmethod
    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden states [B, T, E] of new tokens, normalised, ready for `logits`.

        Args:
            tokens_BT: int64 ids.
            cache: of this decoder. Keys and values are written at each row's length; the caller
                calls `cache.advance` afterwards. Padding of a ragged chunk may reach past the end
                of a row or of the context; it is never counted, and may be dropped.
            positions_BT: int64, 0..context_length-1. None: continue from each row's length.
            cells_BT: int64; raster index of an image code in its picture, with positions if the config has
                `position_axes`; -1 elsewhere. None: all
                -1.
        """

    def hidden_states_ahead(
        self, tokens_BT: Tensor, *, cache: KVCache, cells_BT: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states [B, T, E] of new tokens, the last of which are guesses: the caller counts those
        that turn out right by `cache.advance`.

        The default is `hidden_states`. Where steps of one token have code of their own, their bits should
        be these."""
        return self.hidden_states(tokens_BT, cache=cache, cells_BT=cells_BT)

    @abstractmethod
    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """Logits [..., len(ids)] of hidden states [..., E]; `ids` a step-1 range, None: all V."""


class Decoder(ABC):
    """A decoder-only transformer for training; implementations are also `torch.nn.Module`s.

    Legend: B rows, T tokens, N tokens of a batch, E model dimension, V ids, G groups. A decoder
    returns hidden states; its head is a second call, over all ids for the loss and over a range of
    them for logits, so that the loss never needs all logits at once.
    """

    context_length: int
    vocab_size: int
    #: Ids (adjacent) whose logits come from a separate head, such as Janus' image codes. None: all ids
    #: share one head. A loss covers the ids of the target's head, and so does a draw.
    own_head: range | None = None
    #: Ids that a loss covers apart: of the codes of a slot, which the rules keep apart, only those.
    slots: tuple[range, ...] = ()

    @property
    def module(self) -> nn.Module:
        """The torch module that holds the weights to optimise, save and count.

        The default: the decoder itself."""
        from torch import nn

        assert isinstance(self, nn.Module), "a decoder must be an nn.Module or override `module`"
        return self

    @abstractmethod
    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden states [B, T, E], normalised, ready for the head.

        Args:
            tokens_BT: int64 ids.
            positions_BT: int64, 0..context_length-1. None: 0..T-1.
            cells_BT: int64; raster index of an image code in its picture, with positions if the config has
                `position_axes`; -1 elsewhere. None: all
                -1.
            kv_start_BT: int64; first position in the row that each token sees (documents packed
                into one row). None: 0.
        """

    @abstractmethod
    def head_weight(self) -> Tensor:
        """Return the head's weight [V, E]: logits are hidden @ head_weight.T. With `own_head`, that of
        the other ids, without rows for the ids in `own_head`."""

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """Logits [..., len(ids)] of hidden states [..., E]; `ids` a step-1 range, None: all V."""
        weight = self.head_weight()
        return hidden @ (weight if ids is None else weight[ids.start : ids.stop]).to(hidden.dtype).T

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
        """Return the weighted sum of the tokens' losses in nats, and its parts by group. A token's loss
        covers the ids that share its head.

        The default computes logits in chunks of rows, and again in the backward pass, so that the logits
        of a whole batch are never in memory: 8 rows of 4,096 tokens over 66,048 ids would be 8.7 GB.
        A decoder whose head allows it calls a fused loss instead
        (`cm3kernels.linear_cross_entropy`).

        Args:
            hidden_NE: hidden states, floating point.
            targets_N: int64, the id that each hidden state predicts (the inputs shifted by one).
            weights_N: float32, 0 or more. Tokens of weight 0 cost nothing and have no gradient.
            groups_N: integer, 0..num_groups-1 (the modality of the target).
            num_groups: number of groups to keep sums for.
            z_loss: adds z_loss * (log Z)^2 to each token's loss, which keeps logits from drifting
                (PaLM, arXiv:2204.02311, section 5).

        Returns:
            The scalar sum of weight * (nll + z loss), differentiable with respect to hidden states
            and head; and [G, 2]: each group's sum of weight * nll (without the z loss) and sum of
            weights. Float32; float64 for float64 hidden states.
        """
        from cm3core.interfaces.chunked_loss import chunked_loss_sums

        on_cpu = hidden_NE.device.type == "cpu"
        num_bytes = LOSS_CHUNK_BYTES if on_cpu else LOSS_CHUNK_BYTES_ON_GPU
        return chunked_loss_sums(
            self.logits,
            (hidden_NE, targets_N, weights_N, groups_N),
            size=max(1, num_bytes // (4 * self.vocab_size)),
            own_head=self.own_head,
            num_groups=num_groups,
            z_loss=z_loss,
        )

    def faster_precisions(self) -> tuple[str, ...]:
        """Return precisions that are faster on this machine than that of the stored weights, fastest first.

        `cm3core.load(precision="auto")` uses the first that hardly changes the model's predictions, according to a
        measurement. None by default."""
        return ()

    def for_inference(self, precision: str = "auto") -> InferenceDecoder:
        """Return this decoder for generation, with its current weights.

        The default serves decoders that generate as they are: their own `hidden_states` takes a
        `cache`, and `allocate_cache(num_rows, max_length)` makes one (see `InferenceDecoder` for
        both). Override it to lay weights out for few tokens at a time, or to use fewer bits.

        Args:
            precision: "auto" (the dtype of the weights; on a CUDA device a decoder may use bfloat16
                if the device supports it), "fp32", "bf16", "int8" (weights, with a
                scale per output; and, if that is faster, inputs, with a scale per row) or "int4"
                (weights, with a scale and an offset for each small group of them). "stored": like "auto",
                but in place, without another copy, even if that is slower.

        Raises:
            GenerationError: this decoder or this machine does not support the precision, or the
                decoder can't generate.
        """
        if precision not in ("auto", "stored"):
            raise GenerationError(
                "precision",
                f"{type(self).__name__} has weights of one kind only, not {precision!r}",
                "use auto",
            )
        if not hasattr(self, "allocate_cache"):
            raise GenerationError(
                f"decoder {type(self).__name__}",
                "has no allocate_cache, so it can't generate",
                "define allocate_cache and take a cache in hidden_states, or define for_inference",
            )
        return _AsItIs(self)

    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:  # noqa: B027  # optional, not abstract
        """Initialise the image codes' embeddings from the tokenizer's codebook [num_image, dim].

        Codes that look alike then start out alike. Optional: the default does nothing."""

    def sharded_blocks(self) -> list[nn.Module]:
        """Return the modules whose weights are gathered one after the other if processes share a
        decoder (FSDP); all other weights stay gathered during a step.

        The default: the members of the largest `nn.ModuleList`."""
        from torch import nn

        lists = [one for one in self.module.modules() if isinstance(one, nn.ModuleList)]
        sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in lists]
        return list(lists[sizes.index(max(sizes))]) if lists else []

    def parameter_groups(self) -> dict[str, list[Any]]:
        """Return the parameters by how the optimiser treats them.

        The groups are "matrix" (2-D weights inside layers), "embedding" and "vector" (the rest).
        Weight decay applies to "matrix", and so does Muon if the recipe asks for it. The default
        sorts by name and rank."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.module.named_parameters():
            kind = "embedding" if "embed" in name else "matrix" if parameter.ndim >= 2 else "vector"
            groups[kind].append(parameter)
        return groups


class _AsItIs(InferenceDecoder):
    """A decoder that generates with its own `hidden_states` and head."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size

    @property
    def device(self) -> torch.device:
        device: torch.device = self.decoder.head_weight().device
        return device

    def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
        cache: KVCache = self.decoder.allocate_cache(num_rows, max_length)
        return cache

    def cache_bytes(self, num_tokens: int) -> int:
        own = getattr(self.decoder, "cache_bytes", None)
        return 0 if own is None else int(own(num_tokens))

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
    ) -> Tensor:
        hidden: Tensor = self.decoder.hidden_states(
            tokens_BT, cache=cache, positions_BT=positions_BT, cells_BT=cells_BT
        )
        return hidden

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        logits: Tensor = self.decoder.logits(hidden, ids)
        return logits


# Memory needed for training, as far as a decoder knows it: by arithmetic, before anything is built.


@dataclass(frozen=True, kw_only=True)
class TrainingPass:
    """One forward and backward pass.

    Args:
        rows: packed rows.
        length: tokens of each.
        itemsize: bytes of a number in products: 2 with autocast to bfloat16, otherwise 4.
        attention: the backend's config, which knows the bytes it keeps.
        device: "cpu", "cuda": loss and attention use other chunk sizes there.
    """

    rows: int
    length: int
    itemsize: int
    attention: AttentionConfig | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """A decoder's part in the memory of training.

    Args:
        matrix_parameters: of the group "matrix" of `Decoder.parameter_groups`.
        other_parameters: of the other groups.
        largest_stack: parameters of the matrices of the most frequent shape, which Muon updates
            together.
        activations: bytes that the forward pass keeps for the backward pass.
        working: peak of additional temporary bytes: a chunk of the loss, one layer's
            gradients.
        smaller: overrides or keys that reduce the activations, besides the
            batch size.
        smaller_model: the keys that set the number of parameters.
        gathered: parameters that a device holds whole at a time if they are divided among
            devices: two blocks (the next is fetched during the first), and parameters outside blocks. 0:
            unknown, all of them.
        linear_features: inputs and outputs of all linear layers, added up: adapters of rank r have r
            times as many parameters. 0: unknown.
    """

    matrix_parameters: int
    other_parameters: int
    largest_stack: int
    activations: int
    working: int
    smaller: tuple[str, ...] = ()
    smaller_model: tuple[str, ...] = ()
    gathered: int = 0
    linear_features: int = 0
