"""Pictures whose codes have rules: sequences that end, and several codes a place; through prompts, grammar and engine.

Legend: c codes of a picture's array.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cm3core.document import Codes, ImageHole, Text, TextHole
from cm3core.errors import DocumentError, GenerationError
from cm3core.picture_form import CodeRules, PictureForm
from cm3core.sequence.serialize import Serializer
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3plugins.samplers.contrastive import CDKSamplerConfig
from cm3run.generation.engine import Engine, EngineOptions, PictureGrown, Request, candidates
from cm3run.generation.likelihood import Likelihood
from engine_parts import LETTERS, LetterTokenizer
from messages import tells
from profiles import examples
from small_pens import Pen

#: Pairs of a code 0..3 and a code 4..7, then the end.
END = 8
PAIRS = CodeRules(
    np.repeat([0, 1, 2], [4, 4, 1]),
    np.array([[1, -1, -1], [-1, 2, -1], [1, -1, 3], [-1, -1, 3]]),
)
FORMS = {
    "sequence": PictureForm.sequence(9, END, 9, PAIRS),
    "free sequence": PictureForm.sequence(9, END, 9),
    "several codes": PictureForm.of_grid(2, 2, 3, CodeRules.by_slot([2, 3, 4])),
    "pen": PictureForm.sequence(9, END, 9, PAIRS, positions=Pen()),
    "slots": PictureForm.of_grid(2, 2, 3, CodeRules.by_slot([2, 3, 4])),
}
#: Whose decoders are fed all axes.
PLACED = ("pen", "slots")
VOCABULARY = CM3LeonVocabulary(num_text=4 + len(LETTERS), num_image=9, num_sentinels=8)


def parts(name: str) -> tuple[Engine, Serializer]:
    form = FORMS[name]
    axes = dict(form.positions.axes) if form.positions and name in PLACED else {}
    serializer = Serializer(VOCABULARY, LetterTokenizer(), form.for_axes(axes))
    torch.manual_seed(3)
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 2, "context_length": 64}
    config = CM3LeonConfig(**sizes, grid_positions=True, code_axes=axes)
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), form.grid).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.35)
    sampler = CFGSamplerConfig(guidance_scale=2.0, temperature=1.2).build()
    return Engine(decoder, serializer, sampler, VOCABULARY, EngineOptions(window=4)), serializer


ENGINES = {name: parts(name) for name in FORMS}


def picture(name: str, seed: int, most: int | None = None) -> Codes:
    """A random picture that keeps the rules, drawn without a model."""
    form, rng = FORMS[name], np.random.default_rng(seed)
    if form.is_sequence:
        pairs = int(rng.integers(1, 5 if most is None else most))
        drawn = np.stack([rng.integers(0, 4, pairs), rng.integers(4, 8, pairs)], 1).ravel()
        return Codes(form.padded(np.append(drawn, END).astype(np.int32)), form.grid)
    slots = [rng.integers(0, 2, 4), rng.integers(2, 5, 4), rng.integers(5, 9, 4)]
    return Codes(np.stack(slots, 1).ravel().astype(np.int32), form.grid)


def keeps_rules(name: str, codes: Codes) -> bool:
    return codes.missing is None and FORMS[name].strange_place(codes.codes[None]) is None


def whole(name: str, seed: int) -> Request:
    return Request((Text("a bad cab"), ImageHole()), ((Text("ab"), picture(name, seed)),), seed)


@settings(max_examples=examples(6))
@given(st.sampled_from(list(FORMS)), st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_all_pictures_drawn_keep_the_rules_and_depend_on_themselves_alone(name, seeds):
    engine, _ = ENGINES[name]
    asked = [whole(name, seed) for seed in seeds]
    together = engine.complete(asked)
    for request, found in zip(asked, together, strict=True):
        [alone] = engine.complete([request])
        assert found.document == alone.document
        assert found.log_probability == pytest.approx(alone.log_probability, abs=1e-3)
        assert keeps_rules(name, found.document[1])
        assert found.num_tokens == FORMS[name].length(found.document[1].codes)


@pytest.mark.parametrize("name", FORMS)
def test_sequences_have_different_lengths_and_grids_one(name):
    engine, _ = ENGINES[name]
    drawn = engine.complete([whole(name, seed) for seed in range(12)])
    lengths = {one.num_tokens for one in drawn}
    assert (len(lengths) > 1) == FORMS[name].is_sequence
    assert {one.ends[0] for one in drawn} == {"full"}


@pytest.mark.parametrize("name", FORMS)
def test_the_likelihood_of_what_was_drawn_is_that_of_the_draws(name):
    engine, serializer = ENGINES[name]
    decoder = engine.preparer.decoder
    likelihood = Likelihood(decoder, serializer, VOCABULARY)
    request = replace(whole(name, 5), sampler=CFGSamplerConfig(guidance_scale=1.0).build())
    [found] = engine.complete([request])
    contents = likelihood.contents_of(request.document, found.document)
    [again] = likelihood.log_probability(
        [request.document], [contents], retrieved=[request.retrieved]
    )
    assert again.nats == pytest.approx(found.log_probability, abs=1e-3)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_missing_codes_are_filled_and_known_ones_kept(name, seed):
    engine, serializer = ENGINES[name]
    rng = np.random.default_rng(seed)
    given_codes = picture(name, seed)
    length = FORMS[name].length(given_codes.codes)
    missing = np.arange(len(given_codes.codes)) < length
    missing &= rng.random(len(missing)) < 0.5
    if seed % 2:  # the end, and all behind a place
        missing |= np.arange(len(missing)) >= length // 2
    if not missing.any():
        missing[0] = True
    query = Text("dig"), replace(given_codes, missing=missing)
    [found] = engine.complete([Request(query, seed=seed)])
    filled = found.document[1]
    assert keeps_rules(name, filled)
    known = ~missing
    assert filled.codes[known].tolist() == given_codes.codes[known].tolist()
    contents = serializer.contents_of(query, found.document)
    assert serializer.fill(query, contents) == found.document


@pytest.mark.parametrize("name", ["sequence", "free sequence", "pen"])
def test_a_gap_of_any_length_is_filled_and_ended_by_the_model(name):
    engine, serializer = ENGINES[name]
    likelihood = Likelihood(engine.preparer.decoder, serializer, VOCABULARY)
    samplers = [CFGSamplerConfig(guidance_scale=1.0, temperature=one).build() for one in (1.0, 8.0)]
    lengths = set()
    for seed in range(12):
        rest = np.array([0, 4, *[0] * 4, 1, 5, END], np.int32)
        asked = Codes(rest, (1, 9), np.isin(np.arange(9), range(2, 6)), any_length=True)
        request = Request((Text("dig"), asked), seed=seed, sampler=samplers[seed % 2])
        *grown, finished = engine.stream([request])
        filled = finished.completion.document[1]
        length = FORMS[name].length(filled.codes)
        lengths.add(length)
        assert keeps_rules(name, filled)
        assert filled.codes[:2].tolist() == [0, 4]
        assert filled.codes[length - 3 : length].tolist() == [1, 5, END]
        pictures = [event.codes for event in grown if isinstance(event, PictureGrown)]
        assert replace(pictures[-1], missing=None) == filled
        contents = serializer.contents_of(request.document, finished.completion.document)
        assert serializer.fill(request.document, contents) == finished.completion.document
        [again] = likelihood.log_probability([request.document], [contents])
        if seed % 2 == 0:
            assert again.nats == pytest.approx(finished.completion.log_probability, abs=1e-3)
    assert len(lengths) > 1
    assert max(lengths) <= 9


def test_a_smaller_maximum_of_codes():
    engine, _ = ENGINES["sequence"]
    query = Text("a bad cab"), ImageHole(most_codes=3)
    for seed in range(4):
        [found] = engine.complete([Request(query, seed=seed)])
        assert found.document[1].codes[2] == END
        assert keeps_rules("sequence", found.document[1])


def test_training_sequences_stop_with_the_end():
    _, serializer = ENGINES["sequence"]
    codes = Codes(FORMS["sequence"].padded(np.array([1, 5, END], np.int32)), (1, 9))
    sequence = serializer.sequence((Text("ab"), codes), [(Text("a"), codes)])
    image = sequence.tokens[VOCABULARY.is_image(sequence.tokens)]
    assert VOCABULARY.to_codes(image).tolist() == [1, 5, END] * 2
    assert sequence.cells[sequence.cells >= 0].tolist() == [0, 1, 2] * 2
    assert all(span.grid is None for span in sequence.segments)
    assert serializer.documents(sequence) == [(Text("a"), codes), (Text("ab"), codes)]


@pytest.mark.parametrize("name", FORMS)
def test_growing_pictures_can_always_be_completed(name):
    engine, _ = ENGINES[name]
    grown = [one for one in engine.stream([whole(name, 7)]) if isinstance(one, PictureGrown)]
    assert grown
    for event in grown:
        missing = event.codes.missing
        missing = np.zeros(len(event.codes.codes), bool) if missing is None else missing
        filled = FORMS[name].completed(event.codes.codes, missing)
        assert FORMS[name].strange_place(filled[None]) is None
        assert filled[~missing].tolist() == event.codes.codes[~missing].tolist()


@pytest.mark.parametrize(
    "sampler", [CDKSamplerConfig().build(), CFGSamplerConfig(temperature=0.0).build()]
)
def test_candidates_and_other_samplers(sampler):
    for name, (engine, _) in ENGINES.items():
        asked = candidates(replace(whole(name, 1), sampler=sampler), 3)
        for found in engine.complete(asked):
            assert keeps_rules(name, found.document[1])


def test_a_text_and_a_picture_in_one_document():
    engine, _ = ENGINES["sequence"]
    query = (TextHole(3), ImageHole(), Text("dig"), ImageHole())
    [found] = engine.complete([Request(query, seed=2)])
    assert keeps_rules("sequence", found.document[1])
    assert keeps_rules("sequence", found.document[3])


def test_refusals():
    engine, serializer = ENGINES["sequence"]
    grid_engine, _ = ENGINES["several codes"]
    good = picture("sequence", 0)
    behind = np.zeros(9, bool)
    behind[-1] = True
    short = Codes(FORMS["sequence"].padded(np.array([1, 5, END], np.int32)), (1, 9))
    for made, query, words in (
        (
            engine,
            (Text("a"), ImageHole(most_codes=2)),
            "...no codes that keep the rules ... at most 2",
        ),
        (
            engine,
            (Text("a"), ImageHole(most_codes=10)),
            "...at most 10 codes ... a sequence of at most 9",
        ),
        (
            grid_engine,
            (Text("a"), ImageHole(most_codes=5)),
            "...at most 5 codes ... a grid of 2 x 2",
        ),
        (
            engine,
            (Text("a"), replace(short, missing=behind)),
            "...missing codes after its end code",
        ),
        (
            engine,
            (Text("a"), replace(good, missing=np.arange(9) < 9, any_length=True)),
            "...missing codes of any length, but not one run",
        ),
        (
            grid_engine,
            (
                Text("a"),
                replace(picture("several codes", 0), missing=np.arange(12) == 4, any_length=True),
            ),
            "...missing codes of any length, but not one run",
        ),
    ):
        with pytest.raises(DocumentError) as info:
            made.complete([Request(query)])
        assert tells(info.value, words)
    likelihood = Likelihood(engine.preparer.decoder, serializer, VOCABULARY)
    tokens = VOCABULARY.of_codes(good.codes[:3])
    for content, words in (
        (tokens[:2], "...has 2 codes and no end"),
        (tokens[[0, 0]], "...code 1 breaks the rules of a sequence"),
        (VOCABULARY.of_codes(np.array([0, 4, END, END])), "...continues for 1 tokens"),
    ):
        with pytest.raises(GenerationError) as info:
            likelihood.log_probability([(Text("a"), ImageHole())], [[content]])
        assert tells(info.value, words)
