"""The decoders' kit: a right decoder passes, and each law fails for one that is wrong in just that
way.

Legend: B rows, T tokens, E model dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import DecoderConfig, InferenceDecoder, KVCache
from cm3core.vocab import Vocabulary
from cm3kits.attention import DenseAttention
from cm3kits.decoder import DecoderContract
from cm3kits.tiny import TinyCache, TinyDecoder
from kit_mutants import assert_covers, assert_law_fails, cases


@dataclass(kw_only=True)
class TinyConfig(DecoderConfig):
    context_length: int = 64

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> TinyDecoder:
        return TinyDecoder(vocabulary.size, attention, self.context_length)

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int | None:
        return 16 * (vocabulary.size + self.context_length) + 2 * 16 * (3 * 16 + 16 + 2 * 32)


class TestRight(DecoderContract):
    config = TinyConfig()


# ---- wrong attention


class SeesTheFuture(DenseAttention):
    def attend(
        self, q_BTHD: Tensor, *others: Tensor, offset_B: Tensor | None = None, **options: Any
    ) -> Tensor:
        offset_B = torch.zeros(len(q_BTHD), dtype=torch.int64) if offset_B is None else offset_B
        return super().attend(q_BTHD, *others, offset_B=offset_B + 1, **options)


class LooksBackThreeTokens(DenseAttention):
    def attend(
        self,
        q_BTHD: Tensor,
        *others: Tensor,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        place_BT = (
            torch.arange(q_BTHD.shape[1])
            + (torch.zeros(len(q_BTHD), dtype=torch.int64) if offset_B is None else offset_B)[
                :, None
            ]
        )
        start_BT = place_BT - 2 if kv_start_BT is None else torch.maximum(place_BT - 2, kv_start_BT)
        return super().attend(
            q_BTHD, *others, kv_start_BT=start_BT.clamp(min=0), offset_B=offset_B, **options
        )


# ---- wrong decoders


class MixesRows(TinyDecoder):
    def hidden_states(self, *args: Any, **options: Any) -> Tensor:
        states_BTE = super().hidden_states(*args, **options)
        return states_BTE - 0.1 * states_BTE.mean(0, keepdim=True)


class ForgetsStarts(TinyDecoder):
    def hidden_states(
        self, *args: Any, kv_start_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        return super().hidden_states(*args, **options)


class ForgetsPositions(TinyDecoder):
    def hidden_states(
        self, *args: Any, positions_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        return super().hidden_states(*args, **options)


class CountsFromOne(TinyDecoder):
    def hidden_states(
        self, tokens_BT: Tensor, *, positions_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        if positions_BT is None and options.get("cache") is None:
            positions_BT = torch.arange(1, tokens_BT.shape[1] + 1)[None]
        return super().hidden_states(tokens_BT, positions_BT=positions_BT, **options)


class TakesNoCellsForTheFirst(TinyDecoder):
    def hidden_states(
        self, tokens_BT: Tensor, *, cells_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        states_BTE = super().hidden_states(tokens_BT, **options)
        return states_BTE + 0.1 * (cells_BT is None or cells_BT.clamp(min=0)[..., None].double())


class WritesOnTokens(TinyDecoder):
    def hidden_states(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        states_BTE = super().hidden_states(tokens_BT, **options)
        tokens_BT[:, 0] += 1
        return states_BTE


class CountsChunksFromZero(TinyDecoder):
    def hidden_states(
        self, tokens_BT: Tensor, *, positions_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        positions_BT = (
            torch.arange(tokens_BT.shape[1])[None] if positions_BT is None else positions_BT
        )
        return super().hidden_states(tokens_BT, positions_BT=positions_BT, **options)


class UnusedParameter(TinyDecoder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forgotten = nn.Parameter(torch.zeros(3))


class UngroupedParameter(TinyDecoder):
    def parameter_groups(self) -> dict[str, list[Any]]:
        return {"matrix": super().parameter_groups()["matrix"]}


class RoundedForInference(TinyDecoder):
    def for_inference(self, precision: str = "auto") -> InferenceDecoder:
        super().for_inference(precision)
        rounded = copy.deepcopy(self)
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().double()
        return super(RoundedForInference, rounded).for_inference()


class AnyPrecision(TinyDecoder):
    def for_inference(self, precision: str = "auto") -> InferenceDecoder:
        return super().for_inference()


class OnTheMetaDevice(TinyDecoder):
    def for_inference(self, precision: str = "auto") -> InferenceDecoder:
        arranged = super().for_inference(precision)
        return type("Elsewhere", (type(arranged),), {"device": torch.device("meta")})(self)


class ForgetsWeights(TinyDecoder):
    def loss_sums(
        self, hidden_NE: Tensor, targets_N: Tensor, weights_N: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        ones_N = (weights_N > 0).to(weights_N)
        return super().loss_sums(hidden_NE, targets_N, ones_N, *rest, **options)


class ForgetsTheZLoss(TinyDecoder):
    def loss_sums(self, *tensors: Tensor, num_groups: int = 4, **_: Any) -> tuple[Tensor, Tensor]:
        return super().loss_sums(*tensors, num_groups=num_groups)


class CountsTheZLossInItsSums(TinyDecoder):
    def loss_sums(
        self, *tensors: Tensor, num_groups: int = 4, z_loss: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        loss, sums_G2 = super().loss_sums(*tensors, num_groups=num_groups, z_loss=z_loss)
        return loss, sums_G2 + z_loss


class OneIdFurther(TinyDecoder):
    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        return (
            super().logits(hidden)
            if ids is None
            else super().logits(hidden).roll(-1, -1)[..., ids.start : ids.stop]
        )


class ScaledLogits(TinyDecoder):
    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        return 2 * super().logits(hidden, ids)


class OneIdTooMany(TinyDecoder):
    def __init__(
        self, vocab_size: int, attention: AttentionBackend, context_length: int = 64
    ) -> None:
        super().__init__(vocab_size + 1, attention, context_length)


@dataclass(kw_only=True)
class CountsWrong(TinyConfig):
    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int | None:
        return 1


# ---- wrong caches


class KeepsPadding(TinyCache):
    def advance(self, count_B: Sequence[int]) -> None:
        super().advance([max(count_B)] * len(count_B))


class TakesEverything(TinyCache):
    def advance(self, count_B: Sequence[int]) -> None:
        self._length_B = self._length_B + torch.tensor(count_B)


class SelectsInOrder(TinyCache):
    def select(self, rows: Sequence[int]) -> None:
        super().select(sorted(rows))


class JoinsInFront(TinyCache):
    def join(self, other: KVCache) -> None:
        count = len(self.length_B)
        super().join(other)
        super().select([*range(count, len(self.length_B)), *range(count)])


class ForgetsWhenGrowing(TinyCache):
    def reserve(self, more_B: Sequence[int]) -> None:
        super().reserve(more_B)
        self.held = torch.zeros_like(self.held)


MUTANTS: dict[str, list[type]] = {
    "a_full_cache_takes_no_more": [TakesEverything],
    "a_later_token_never_changes_an_earlier_state": [SeesTheFuture],
    "documents_packed_into_a_row_are_isolated": [ForgetsStarts, ForgetsPositions],
    "every_earlier_token_counts": [LooksBackThreeTokens],
    "gradient_reaches_every_parameter": [UnusedParameter, UngroupedParameter],
    "inference_equals_training": [RoundedForInference, AnyPrecision, OnTheMetaDevice],
    "loss_is_that_of_the_logits": [ForgetsWeights, ForgetsTheZLoss, CountsTheZLossInItsSums],
    "logits_of_a_range_are_a_slice": [OneIdFurther, ScaledLogits],
    "positions_and_cells_have_defaults": [CountsFromOne, TakesNoCellsForTheFirst, WritesOnTokens],
    "ragged_chunks_equal_at_once": [KeepsPadding],
    "rows_are_independent": [MixesRows],
    "rows_of_a_cache_are_forked_dropped_and_joined": [
        SelectsInOrder,
        JoinsInFront,
        ForgetsWhenGrowing,
    ],
    "sizes_are_as_stated": [OneIdTooMany, CountsWrong],
    "token_by_token_equals_at_once": [CountsChunksFromZero],
}


def attributes(wrong: type) -> dict[str, Any]:
    """A test of a decoder that is wrong, or that has a wrong cache or attention."""
    if issubclass(wrong, DecoderConfig):
        return {"config": wrong()}
    if issubclass(wrong, DenseAttention):
        return {"config": TinyConfig(), "attention": wrong()}
    if issubclass(wrong, TinyCache):

        class Wrong(TinyDecoder):
            def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
                return wrong(num_rows, max_length, self.embedding)
    else:
        assert issubclass(wrong, TinyDecoder)
        Wrong = wrong
    return {"make": lambda self: Wrong(self.vocabulary.size, self.attention)}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_decoder_fails(law: str, wrong: type) -> None:
    assert_law_fails(DecoderContract, law, attributes(wrong) | {"max_examples": 20})


def test_every_law_has_a_mutant() -> None:
    assert_covers(DecoderContract, MUTANTS)
