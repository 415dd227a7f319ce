"""The penalty on repeated tokens, compared with transformers'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from cm3core.document import ImageHole, Text, TextHole
from cm3core.errors import GenerationError, RecipeError
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3published.sampler import ChameleonSamplerConfig
from cm3run.generation.engine import Request
from cm3run.generation.groups import RepetitionPenalty
from cm3run.generation.policy import Policy
from engine_parts import APPLE, SERIALIZER, VOCABULARY, make_engine
from messages import tells

DOCUMENT = (APPLE, Text("bad bad"), TextHole(16))


def greedy(penalty: float, **keys: Any) -> ChameleonSamplerConfig:
    return ChameleonSamplerConfig(
        repetition_penalty=penalty, text_temperature=0.0, text_top_p=1.0, **keys
    )


def by_hand(decoder: Any, penalty: float) -> list[int]:
    """The most probable token by the whole sequence again and again, logits by transformers'."""
    ids = SERIALIZER.prompt(DOCUMENT).tokens.tolist()
    cells = SERIALIZER.prompt(DOCUMENT).cells.tolist()
    start, end = len(ids), SERIALIZER.layout.end[0]
    process = RepetitionPenaltyLogitsProcessor(penalty)
    inference = decoder.for_inference("fp32")
    text = VOCABULARY.text_ranges(SERIALIZER.text_tokenizer.vocab_size)
    while len(ids) < start + 16:
        cache = inference.allocate_cache(1, len(ids))
        with torch.no_grad():
            hidden = inference.hidden_states(
                torch.tensor([ids]), cells_BT=torch.tensor([cells]), cache=cache
            )
            scores = process(torch.tensor([ids]), inference.logits(hidden[:, -1]).float().clone())
        allowed = torch.full_like(scores[0], -torch.inf)
        for own in (*text, *([range(end, end + 1)] if len(ids) > start else [])):
            allowed[own.start : own.stop] = 0
        ids.append(int((scores[0] + allowed).argmax()))
        cells.append(-1)
        if ids[-1] == end:
            return ids[start:-1]
    return ids[start:]


@pytest.mark.parametrize("penalty", [1.0, 1.2, 3.0, 0.5])
def test_tokens_are_those_of_transformers(decoder, penalty: float) -> None:
    engine = make_engine(decoder, greedy(penalty))
    [done] = engine.complete([Request(DOCUMENT)])
    assert done.document[-1] == Text(SERIALIZER.text(_ids(by_hand(decoder, penalty))))


def _ids(tokens: list[int]) -> Any:
    import numpy as np

    return np.array(tokens, np.int32)


def test_it_changes_what_is_written(decoder) -> None:
    assert by_hand(decoder, 1.0) != by_hand(decoder, 3.0)


def test_by_hand() -> None:
    """Of two requests, the second read ids 10 and 12 of the slice 10..13."""
    penalty = RepetitionPenalty(
        torch.tensor([[1.0], [2.0], [2.0]]),
        torch.tensor([0, 1, 1]),
        torch.tensor([[True] * 4, [True, False, True, False]]),
    )
    logits = torch.tensor([[1.0, 1, 1, 1], [4.0, 4, -4, -4], [-1.0, 2, 3, 4]])
    expected = [[1, 1, 1, 1], [2, 4, -8, -4], [-2, 2, 1.5, 4]]
    assert penalty.penalised(logits).tolist() == expected
    penalty.add(torch.tensor([0, 3]))
    assert penalty.penalised(logits)[1].tolist() == [2, 4, -8, -8]
    assert logits[1].tolist() == [4, 4, -4, -4]


def test_neighbours_do_not_matter(decoder) -> None:
    """In one batch with requests of other penalties, without one, and pictures."""
    samplers = [greedy(2.0), TopPSamplerConfig(), greedy(1.2), ChameleonSamplerConfig()]
    documents = [DOCUMENT, DOCUMENT, (Text("a"), TextHole(9)), (Text("bed"), ImageHole())]
    asked = [
        Request(document, seed=place, sampler=sampler.build())
        for place, (document, sampler) in enumerate(zip(documents, samplers, strict=True))
    ]
    engine = make_engine(decoder, TopPSamplerConfig())
    for request, done in zip(asked, engine.complete(asked), strict=True):
        [alone] = engine.complete([request])
        assert alone.document == done.document
        assert alone.log_probability == pytest.approx(done.log_probability, abs=1e-4)


def test_log_probabilities_are_the_models(decoder) -> None:
    """They are of the model without the penalty: of equal texts equal."""
    plain, changed = (
        make_engine(decoder, greedy(penalty)).complete([Request(DOCUMENT)])[0]
        for penalty in (1.0, 1.0001)
    )
    assert plain.document == changed.document
    assert plain.log_probability == pytest.approx(changed.log_probability, abs=1e-5)


def test_what_can_not_be_scored_is_refused(decoder) -> None:
    policy = Policy(decoder, SERIALIZER, ChameleonSamplerConfig().build(), VOCABULARY)
    with pytest.raises(GenerationError) as caught:
        policy.sample([Request(DOCUMENT)])
    assert tells(caught.value, "sampler PlannedSampler: penalises repeated tokens, which")
    assert len(policy.sample([Request((Text("bed"), ImageHole()))], 2)) == 2


def test_the_range() -> None:
    with pytest.raises(RecipeError, match="repetition_penalty"):
        replace(ChameleonSamplerConfig(), repetition_penalty=0.0).check()
