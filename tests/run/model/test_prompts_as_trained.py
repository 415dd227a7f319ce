"""Every command's prompt, with what is true put into its holes, is a training sequence token by
token; and what a guidance stream sees of it is one that masking can make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, Document, MaskedSequence, Text
from cm3core.errors import GenerationError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence import unmask
from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
from cm3run.generation.engine import Finished, TextGrown, TokensDrawn
from messages import tells
from profiles import examples
from toy_model import GRID, picture, toy_model

ASK = "Question: {question} Answer: {answer}."
EDIT = "Edit first image following the instruction"
CORPUS = [
    f"{start} {colour}{end}"
    for colour in ("red", "green", "blue", "dark red")
    for start in (ASK.split("{")[0] + "what is it? Answer:", EDIT, "a", "it is")
    for end in (".", "!", "!.", "?.", ").", '".', "...", " apple, noto style")
] * 3
#: A tokenizer that joins spaces to words, and punctuation marks to each other.
TOKENIZER = BPETokenizerConfig(vocab_size=600).build(CORPUS)
MAX_SPANS = 3
MODEL = toy_model(TOKENIZER, max_text_tokens=200, max_spans=MAX_SPANS)
SERIALIZER = MODEL.components.serializer
VOCABULARY = MODEL.components.vocabulary

words = st.text("abdegrun .!?)('\"é\n", min_size=1, max_size=12).map(str.strip).filter(bool)
texts = words | st.sampled_from(["red", "dark red", "yes!", "(a)", "1.", "red apple"])
codes = st.lists(st.integers(0, 15), min_size=16, max_size=16).map(
    lambda values: Codes(np.array(values, np.int32), GRID)
)
some_missing = st.lists(st.booleans(), min_size=16, max_size=16).filter(any)


def whole(document: Document, filled: Document) -> list[int]:
    """The sequence of a prompt whose holes take what `filled` has there, spans back in place."""
    prompt = SERIALIZER.prompt(document)
    tokens = [prompt.tokens]
    for place, (hole, content) in enumerate(
        zip(prompt.holes, SERIALIZER.contents_of(document, filled), strict=True)
    ):
        tokens += [hole.prefix] if place else []
        tokens += [content] if hole.ends_with is None else [content, np.array([hole.ends_with])]
    every = np.concatenate(tokens).astype(np.int32)
    if not len(prompt.holes[0].prefix):
        end = [] if prompt.holes[0].ends_with == VOCABULARY.eos else [VOCABULARY.eos]
        return [*every.tolist(), *end]
    nothing = np.zeros(len(every))
    return unmask(MaskedSequence(every, nothing.astype(np.int32), nothing), VOCABULARY).tolist()


def trained(document: Document) -> list[int]:
    return SERIALIZER.sequence(document).tokens.tolist()


def asked(question: str, template: str | None) -> Document:
    job, _ = MODEL.ask_job(picture(), question, template=template, max_tokens=99)
    return job.requests[0].document


TEMPLATES = (
    ASK,
    "{question}:{answer}",
    "{question}\n\n{answer}",
    'Q: {question} A: "{answer}" or so',
    "{question} {answer}",
)


@given(texts, texts, st.sampled_from(TEMPLATES))
def test_ask(question: str, answer: str, template: str) -> None:
    document = asked(question, template)
    told = template.replace("{question}", question).replace("{answer}", answer)
    filled = (Text(told), document[1])
    assert whole(document, filled) == trained(filled)


def test_ask_by_hand() -> None:
    """The space before the answer is its first token's, and the full stop belongs to it."""
    document = asked("what is it?", None)
    prompt = SERIALIZER.prompt(document)
    body = prompt.tokens[: prompt.tokens.tolist().index(VOCABULARY.sentinel(0))]
    assert SERIALIZER.text(body[1:]) == "Question: what is it? Answer:"
    filled = (Text("Question: what is it? Answer: red!."), document[1])
    [content] = SERIALIZER.contents_of(document, filled)
    assert [SERIALIZER.text(content[[place]]) for place in range(len(content))] == [" red", "!."]


@given(texts)
def test_generate(prompt: str) -> None:
    jobs, _ = MODEL.image_jobs(prompt, 1)
    document = next(jobs).requests[0].document
    filled = (document[0], SERIALIZER.codes(np.arange(16, dtype=np.int32) + VOCABULARY.image.start))
    assert whole(document, filled) == trained(filled)


@given(texts)
def test_edit(instruction: str) -> None:
    jobs, _ = MODEL.edit_jobs(picture(), instruction, 1, sampler="cfg")
    document = next(jobs).requests[0].document
    filled = (*document[:-1], document[1])
    assert whole(document, filled) == trained(filled)


@given(texts)
def test_caption(caption: str) -> None:
    [job], _ = MODEL.caption_jobs([picture()], max_tokens=99)
    document = job.requests[0].document
    filled = (Text(caption), document[1])
    assert whole(document, filled) == trained(filled)


@given(codes, some_missing, st.none() | texts)
def test_infill(given_codes: Codes, missing: list[bool], text: str | None) -> None:
    mask = np.kron(np.array(missing).reshape(GRID), np.ones((2, 2), bool))
    job, _ = MODEL.infill_job(picture(), None, text, mask=mask)
    document = job.requests[0].document
    given_codes.codes[~np.array(missing)] = document[1].codes[~np.array(missing)]
    filled = (Text(text or "red apple"), given_codes)
    assert whole(document, filled) == trained(filled)


@given(
    codes,
    st.lists(st.booleans(), min_size=16, max_size=16),
    st.sampled_from(["none", "all", "last"]),
    st.booleans(),
)
def test_no_stream_has_more_sentinels_than_training(
    picture_codes: Codes, missing: list[bool], hide: str, images: bool
) -> None:
    holed = Codes(picture_codes.codes, GRID, np.array(missing))
    for document in (
        asked("what is it?", ASK),
        (Text("red"), holed),
        (Text(EDIT), picture_codes, Text("red"), holed),
    ):
        assume(any(missing))
        prompt = SERIALIZER.prompt(document, variant=PromptVariant(hide, hide_images=images))
        sentinels = [token for token in prompt.tokens.tolist() if token in VOCABULARY.sentinels]
        assert all(token < VOCABULARY.sentinel(0) + MAX_SPANS for token in sentinels)
        neighbours = np.isin(prompt.tokens, VOCABULARY.sentinels)
        assert not (neighbours[1:] & neighbours[:-1]).any()


def test_the_stream_of_a_question_that_sees_no_text_captions() -> None:
    document = asked("what is it?", ASK)
    [job], _ = MODEL.caption_jobs([picture()])
    hidden = SERIALIZER.prompt(document, variant=PromptVariant(hide_text="all"))
    assert hidden.tokens.tolist() == SERIALIZER.prompt(job.requests[0].document).tokens.tolist()


@given(st.integers(0, 99), some_missing, st.sampled_from([1.0, 2.0]))
@settings(max_examples=examples(6))
def test_probabilities_are_the_engines_and_known_codes_stay(
    seed: int, missing: list[bool], text_scale: float
) -> None:
    """With holes that share sentinels, and a space that belongs to the answer."""
    [shown] = MODEL.encode([picture()])
    holed = Codes(shown.codes, GRID, np.array(missing))
    documents = [asked("what is it?", ASK), (Text("red"), holed)]
    requests = MODEL.requests(
        documents, seed=seed, text_guidance_scale=text_scale, text_temperature=1.2
    )
    drawn: list[int] = []
    completions = {}
    for event in MODEL.engine.stream(requests):
        if isinstance(event, TokensDrawn) and event.request == 0:
            drawn += event.tokens.tolist()
        if isinstance(event, Finished):
            completions[event.request] = event.completion
    answer = np.array([token for token in drawn if token in VOCABULARY.text], np.int32)
    filled = completions[1].document
    contents = [[answer], SERIALIZER.contents_of(documents[1], filled)]
    for place, one in enumerate(MODEL.components.likelihood.log_probability(documents, contents)):
        assert one.nats == pytest.approx(completions[place].log_probability, abs=2e-3)
    assert SERIALIZER.text(answer[:1]).startswith(" ")
    known = ~np.array(missing)
    assert np.array_equal(filled[1].codes[known], shown.codes[known])


def test_pieces_of_an_answer_are_the_text_that_is_put_in() -> None:
    [request] = MODEL.requests([asked("what is it?", ASK)], seed=3, text_temperature=2.0)
    *events, last = MODEL.engine.stream([request])
    pieces = [event.text for event in events if isinstance(event, TextGrown)]
    whole_text = last.completion.document[0].text
    assert whole_text == "Question: what is it? Answer: " + "".join(pieces)


def test_answers_are_without_what_the_template_has_around_them() -> None:
    answer = MODEL.ask(picture(), "what is it?", max_tokens=6, seed=1, text_temperature=2.0)
    assert answer.text == answer.text.removeprefix(" ")
    assert answer.text


SMALL = toy_model(max_text_tokens=12)
TRUNCATE = "shorten it, or read only its beginning (truncate)"
LONG = "thirteen char"


@pytest.mark.parametrize(
    ("call", "place", "length", "next_step"),
    [
        (lambda: SMALL.generate(LONG), "prompt", "13 tokens long", TRUNCATE),
        (
            lambda: SMALL.ask(picture(), "red?"),
            "question in its template",
            "22 tokens long, not counting the answer",
            "shorten one of the two (template)",
        ),
        (
            lambda: SMALL.edit(picture(), "red", sampler="cfg"),
            "task edit",
            f"{len(EDIT)} tokens long",
            TRUNCATE,
        ),
        (
            lambda: SMALL.infill(picture(), (0, 0, 4, 4), LONG),
            "text",
            "13 tokens long",
            TRUNCATE,
        ),
        (
            lambda: SMALL.caption(picture(), context=[(picture(), LONG)]),
            "context 0, text",
            "13 tokens long",
            "shorten it",
        ),
        (
            lambda: SMALL.generate("red", negative_prompt=LONG),
            "negative prompt",
            "13 tokens long",
            TRUNCATE,
        ),
        (
            lambda: SMALL.complete([(Text(LONG), Codes(np.zeros(16, np.int32), GRID, ALL))]),
            "request 0, segment 0",
            "13 tokens long",
            TRUNCATE,
        ),
    ],
)
def test_no_prompt_is_cut_in_silence(call, place, length, next_step) -> None:
    with pytest.raises(GenerationError) as error:
        call()
    assert tells(error.value, f"{place}: is {length}; the ... most 12 ... of 128 ... {next_step}")


def test_truncating_reads_the_beginning() -> None:
    options = {"seed": 1, "num_retrieved": 0, "truncate": True}
    for long, short in (
        (SMALL.generate(LONG, 1, **options), SMALL.generate(LONG[:12], 1, **options)),
        (
            SMALL.generate("red", 1, negative_prompt=LONG, **options),
            SMALL.generate("red", 1, negative_prompt=LONG[:12], **options),
        ),
    ):
        assert long[0].codes == short[0].codes


def test_a_question_may_hold_the_name_of_the_answer() -> None:
    answer = SMALL.ask(picture(), "{answer}?", template="{question} {answer}", max_tokens=2)
    assert len(answer.text) <= 2


ALL = np.ones(16, np.bool_)
