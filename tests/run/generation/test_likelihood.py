"""Log-probabilities of given contents: by hand, against the engine, against one forward per token.

Legend: B rows, T tokens, V ids.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import DocumentError, GenerationError
from cm3core.interfaces.sampler import PromptVariant
from cm3kits.reranker import BOX, GRID, LETTERS, SERIALIZER, VOCABULARY
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation import Likelihood, LogProbability
from cm3run.generation import likelihood as module
from cm3run.generation.engine import Engine, Request
from profiles import examples

APPLE = Codes(np.arange(6, dtype=np.int32), GRID)
PEAR = Codes(np.array([9, 3, 3, 15, 0, 7], np.int32), GRID)
HOLED = Codes(APPLE.codes, GRID, BOX)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(3)
    config = CM3LeonConfig(
        num_layers=2, d_model=32, num_heads=2, context_length=64, grid_positions=True
    )
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), GRID).eval()
    # the paper's initialisation is almost linear; here every part must matter
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    return decoder


class TableDecoder:
    """Logits of the next token given the current one.

    A table [V, V] of zeros, except 50 for <break>, which is never drawn.
    """

    context_length = 40

    def __init__(self):
        self.table_VV = torch.zeros(VOCABULARY.size, VOCABULARY.size)
        self.table_VV[:, VOCABULARY.break_] = 50.0

    def hidden_states(self, tokens_BT, *, cells_BT):
        return torch.nn.functional.one_hot(tokens_BT, VOCABULARY.size).float()

    def head_weight(self):
        return self.table_VV.T

    def logits(self, hidden, ids):
        return hidden @ self.head_weight()[ids.start : ids.stop].T


def text(letters: str) -> np.ndarray:
    return SERIALIZER.text_tokens(letters)


def codes(picture: Codes) -> np.ndarray:
    return picture.codes + np.int32(VOCABULARY.image.start)


# ---- by hand


def test_a_caption_by_hand():
    """One of 11 letters comes first, then a letter or the end.

    Odds: a 3 first; b 2 and the end 5 after a; the end 4 after b.
    """
    decoder = TableDecoder()
    a, b, end = int(text("a")[0]), int(text("b")[0]), VOCABULARY.end_of_infill
    for before, after, odds in (
        (VOCABULARY.sentinel(0), a, 3),
        (a, b, 2),
        (a, end, 5),
        (b, end, 4),
    ):
        decoder.table_VV[before, after] = math.log(odds)
    likelihood = Likelihood(decoder, SERIALIZER, VOCABULARY)
    [whole, cut] = likelihood.log_probability(
        [(TextHole(3), APPLE), (TextHole(2), APPLE)], [[text("ab")]] * 2
    )
    assert whole.nats == pytest.approx(math.log(3 / 13 * 2 / 17 * 4 / 15), abs=1e-5)
    assert whole.num_tokens == 3
    assert whole.per_token == pytest.approx(whole.nats / 3)
    # at maximum length, the end is not a choice
    assert cut == (pytest.approx(math.log(3 / 13 * 2 / 17), abs=1e-5), 2)


def test_a_picture_by_hand():
    """One of 16 codes, six times; code 9 has odds of 5 to 1 after <break>."""
    decoder = TableDecoder()
    decoder.table_VV[VOCABULARY.break_, VOCABULARY.image.start + 9] = math.log(5)
    [drawn] = Likelihood(decoder, SERIALIZER, VOCABULARY).log_probability(
        [(Text("a"), ImageHole())], [[codes(PEAR)]]
    )
    assert drawn == (pytest.approx(math.log(5 / 20) + 5 * math.log(1 / 16), abs=1e-5), 6)


def test_nothing_asked_nothing_done(decoder):
    assert Likelihood(decoder, SERIALIZER, VOCABULARY).log_probability([], []) == []


# ---- against the engine and against one forward per token

REQUESTS = [
    Request((Text("ab"), ImageHole())),
    Request((Text("a bad cab"), ImageHole()), retrieved=((Text("bad"), PEAR), (Text("i"), APPLE))),
    Request((TextHole(5), APPLE)),
    Request((TextHole(12, stop=("a", "gi")), APPLE)),
    Request((TextHole(12, min_tokens=4), PEAR)),
    Request((Text("had"), HOLED), retrieved=((Text("a cab"), PEAR),)),
    Request((MaskedText(("a ", TextHole(2), "hij", TextHole(3))), PEAR)),
    Request((TextHole(3), ImageHole(), Text("dig"), HOLED)),
    Request((PEAR, TextHole(4))),
]


@settings(max_examples=examples(8))
@given(data=st.data())
def test_it_is_the_engines_figure_for_what_the_engine_drew(decoder, data):
    text_scale = data.draw(st.sampled_from([1.0, 2.0]))
    sampler = CFGSamplerConfig(
        guidance_scale=1.5, text_guidance_scale=text_scale, text_temperature=1.2
    )
    requests = [
        replace(request, seed=data.draw(st.integers(0, 99)))
        for request in data.draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6))
    ]
    completions = Engine(decoder, SERIALIZER, sampler.build(), VOCABULARY).complete(requests)
    likelihood = Likelihood(
        decoder, SERIALIZER, VOCABULARY, max_tokens=data.draw(st.sampled_from([1, 90, 4096]))
    )
    asked = likelihood.log_probability(
        [request.document for request in requests],
        [
            likelihood.contents_of(request.document, completion.document)
            for request, completion in zip(requests, completions, strict=True)
        ],
        retrieved=[request.retrieved for request in requests],
    )
    for completion, one in zip(completions, asked, strict=True):
        assert one.nats == pytest.approx(completion.log_probability, abs=2e-3)
        assert one.num_tokens == completion.num_tokens


@torch.inference_mode()
def one_by_one(decoder, document, contents, retrieved, variant) -> float:
    """Each token from the whole sequence before it; legal ids are read from the id ranges."""
    prompt = SERIALIZER.prompt(document, retrieved, variant)
    tokens, cells, total = prompt.tokens.tolist(), prompt.cells.tolist(), 0.0

    def choose(token: int, legal: list[int]) -> float:
        hidden_E = decoder.hidden_states(torch.tensor([tokens]), cells_BT=torch.tensor([cells]))[
            0, -1
        ]
        return float(decoder.logits(hidden_E)[legal].double().log_softmax(-1)[legal.index(token)])

    for place, (hole, content) in enumerate(zip(prompt.holes, contents, strict=True)):
        if place:
            tokens += hole.prefix.tolist()
            cells += [-1] * len(hole.prefix)
        end = [hole.ends_with] if hole.ends_with is not None else []
        for index, token in enumerate(content.tolist()):
            legal = (
                list(VOCABULARY.image)
                if hole.cells is not None
                else [*VOCABULARY.text, *(end if index else [])]
            )
            total += choose(token, legal)
            tokens.append(token)
            cells.append(-1 if hole.cells is None else int(hole.cells[index]))
        if hole.cells is None and len(content) < hole.max_tokens:
            total += choose(end[0], [*VOCABULARY.text, *end])
        tokens += end
        cells += [-1] * len(end)
    return total


@settings(max_examples=examples(6))
@given(data=st.data())
def test_it_is_one_forward_a_token_for_every_variant(decoder, data):
    letters = st.text(LETTERS, min_size=1, max_size=6)
    variant = data.draw(
        st.sampled_from(
            [
                PromptVariant(),
                PromptVariant(hide_text="all"),
                PromptVariant(drop_retrieved=True),
                PromptVariant(hide_text="all", hide_images=True),
                PromptVariant(replace_text="bad"),
            ]
        )
    )
    retrieved = data.draw(st.sampled_from([(), ((Text("cab"), PEAR),)]))
    pairs = []
    for _ in range(data.draw(st.integers(1, 4))):
        written, picture = (
            text(data.draw(letters)),
            codes(data.draw(st.sampled_from([APPLE, PEAR]))),
        )
        pairs.append(
            data.draw(
                st.sampled_from(
                    [
                        ((TextHole(6), APPLE), [written]),
                        ((Text("dig"), ImageHole()), [picture]),
                        ((TextHole(6), Text("a"), ImageHole(), PEAR), [written, picture]),
                        ((Text("fad"), HOLED), [picture[1:3], picture[4:5]]),
                    ]
                )
            )
        )
    documents, contents = zip(*pairs, strict=True)
    asked = Likelihood(decoder, SERIALIZER, VOCABULARY).log_probability(
        documents, contents, retrieved=[retrieved] * len(pairs), variant=variant
    )
    expected = [
        one_by_one(decoder, document, content, retrieved, variant) for document, content in pairs
    ]
    assert [one.nats for one in asked] == pytest.approx(expected, abs=2e-3)


def test_a_hole_without_a_limit_counts_the_end(decoder):
    likelihood = Likelihood(decoder, SERIALIZER, VOCABULARY)
    for unlimited, limited in (
        ((TextHole(None), APPLE), (TextHole(9), APPLE)),
        ((MaskedText(("a", TextHole(None))), APPLE), (MaskedText(("a", TextHole(9))), APPLE)),
    ):
        free, bounded = likelihood.log_probability([unlimited, limited], [[text("abc")]] * 2)
        assert free == bounded
        assert free.num_tokens == 4


def test_texts_of_prompts_are_cut_as_in_training(decoder):
    cut, whole = (
        Likelihood(decoder, SERIALIZER, VOCABULARY, max_text_tokens=3),
        Likelihood(decoder, SERIALIZER, VOCABULARY),
    )
    [long] = cut.log_probability([(Text("abcabc"), ImageHole())], [[codes(PEAR)]])
    [short] = whole.log_probability([(Text("abc"), ImageHole())], [[codes(PEAR)]])
    assert long == short


# ---- cost


class CountingDecoder:
    """A decoder that records the shape of each forward, and the rows and id range of each head."""

    def __init__(self, decoder):
        self.decoder, self.shapes, self.heads = decoder, [], []

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def hidden_states(self, tokens_BT, **options):
        self.shapes.append(tuple(tokens_BT.shape))
        return self.decoder.hidden_states(tokens_BT, **options)

    def logits(self, hidden, ids):
        self.heads.append((len(hidden), ids))
        return self.decoder.logits(hidden, ids)


def test_memory_is_bounded_and_nothing_is_computed_twice_or_needlessly(decoder, monkeypatch):
    """The head sees only content positions and legal ids.

    The sequences are 8, 9, 10, 11 tokens without their last.
    """
    documents = [(Text("abcd"[:length]), ImageHole()) for length in (1, 2, 3, 4, 4)]
    contents = [[codes(PEAR)]] * 5
    counting = CountingDecoder(decoder)
    together = Likelihood(counting, SERIALIZER, VOCABULARY).log_probability(documents, contents)
    assert counting.shapes == [(4, 11)]  # equal documents are one row
    assert counting.heads == [(24, VOCABULARY.image)]
    assert together[3] == together[4]
    counting = CountingDecoder(decoder)
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * 4 * 16)  # ten rows of logits
    apart = Likelihood(counting, SERIALIZER, VOCABULARY, max_tokens=25).log_probability(
        documents, contents
    )
    assert counting.shapes == [(2, 11), (2, 9)]
    assert counting.heads == [(10, VOCABULARY.image), (2, VOCABULARY.image)] * 2
    assert [one.nats for one in apart] == pytest.approx([one.nats for one in together], abs=1e-4)


def test_the_head_of_a_caption_sees_text_and_its_end(decoder):
    counting = CountingDecoder(decoder)
    Likelihood(counting, SERIALIZER, VOCABULARY).log_probability(
        [(TextHole(9), APPLE)], [[text("abc")]]
    )
    known, end = VOCABULARY.text, VOCABULARY.end_of_infill
    assert sorted(counting.heads, key=str) == sorted(
        [(1, known), (3, known), (3, range(end, end + 1))], key=str
    )


# ---- refused contents


@pytest.mark.parametrize(
    ("document", "contents", "message"),
    [
        (
            (TextHole(4), APPLE),
            [],
            "document 1: 0 contents for 1 holes\n  next: give one for each, in order",
        ),
        (
            (TextHole(4), APPLE),
            [codes(PEAR)[:2]],
            "document 1, hole 0: holds image:9, which is not a text token\n  next: give ids of the "
            "vocabulary, without end tokens",
        ),
        (
            (Text("a"), ImageHole()),
            [text("abcabc")],
            "document 1, hole 0: holds text:0, which is not an image token\n  next: give ids of the "
            "vocabulary, without end tokens",
        ),
        (
            (TextHole(4), APPLE),
            [text("abcab")],
            "document 1, hole 0: 5 text tokens, but the hole takes at most 4\n  next: shorten the "
            "text to fit the hole",
        ),
        (
            (TextHole(4), APPLE),
            [text("")],
            "document 1, hole 0: 0 text tokens, but the hole takes 1 or more\n  next: give a longer "
            "text, or lower min_tokens",
        ),
        (
            (TextHole(4, min_tokens=3), APPLE),
            [text("ab")],
            "document 1, hole 0: 2 text tokens, but the hole takes 3 or more\n  next: give a longer "
            "text, or lower min_tokens",
        ),
        (
            (TextHole(9, stop=("b",)), APPLE),
            [text("abcd")],
            "document 1, hole 0: continues for 2 tokens after the hole has stopped\n  next: cut "
            "the text after its stop string",
        ),
        (
            (Text("a"), ImageHole()),
            [codes(PEAR)[:5]],
            "document 1, hole 0: 5 codes, but the hole takes 6\n  next: give one code per cell",
        ),
        (
            (Text("a" * 57), ImageHole()),
            [codes(PEAR)],
            None,
        ),  # just fits: the last code is not fed
        (
            (Text("a" * 58), ImageHole()),
            [codes(PEAR)],
            "document 1: prompt and contents are 65 tokens, 1 more than the decoder's context of "
            "64 holds\n"
            "  next: shorten the text or retrieve fewer documents",
        ),
    ],
)
def test_invalid_contents_are_refused(decoder, document, contents, message):
    likelihood = Likelihood(decoder, SERIALIZER, VOCABULARY)
    good = (Text("a"), ImageHole())
    if message is None:
        assert len(likelihood.log_probability([good, document], [[codes(PEAR)], contents])) == 2
        return
    with pytest.raises(GenerationError) as error:
        likelihood.log_probability([good, document], [[codes(PEAR)], contents])
    assert str(error.value) == message


def test_a_document_without_holes_is_refused(decoder):
    with pytest.raises(DocumentError, match="query document: has no hole"):
        Likelihood(decoder, SERIALIZER, VOCABULARY).log_probability([(Text("a"), APPLE)], [[]])


def test_nats_a_token():
    assert LogProbability(-6.0, 4).per_token == -1.5
