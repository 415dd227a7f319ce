"""The cm3leon decoder arranged for inference: shared segments, compiled steps, products of any number of rows."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from cm3core.interfaces.decoder import Decoder
from cm3kernels.few_rows import refusal
from cm3kits.decoder import DecoderContract
from cm3leon_parts import SDPA, TINY, build
from cm3plugins.decoders import cache as pool
from cm3plugins.decoders import packed
from cm3plugins.decoders.cm3leon import model as inference_module
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder, CM3LeonInference
from cm3plugins.decoders.packed import NUM_HEADS, num_padded, padded
from cm3plugins.decoders.products import (
    FEWEST_ROWS,
    MOST_ROWS,
    in_blocks,
    packed_product,
    packs,
)
from profiles import examples


class SharingDecoder(CM3LeonDecoder):
    """Shares whatever forked rows have in common, however short."""

    on_cpu = True

    def for_inference(self, precision: str = "auto") -> CM3LeonInference:
        arranged = super().for_inference(precision)
        arranged.on_cpu = self.on_cpu
        arranged.layout = replace(arranged.layout, on_cpu=self.on_cpu)
        return arranged


class TestSharedSegments(DecoderContract):
    attention = SDPA
    max_examples = examples(8)

    @pytest.fixture(autouse=True)
    def _everything_pays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "SHARING_PAYS", 0)

    options: ClassVar[dict[str, bool]] = {}

    def make(self) -> Decoder:
        torch.manual_seed(0)
        config = replace(TINY, **self.options)
        return SharingDecoder(config, self.vocabulary.size, self.attention, self.grid)


class TestSharedSegmentsAsOnADevice(TestSharedSegments):
    """The work list of `segment_decode`, and whole rows gathered for longer chunks; here on the
    CPU."""

    def make(self) -> Decoder:
        made = super().make()
        assert isinstance(made, SharingDecoder)
        made.on_cpu = False
        return made


class TestSharedSegmentsOfShiftedTokens(TestSharedSegments):
    options: ClassVar[dict[str, bool]] = {"token_shift": True}


class TestShiftedTokensAsOnADevice(TestSharedSegmentsAsOnADevice):
    options: ClassVar[dict[str, bool]] = {"token_shift": True}


class CompiledDecoder(CM3LeonDecoder):
    """Its products and steps are compiled for this CPU, without fewer bits."""

    def for_inference(self, precision: str = "auto") -> CM3LeonInference:
        return CompiledInference(self, precision)


class CompiledInference(CM3LeonInference):
    """Results in the kit's dtype."""

    def _compiled(self) -> str | None:
        return "fp32"

    def hidden_states(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return super().hidden_states(*arguments, **options).double()

    def logits(self, hidden: torch.Tensor, ids: range | None = None) -> torch.Tensor:
        return super().logits(hidden, ids).double()


@pytest.mark.skipif(refusal() is not None, reason=f"not compiled here: {refusal()}")
class TestCompiledSteps(DecoderContract):
    attention = SDPA
    tolerance = 1e-4  # they compute in float32
    config = replace(TINY, d_model=48, qk_norm=True, activation="gelu")

    @pytest.fixture(autouse=True)
    def _in_a_folder(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path_factory.getbasetemp().parent / "compiled"
        monkeypatch.setattr(packed, "compiled_folder", lambda: folder)

    def make(self) -> Decoder:
        torch.manual_seed(0)
        return CompiledDecoder(self.config, self.vocabulary.size, self.attention, self.grid)

    def test_a_new_token_takes_one_call(self) -> None:
        made = self.make()
        inference = made.for_inference()
        assert isinstance(inference, CM3LeonInference)
        assert inference.steps_by_runs

    @torch.inference_mode()
    def test_what_is_read_ahead_has_the_bits_of_steps(self) -> None:
        """Two rows that share what they read first; guesses beyond the end are only padding."""
        inference = self.make().for_inference()
        tokens_2T = torch.arange(20).view(2, 10)

        def begun() -> Any:
            cache = inference.allocate_cache(1, 16)
            inference.hidden_states(torch.arange(6)[None], cache=cache)
            cache.advance([6])
            cache.select([0, 0])
            cache.reserve([10, 10])
            return cache

        cache = begun()
        expected = []
        for place in range(10):
            step = tokens_2T[:, place, None]
            expected.append(inference.hidden_states(step, cache=cache, cells_BT=step % 4)[:, 0])
            cache.advance([1, 1])
        cache, found, place = begun(), [], 0
        for width, right in ((4, 2), (1, 1), (8, 3), (6, 4)):
            chunk = tokens_2T[:, place : place + width].clone()
            chunk = torch.nn.functional.pad(chunk, (0, width - chunk.shape[1]))
            chunk[:, right:] += 1  # wrong guesses
            ahead = inference.hidden_states_ahead(chunk, cache=cache, cells_BT=chunk % 4)
            found += ahead[:, :right].unbind(1)
            cache.advance([right, right])
            place += right
        assert torch.equal(torch.stack(found), torch.stack(expected))


class TestCompiledStepsOverSegments(TestCompiledSteps):
    max_examples = examples(8)

    @pytest.fixture(autouse=True)
    def _everything_pays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "SHARING_PAYS", 0)


@pytest.mark.skipif(refusal() is not None, reason=f"not compiled here: {refusal()}")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.inference_mode()
def test_compiled_precisions_are_those_of_torch(
    precision: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a compiler that is missing changes nothing but the speed."""
    folder = tmp_path_factory.getbasetemp().parent / "compiled"
    monkeypatch.setattr(packed, "compiled_folder", lambda: folder)
    decoder = build(replace(TINY, d_model=48))
    found = {}
    for compiled_from in (0, 10**9):
        monkeypatch.setattr(inference_module, "COMPILED_FROM", compiled_from)
        inference = decoder.for_inference(precision)
        assert inference.compiled == (precision if compiled_from == 0 else None)
        cache = inference.allocate_cache(1, 8)
        for token in (3, 5, 7):
            hidden = inference.hidden_states(torch.tensor([[token]]), cache=cache)
            cache.advance([1])
        found[compiled_from] = inference.logits(hidden).float()
    spread = decoder.for_inference("fp32").logits(hidden.float()).std()
    assert (found[0] - found[10**9]).abs().max() < 0.05 * spread
    monkeypatch.setattr(inference_module, "COMPILED_FROM", 0)
    monkeypatch.setenv("CM3_NATIVE", "0")
    torch_only = decoder.for_inference(precision)
    assert torch_only.compiled is None


def test_products_of_any_number_of_rows_have_few_sizes() -> None:
    """oneDNN compiles kernels for each number of rows, and keeps them for good."""
    seen: list[int] = []

    def product(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return 2 * x

    in_few = in_blocks(product)
    for number in range(1, 1500):
        x_ME = torch.arange(number, dtype=torch.float32)[:, None]
        assert torch.equal(in_few(padded(x_ME))[:number], 2 * x_ME)
        assert num_padded(number) <= max(1.25 * number, number + 3)
    assert len(set(seen)) == 20
    assert min(seen) == FEWEST_ROWS
    assert max(seen) == MOST_ROWS


@pytest.mark.skipif(not packs(torch.float32), reason="oneDNN packs no weights here")
def test_a_row_s_product_does_not_depend_on_the_number_of_rows() -> None:
    torch.manual_seed(0)
    for inputs, outputs in ((64, 192), (192, 768), (768, 192)):
        product = packed_product(torch.randn(outputs, inputs), None)
        x_ME = torch.randn(300, inputs)
        every_MV = product(x_ME)
        for number in (*range(4, 40), 63, 130, 255, 257):
            assert torch.equal(product(padded(x_ME[:number]))[:number], every_MV[:number])


def test_prompts_of_every_length_do_not_grow_the_process() -> None:
    """Compiled kernels are neither tensors nor Python's: only the process shows them."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    config = replace(TINY, num_layers=1, d_model=64, num_heads=1, context_length=400)
    inference = build(config).eval().for_inference()

    def read(length: int) -> None:
        cache = inference.allocate_cache(1, length)
        inference.hidden_states(torch.zeros(1, length, dtype=torch.int64), cache=cache)

    def resident() -> int:
        text = Path("/proc/self/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with torch.inference_mode():
        for length in (1, 16, 64, 250, 400):
            read(length)
        before = resident()
        for length in range(1, 401):
            read(length)
    assert resident() - before < 80 << 20


def test_slices_of_the_head_are_kept_in_bounded_number() -> None:
    decoder = build(TINY).eval()
    inference = decoder.for_inference()
    assert isinstance(inference, CM3LeonInference)
    hidden_ME = torch.randn(5, TINY.d_model)
    full_MV = inference.logits(hidden_ME)
    for stop in range(1, decoder.vocab_size + 1):
        own_MV = inference.logits(hidden_ME, range(stop))
        assert own_MV.shape == (5, stop)
        assert own_MV.is_contiguous()
        torch.testing.assert_close(own_MV, full_MV[:, :stop])
    assert len(inference._heads) <= NUM_HEADS
