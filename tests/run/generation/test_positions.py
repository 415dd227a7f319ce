"""Positions of codes on their way to the decoder: serializer, objective, prompts, grammar, engine, likelihood.

Every cell is compared with the ones of `PictureForm.cells` over the whole picture, which knows nothing of prompts.
Legend: c codes of a picture's array.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cm3core.document import NO_CELL, Codes, ImageHole, IntArray, Text
from cm3core.picture_form import MISSING, CodeRules, Filling, GridPositions, PictureForm
from cm3core.sequence import move_spans
from cm3core.sequence.serialize import Serializer
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.decoders.llama import LlamaConfig
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Engine, EngineOptions, Request
from cm3run.generation.jacobi import Window
from engine_parts import LETTERS, LetterTokenizer
from profiles import examples
from small_pens import Pen

END = 8
PAIRS = CodeRules(
    np.repeat([0, 1, 2], [4, 4, 1]),
    np.array([[1, -1, -1], [-1, 2, -1], [1, -1, 3], [-1, -1, 3]]),
)
VOCABULARY = CM3LeonVocabulary(num_text=4 + len(LETTERS), num_image=9, num_sentinels=5)
FORMS = {
    "pen": PictureForm.sequence(9, END, 9, PAIRS, positions=Pen()).for_axes({"x": 5, "slot": 4}),
    "grid": PictureForm.of_grid(3, 3).for_axes({"row": 3, "column": 3}),
    #: A pen that goes over a grid, where any code may stand: what is fed depends on codes, and nothing is forbidden.
    "free": PictureForm.of_grid(3, 3, positions=Pen()).for_axes({"x": 5, "y": 5}),
}


def serializer_of(name: str, **options: Any) -> Serializer:
    return Serializer(VOCABULARY, LetterTokenizer(), FORMS[name], **options)


def picture(name: str, seed: int) -> Codes:
    rng, form = np.random.default_rng(seed), FORMS[name]
    if name != "pen":
        return Codes(rng.integers(0, 9, 9).astype(np.int32), form.grid)
    drawn = np.stack([rng.integers(0, 4, 3), rng.integers(4, 8, 3)], 1).ravel()
    return Codes(form.padded(np.append(drawn, END).astype(np.int32)), form.grid)


def test_cells_by_hand() -> None:
    """x 2, y 1, end: the pen is at x 2 from the first code on; then slot y, x, nothing. 9 codes a picture."""
    form = FORMS["pen"]
    codes = np.array([2, 5, 8], np.int32)
    assert form.positions is not None
    assert form.positions.of(codes).tolist() == [[1, 2, 4], [0, 2, 1], [2, 2, 1]]
    assert form.cells(codes)[0].tolist() == [
        0 + 9 * (2 * 4 + 1),
        1 + 9 * (2 * 4 + 0),
        2 + 9 * (2 * 4 + 2),
    ]
    assert replace(form, fed_axes=()).cells(codes)[0].tolist() == [0, 1, 2]


def test_rows_and_columns_by_hand() -> None:
    positions = GridPositions(2, 3, 2)
    assert dict(positions.axes) == {"row": 2, "column": 3, "slot": 2}
    assert positions.of(np.zeros(9, np.int32))[[0, 1, 2, 5, 6, 7]].tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [0, 2, 1],
        [1, 0, 0],
        [1, 0, 1],
    ]


def test_codes_behind_a_moved_span_do_not_tell_what_is_in_it() -> None:
    serializer = serializer_of("pen")
    codes = picture("pen", 3)
    sequence = serializer.sequence((Text("ab"), codes))
    span = sequence.segments[-1]
    spans = [(span.start + 2, span.start + 4)]
    weights = np.ones(len(sequence), np.float32)
    masked = move_spans(sequence, spans, weights, VOCABULARY)
    other = replace(
        codes, codes=np.where(np.isin(np.arange(9), [2, 3]), [0, 0, 0, 4] + [0] * 5, codes.codes)
    )
    again = move_spans(serializer.sequence((Text("ab"), other)), spans, weights, VOCABULARY)
    body = int(np.flatnonzero(masked.tokens == VOCABULARY.eos)[-1])
    assert masked.cells[:body].tolist() == again.cells[:body].tolist()
    known = codes.codes[:7].copy()
    known[2:4] = MISSING
    expected = FORMS["pen"].cells(known)[0][[0, 1, 4, 5, 6]].tolist()
    assert [cell for cell in masked.cells[:body].tolist() if cell != NO_CELL] == expected
    moved = [cell for cell in masked.cells[body:].tolist() if cell != NO_CELL]
    assert moved == FORMS["pen"].cells(codes.codes[:7])[0][2:4].tolist()


def engine_of(name: str, window: Window = 1, *, llama: bool = False, **options: Any) -> Engine:
    torch.manual_seed(3)
    form = FORMS[name]
    assert form.positions is not None
    axes = {axis: form.positions.axes[axis] for axis in form.fed_axes}
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 2, "context_length": 96}
    config = (LlamaConfig if llama else CM3LeonConfig)(
        **sizes, code_axes=axes, token_shift=name != "grid"
    )
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), form.grid).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.35)
    sampler = CFGSamplerConfig(guidance_scale=1.0).build()
    serializer = serializer_of(name, **options)
    return Engine(decoder, serializer, sampler, VOCABULARY, EngineOptions(window=window))


def masked_as_in_training(serializer: Serializer, filled: Codes, missing: IntArray) -> Any:
    """The training sequence in which the runs of missing codes are the spans."""
    sequence = serializer.sequence((Text("dig"), filled))
    start = sequence.segments[-1].start
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    if len(runs) > serializer.max_spans:
        runs = [missing]
    spans = [(start + int(run[0]), start + int(run[-1]) + 1) for run in runs]
    weights = np.ones(len(sequence), np.float32)
    return move_spans(sequence, spans, weights, serializer.vocabulary)


@pytest.mark.parametrize("name", [*FORMS, "pen, one span", "free, one span", "pen, llama"])
@settings(max_examples=examples(6))
@given(seed=st.integers(0, 30), holes=st.sets(st.integers(0, 4), min_size=1, max_size=3))
def test_infilling_is_fed_what_training_was(name: str, seed: int, holes: set[int]) -> None:
    """The probability of what was drawn, against a pass over the training sequence of the filled picture."""
    engine, name = ENGINES[name], name.partition(",")[0]
    given_codes = picture(name, seed)
    missing = np.array(sorted(holes), np.int32)
    flags = np.isin(np.arange(9), missing)
    query = Text("dig"), replace(given_codes, missing=flags)
    [found] = engine.complete([Request(query, seed=seed)])
    filled = found.document[1]
    masked = masked_as_in_training(engine.preparer.serializer, filled, missing)
    hidden = engine.preparer.decoder.hidden_states(
        torch.from_numpy(masked.tokens[None].astype(np.int64)),
        cells_BT=torch.from_numpy(masked.cells[None].astype(np.int64)),
    )
    filling = Filling(FORMS[name], np.where(flags, MISSING, filled.codes).astype(np.int32))
    start, nats = int(np.flatnonzero(masked.tokens == VOCABULARY.eos)[-1]), 0.0
    moved = range(start, len(masked.tokens))
    drawn = [
        index for index in moved if masked.cells[index] % 9 in missing and masked.cells[index] >= 0
    ]
    for index, place in zip(drawn, missing.tolist(), strict=True):
        logits = engine.preparer.decoder.logits(hidden[0, index - 1], VOCABULARY.image).double()
        if (rules := FORMS[name].rules) is not None:
            allowed = filling.allowed(place)[rules.class_of]
            logits = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        code = int(filled.codes[place])
        filling.put(place, code)
        nats += float(logits.log_softmax(0)[code].detach())
    assert found.log_probability == pytest.approx(nats, abs=1e-3)


ENGINES = {"pen, llama": engine_of("pen", llama=True)}
ENGINES |= {name: engine_of(name) for name in FORMS} | {
    f"{name}, one span": engine_of(name, max_spans=1) for name in ("pen", "free")
}


@pytest.mark.parametrize("name", ["grid", "free"])
@pytest.mark.parametrize("window", [2, 5, "auto"])
def test_several_codes_a_step_are_those_of_one(name: str, window: Window) -> None:
    ahead = engine_of(name, window)
    greedy = CFGSamplerConfig(guidance_scale=2.0, temperature=0.0).build()
    for sampler in (greedy, CFGSamplerConfig(guidance_scale=2.0).build()):
        asked = [
            Request((Text("a bad cab"), ImageHole()), ((Text("ab"), picture(name, 1)),), 1),
            Request((Text("dig"), ImageHole()), (), 2),
        ]
        asked = [replace(one, sampler=sampler) for one in asked]
        for one, several in zip(ENGINES[name].complete(asked), ahead.complete(asked), strict=True):
            assert one.document == several.document
            assert one.log_probability == pytest.approx(several.log_probability, abs=1e-3)


def test_positions_matter_to_the_decoder() -> None:
    """Other codes before, at the same index: the same token has another input."""
    decoder = ENGINES["pen"].preparer.decoder
    tokens = torch.tensor([[1]])
    cells = (
        FORMS["pen"].cells(np.array([2, 5], np.int32))[0][1],
        FORMS["pen"].cells(np.array([3, 5], np.int32))[0][1],
    )
    first, second = (
        decoder.hidden_states(tokens, cells_BT=torch.tensor([[int(cell)]])) for cell in cells
    )
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["pen", "free"])
def test_a_kept_row_that_is_cut_inside_a_picture_continues_it_the_same(name: str) -> None:
    text, drawn, counts = Text("a bad cab had a dig " * 3), [], []
    for keep in (True, False):
        engine = engine_of(name)
        fed, plain = [], engine.inference.hidden_states
        engine.inference.hidden_states = lambda tokens, fed=fed, plain=plain, **options: (
            fed.append(tokens.numel()) or plain(tokens, **options)
        )
        [first] = engine.complete([Request((text, ImageHole()), seed=4, keep=keep)])
        rest = replace(first.document[1], missing=np.arange(9) >= 2)
        drawn.append(engine.complete([Request((text, rest), seed=5, keep=keep)])[0].document)
        counts.append(sum(fed))
    assert drawn[0] == drawn[1]
    assert counts[0] < counts[1] - 50
