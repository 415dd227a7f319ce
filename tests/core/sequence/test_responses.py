"""Responses in sequences: where they are, what counts, and that training masks what prompts leave out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, MaskedText, Text, TextHole
from cm3core.sequence import only_responses
from cm3core.sequence.serialize import Serializer
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.objectives.causal import CausalObjectiveConfig
from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
from cm3plugins.tasks.bundled import TASKS
from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizerConfig
from profiles import examples

WORDS = ["red bell.", "Question: what is it? Answer: a red bell!", "The answer is yes. no?"] * 4
TOKENIZERS = [
    BPETokenizerConfig(vocab_size=300).build(WORDS),
    ByteTokenizerConfig().build(None),
]
GRID = (2, 2)


def serializer(tokenizer) -> Serializer:
    size = tokenizer.vocab_size + 4
    return Serializer(
        CM3LeonVocabulary(num_text=size, num_image=8, num_sentinels=8), tokenizer, GRID
    )


def picture(first: int = 0, *, response: bool = False) -> Codes:
    return Codes(np.arange(first, first + 4, dtype=np.int32), GRID, response=response)


def test_by_hand() -> None:
    """Bytes: <eos> a b c <break> 4 codes <break> d e <eos>; "c" and "de" are asked for."""
    codec = serializer(TOKENIZERS[1])
    document = (Text("abc", ((2, 3),)), picture(), Text("de", ((0, 2),)))
    sequence = codec.sequence(document, [(Text("r", ((0, 1),)),)])
    first, last = sequence.responses
    assert codec.text(sequence.tokens[first.start : first.stop]) == "c"
    assert codec.text(sequence.tokens[last.start : last.stop]) == "de"
    weights = only_responses(np.full(len(sequence), 2, np.float32), sequence)
    assert np.flatnonzero(weights).tolist() == [
        first.start,
        last.start,
        last.start + 1,
        len(sequence) - 1,  # its end is learned too
    ]
    assert set(weights[weights > 0]) == {2.0}


def test_pictures() -> None:
    codec = serializer(TOKENIZERS[1])
    sequence = codec.sequence((picture(), Text("a"), picture(4, response=True)))
    [span] = sequence.responses
    assert sequence.tokens[span.start : span.stop].tolist() == [
        code + codec.vocabulary.image.start for code in (4, 5, 6, 7)
    ]
    weights = only_responses(np.ones(len(sequence), np.float32), sequence)
    assert weights.sum() == 4


def test_without_a_task_all_counts() -> None:
    sequence = serializer(TOKENIZERS[1]).sequence((Text("a"), picture()))
    assert sequence.responses == ()
    weights = np.ones(len(sequence), np.float32)
    assert only_responses(weights, sequence) is weights


def test_a_response_that_is_cut_off() -> None:
    codec = serializer(TOKENIZERS[1])
    document = (Text("abcdef", ((2, 6),)), picture())
    [span] = codec.sequence(document, max_text_tokens=4).responses
    assert len(span) == 2
    assert codec.sequence(document, max_text_tokens=2).responses == ()


@given(
    st.sampled_from(TOKENIZERS),
    st.sampled_from(["Answer: ", "Answer:\n", "(", "", "Say "]),
    st.sampled_from(["red", "yes!", "(a)", "a red bell", "é"]),
    st.sampled_from([".", "", "! Then", "; or"]),
)
def test_what_is_masked_is_what_prompts_leave_out(tokenizer, before, answer, after) -> None:
    codec = serializer(tokenizer)
    end = after.split(" ")[0]
    stop = len(before) + len(answer) + len(end)
    document = (Text(before + answer + after, ((len(before), stop),)), picture())
    sequence = codec.sequence(document)
    [span] = sequence.responses
    hole = (MaskedText((before, TextHole(99), after[len(end) :])), picture())
    if not before and after == end:
        hole = (TextHole(99), picture())
    asked = codec.prompt(hole)
    [content] = codec.contents_of(hole, document)
    assert sequence.tokens[span.start : span.stop].tolist() == content.tolist()
    masked = CM3ObjectiveConfig(hide_response=1.0).build(codec.vocabulary)
    trained = masked.mask(sequence, np.random.default_rng(0), 999)
    wanted = [*asked.tokens, *content, codec.vocabulary.end_of_infill]
    assert trained.tokens.tolist() == wanted


RECORD = {
    "image": picture(),
    "source": picture(),
    "target": picture(2),
    "condition": picture(1),
    **{
        name: f"some {name} here"
        for name in [
            "caption",
            "question",
            "answer",
            "context",
            "options",
            "solution",
            "instruction",
            "feature",
            "objects",
            "phrase",
            "text",
            "conversation",
        ]
    },
}


@pytest.mark.parametrize("layout", ["paper", "answer_last"])
@pytest.mark.parametrize("name", list(TASKS))
def test_prompts_of_bundled_tasks_are_trained_on(name: str, layout: str) -> None:
    """Filled with the truth, a prompt is token for token a training sequence, with each wording."""
    task = TASKS[name](layout=layout).build()
    codec = serializer(TOKENIZERS[0])
    for seed in range(8):
        document = task.document(RECORD, np.random.default_rng(seed))
        hole = task.prompt(RECORD, np.random.default_rng(seed), max_tokens=99)
        sequence = codec.sequence(document)
        prompt = codec.prompt(hole)
        [content] = codec.contents_of(hole, document)
        causal = not len(prompt.holes[0].prefix)
        if causal:
            end = [codec.vocabulary.eos]
            assert [*prompt.tokens, *content, *end] == sequence.tokens.tolist()
            objective = CausalObjectiveConfig(response_only=True).build(codec.vocabulary)
        else:
            objective = CM3ObjectiveConfig(hide_response=1.0, response_only=True).build(
                codec.vocabulary
            )
        masked = objective.mask(sequence, np.random.default_rng(0), 999)
        assert masked.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()
        start = len(prompt.tokens)
        assert masked.tokens[start : start + len(content)].tolist() == content.tolist()
        weights = masked.weights[start : start + len(content)]
        assert (weights > 0).all()
        # before it, at most its sentinels count
        before = masked.tokens[:start][masked.weights[:start] > 0]
        assert set(before.tolist()) <= {codec.vocabulary.sentinel(0)}


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=examples(30))
def test_masking_of_plain_documents_does_not_change(seed: int, share: float) -> None:
    codec = serializer(TOKENIZERS[0])
    sequence = codec.sequence((Text("a red bell"), picture()))
    one = CM3ObjectiveConfig(hide_response=share).build(codec.vocabulary)
    other = CM3ObjectiveConfig(hide_response=0.0).build(codec.vocabulary)
    a = one.mask(sequence, np.random.default_rng(seed), 99)
    b = other.mask(sequence, np.random.default_rng(seed), 99)
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.weights.tolist() == b.weights.tolist()


def test_how_often_responses_are_hidden() -> None:
    codec = serializer(TOKENIZERS[0])
    sequence = codec.sequence((Text("a red bell", ((2, 5),)), picture()))
    config = CM3ObjectiveConfig(
        hide_response=0.25, segment_mask_probability=0, box_mask_probability=0, lambda_spans=0
    )
    objective = config.build(codec.vocabulary)
    rng = np.random.default_rng(0)
    hidden = sum(len(objective.mask(sequence, rng, 99)) > len(sequence) for _ in range(2000))
    assert 440 < hidden < 560  # 500 +- 3 standard deviations
