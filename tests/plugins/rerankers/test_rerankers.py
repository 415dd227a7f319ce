"""The bundled rerankers: the kit, numbers by hand, what they ask the model, what they refuse, and
the shipped model's judgement.

Legend: B rows, T tokens, V ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import cm3core
from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import GenerationError
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reranker import Candidate, Reranker
from cm3core.interfaces.sampler import PromptVariant
from cm3kits.reranker import BOX, GRID, SERIALIZER, VOCABULARY, RerankerContract, pixels_of
from cm3kits.retriever import HashEmbedder
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.rerankers import ClipRerankerConfig, LikelihoodRerankerConfig, PMIRerankerConfig
from cm3run.generation import Likelihood
from messages import tells

APPLE = Codes(np.arange(6, dtype=np.int32), GRID)
PEAR = Codes(np.array([9, 3, 3, 15, 0, 7], np.int32), GRID)
NINES = Codes(np.full(6, 9, np.int32), GRID)


def tiny_likelihood(max_text_tokens: int | None = 6) -> Likelihood:
    """Over a decoder in which every token matters to those behind it."""
    generator = torch.Generator().manual_seed(0)
    config = CM3LeonConfig(
        num_layers=2, d_model=32, num_heads=2, context_length=64, grid_positions=True
    )
    decoder = config.build(VOCABULARY, SDPAAttentionConfig().build(), GRID).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return Likelihood(decoder, SERIALIZER, VOCABULARY, max_text_tokens=max_text_tokens)


def drawn(text: str, *pictures: Codes, retrieved: tuple[Document, ...] = ()) -> list[Candidate]:
    """Pictures drawn for a text."""
    return [
        Candidate((Text(text), ImageHole()), (Text(text), picture), pixels_of, retrieved)
        for picture in pictures
    ]


# ---- the kit


class TestCosine(RerankerContract):
    def make(self) -> Reranker:
        return ClipRerankerConfig().build(embedder=HashEmbedder(), likelihood=tiny_likelihood())


class TestCosineToDocuments(RerankerContract):
    def make(self) -> Reranker:
        return ClipRerankerConfig(with_retrieved=True).build(
            embedder=HashEmbedder(), likelihood=tiny_likelihood()
        )


class TestLikelihoodPerToken(RerankerContract):
    def make(self) -> Reranker:
        return LikelihoodRerankerConfig().build(embedder=None, likelihood=tiny_likelihood())


class TestLikelihoodSum(RerankerContract):
    def make(self) -> Reranker:
        config = LikelihoodRerankerConfig(normalise=False, with_retrieved=True)
        return config.build(embedder=None, likelihood=tiny_likelihood(max_text_tokens=None))


class TestTextPMI(RerankerContract):
    def make(self) -> Reranker:
        return PMIRerankerConfig().build(embedder=None, likelihood=tiny_likelihood())


class TestImagePMI(RerankerContract):
    def make(self) -> Reranker:
        return PMIRerankerConfig(direction="image", with_retrieved=True).build(
            embedder=None, likelihood=tiny_likelihood()
        )


# ---- clip by hand


class ColourEmbedder(Embedder):
    """A picture is its first pixel's (red, green); the words red and green are the axes."""

    dimension = 2
    fingerprint = "colours"

    def __init__(self) -> None:
        self.num_pictures = 0

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(
            [{"red": (1, 0), "green": (0, 1), "red\nred": (1, 0)}[text] for text in texts],
            np.float32,
        )

    def _embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.num_pictures += len(images)
        return np.array([image[0, 0, :2] for image in images], np.float32)


#: First code -> colour of all pixels: red, green, and (3, 4), whose cosines with the axes are 0.6
#: and 0.8.
PALETTE = np.array([[200, 0, 9], [0, 100, 9], [3, 4, 9]], np.uint8)
RED, GREEN, BETWEEN = (
    Codes(np.array([colour, 0, 0, 0, 0, 0], np.int32), GRID) for colour in range(3)
)


def coloured(codes: Codes) -> np.ndarray:
    return np.broadcast_to(PALETTE[codes.codes[0]], (4, 4, 3))


def test_cosines_of_drawn_pictures_by_hand():
    reranker = ClipRerankerConfig().build(embedder=ColourEmbedder(), likelihood=tiny_likelihood())
    some = [
        Candidate((Text("red"), ImageHole()), (Text("red"), picture), coloured)
        for picture in (RED, GREEN, BETWEEN)
    ]
    assert reranker.score(some) == pytest.approx([1.0, 0.0, 0.6])


def test_cosines_of_written_texts_by_hand_share_the_picture():
    embedder, decoded = ColourEmbedder(), []

    def decode(codes: Codes) -> np.ndarray:
        decoded.append(codes)
        return coloured(codes)

    some = [
        Candidate((TextHole(9), BETWEEN), (Text(text), BETWEEN), decode)
        for text in ("red", "green", "red")
    ]
    reranker = ClipRerankerConfig().build(embedder=embedder, likelihood=tiny_likelihood())
    assert reranker.score(some) == pytest.approx([0.6, 0.8, 0.6])
    assert (len(decoded), embedder.num_pictures) == (1, 1)


def test_several_pictures_count_as_their_mean_and_given_ones_not_beside_drawn_ones():
    request = (Text("red"), GREEN, ImageHole(), Text("red"), ImageHole())
    one = Candidate(request, (Text("red"), GREEN, RED, Text("red"), BETWEEN), coloured)
    reranker = ClipRerankerConfig().build(embedder=ColourEmbedder(), likelihood=tiny_likelihood())
    assert reranker.score([one]) == pytest.approx([0.8])


def test_cosines_to_text_and_documents_by_hand():
    """Of a document without a picture nothing is compared; without any, only the text is."""
    documents = ((Text("a"), GREEN), (Text("b"),), (Text("c"), BETWEEN))
    config = ClipRerankerConfig(with_retrieved=True)
    reranker = config.build(embedder=ColourEmbedder(), likelihood=tiny_likelihood())
    for retrieved, expected in (
        (documents, [(1 + 0 + 0.6) / 3, (0 + 1 + 0.8) / 3, (0.6 + 0.8 + 1) / 3]),
        (documents[1:2], [1, 0, 0.6]),
        ((), [1, 0, 0.6]),
    ):
        some = [
            Candidate((Text("red"), ImageHole()), (Text("red"), picture), coloured, retrieved)
            for picture in (RED, GREEN, BETWEEN)
        ]
        assert reranker.score(some) == pytest.approx(expected)


def test_a_cosine_is_called_after_its_embedder():
    for with_retrieved, to in ((False, ""), (True, ", to text and documents")):
        config = ClipRerankerConfig(with_retrieved=with_retrieved)
        reranker = config.build(embedder=HashEmbedder(), likelihood=tiny_likelihood())
        assert reranker.measure == f"cosine similarity of HashEmbedder{to}"


# ---- likelihood and pmi by hand


class BagDecoder:
    """The next token's odds are products over all tokens so far, of a table: a code 9 makes the
    letter a 3 times as likely, the letter a makes the code 9 5 times as likely; nothing else
    matters."""

    context_length = 64

    def __init__(self):
        self.table_VV = torch.zeros(VOCABULARY.size, VOCABULARY.size)
        letter, nine = int(SERIALIZER.text_tokens("a")[0]), VOCABULARY.image.start + 9
        self.table_VV[nine, letter], self.table_VV[letter, nine] = math.log(3), math.log(5)

    def hidden_states(self, tokens_BT, *, cells_BT):
        return torch.nn.functional.one_hot(tokens_BT, VOCABULARY.size).float().cumsum(1)

    def head_weight(self):
        return self.table_VV.T

    def logits(self, hidden, ids):
        return hidden @ self.head_weight()[ids.start : ids.stop].T


def bag(max_text_tokens: int | None = 1) -> Likelihood:
    return Likelihood(BagDecoder(), SERIALIZER, VOCABULARY, max_text_tokens=max_text_tokens)


def test_likelihood_of_a_prompt_by_hand():
    """11 letters. PEAR has one 9: a has odds of 3 to 10. NINES has six: 729 to 10. APPLE has none:
    1 to 10."""
    scores = (
        LikelihoodRerankerConfig()
        .build(embedder=None, likelihood=bag())
        .score(drawn("a", APPLE, PEAR, NINES))
    )
    assert scores == pytest.approx(
        [math.log(1 / 11), math.log(3 / 13), math.log(729 / 739)], abs=1e-5
    )


def test_likelihood_per_token_and_summed_by_hand():
    """Not cut, the text's end is a choice too: one of 11 letters, a being three times as likely,
    and the end."""
    nats = math.log(3 / 13) + math.log(1 / 14)
    for normalise, expected in ((True, nats / 2), (False, nats)):
        reranker = LikelihoodRerankerConfig(normalise=normalise).build(
            embedder=None, likelihood=bag(None)
        )
        assert reranker.score(drawn("a", PEAR)) == pytest.approx([expected], abs=1e-5)
        assert reranker.measure == (
            "log p(text | picture), nats a token" if normalise else "log p(text | picture), nats"
        )


def test_mutual_information_of_text_by_hand():
    """What a picture with nines tells of the letter a, beyond 1 of 11; of b it takes away."""
    reranker = PMIRerankerConfig().build(embedder=None, likelihood=bag())
    assert reranker.score(drawn("a", APPLE, PEAR)) == pytest.approx(
        [0.0, math.log(3 / 13 * 11)], abs=1e-5
    )
    written = [Candidate((TextHole(1), PEAR), (Text(text), PEAR), pixels_of) for text in "ab"]
    assert reranker.score(written) == pytest.approx(
        [math.log(3 / 13 * 11), math.log(1 / 13 * 11)], abs=1e-5
    )
    assert reranker.measure == "log p(text | picture) - log p(text), nats"


def test_mutual_information_of_a_picture_by_hand():
    """Behind the letter a the code 9 has 5 of 20, each other one 1 of 20; behind a mask each has 1
    of 16."""
    reranker = PMIRerankerConfig(direction="image").build(embedder=None, likelihood=bag())
    assert reranker.score(drawn("a", NINES, APPLE, PEAR)) == pytest.approx(
        [
            6 * math.log(5 / 20 * 16),
            6 * math.log(1 / 20 * 16),
            5 * math.log(1 / 20 * 16) + math.log(5 / 20 * 16),
        ],
        abs=1e-4,
    )
    assert reranker.measure == "log p(picture | text) - log p(picture), nats"


# ---- what is asked of the model


def summed(likelihood: Likelihood, *, with_retrieved: bool = False) -> Reranker:
    config = LikelihoodRerankerConfig(normalise=False, with_retrieved=with_retrieved)
    return config.build(embedder=None, likelihood=likelihood)


@pytest.mark.parametrize(
    ("request_", "filled", "asked"),
    [
        ((Text("bad"), ImageHole()), (Text("bad"), PEAR), (TextHole(6), PEAR)),
        ((Text("bad"), Codes(APPLE.codes, GRID, BOX)), (Text("bad"), APPLE), (TextHole(6), APPLE)),
        (
            (Text("bad"), Text(""), ImageHole(), Text("cab")),
            (Text("bad"), Text(""), PEAR, Text("cab")),
            (TextHole(6), Text(""), PEAR, TextHole(6)),
        ),
        ((TextHole(4), ImageHole()), (Text("fad"), PEAR), (TextHole(4), PEAR)),
        (
            (Text("bad"), TextHole(4), APPLE),
            (Text("bad"), Text("cab"), APPLE),
            (Text("bad"), TextHole(4), APPLE),
        ),
        (
            (MaskedText(("ab", TextHole(4))), APPLE),
            (Text("abfad"), APPLE),
            (MaskedText(("ab", TextHole(4))), APPLE),
        ),
        ((APPLE, TextHole(4)), (APPLE, Text("fad")), (APPLE, TextHole(4))),
        ((MaskedText(("ab", TextHole(4))),), (Text("abfad"),), (MaskedText(("ab", TextHole(4))),)),
    ],
)
def test_written_texts_are_asked_as_they_were_and_prompts_as_captions(request_, filled, asked):
    likelihood = tiny_likelihood()
    contents = likelihood.contents_of(asked, filled)
    assert summed(likelihood).score([Candidate(request_, filled, pixels_of)]) == pytest.approx(
        [likelihood.log_probability([asked], [contents])[0].nats], abs=1e-4
    )


def test_texts_are_cut_as_in_training():
    likelihood = tiny_likelihood()
    [cut], [short] = (
        summed(likelihood).score(drawn("abcabcabc", PEAR)),
        summed(likelihood).score(drawn("abcabc", PEAR)),
    )
    assert cut == short


def test_retrieved_documents_stay_where_it_is_asked_for():
    likelihood, retrieved = tiny_likelihood(), ((Text("cab"), APPLE),)
    one, alone = drawn("bad", PEAR, retrieved=retrieved), drawn("bad", PEAR)
    [expected] = likelihood.log_probability(
        [(TextHole(6), PEAR)], [[SERIALIZER.text_tokens("bad")]], retrieved=[retrieved]
    )
    assert summed(likelihood, with_retrieved=True).score(one) == pytest.approx(
        [expected.nats], abs=1e-4
    )
    assert summed(likelihood).score(one) == summed(likelihood).score(alone)
    assert summed(likelihood).score(one)[0] != pytest.approx(expected.nats, abs=1e-2)


@pytest.mark.parametrize(
    ("request_", "filled", "beside", "alone"),
    [
        ((Text("bad"), ImageHole()), (Text("bad"), PEAR), (TextHole(6), PEAR), (TextHole(6),)),
        (
            (Text("bad"), TextHole(4), APPLE),
            (Text("bad"), Text("cab"), APPLE),
            (Text("bad"), TextHole(4), APPLE),
            (Text("bad"), TextHole(4)),
        ),
    ],
)
def test_the_two_terms_of_texts(request_, filled, beside, alone):
    likelihood = tiny_likelihood()
    contents = likelihood.contents_of(beside, filled)
    one, other = likelihood.log_probability([beside, alone], [contents, contents])
    assert PMIRerankerConfig().build(embedder=None, likelihood=likelihood).score(
        [Candidate(request_, filled, pixels_of)]
    ) == pytest.approx([one.nats - other.nats], abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "filled", "asked"),
    [
        ((Text("bad"), ImageHole()), (Text("bad"), PEAR), (Text("bad"), ImageHole())),
        (
            (Text("bad"), Codes(APPLE.codes, GRID, BOX)),
            (Text("bad"), APPLE),
            (Text("bad"), Codes(APPLE.codes, GRID, BOX)),
        ),
        (
            (Text("bad"), Text("cab"), ImageHole()),
            (Text("bad"), Text("cab"), PEAR),
            (Text("bad"), Text("cab"), ImageHole()),
        ),
        ((TextHole(4), APPLE), (Text("cab"), APPLE), (Text("cab"), ImageHole())),
        (
            (TextHole(4), APPLE, ImageHole()),
            (Text("cab"), APPLE, PEAR),
            (Text("cab"), APPLE, ImageHole()),
        ),
    ],
)
def test_the_two_terms_of_pictures(request_, filled, asked):
    likelihood = tiny_likelihood()
    contents = [likelihood.contents_of(asked, filled)]
    [told] = likelihood.log_probability([asked], contents)
    [untold] = likelihood.log_probability([asked], contents, variant=PromptVariant(hide_text="all"))
    reranker = PMIRerankerConfig(direction="image").build(embedder=None, likelihood=likelihood)
    assert reranker.score([Candidate(request_, filled, pixels_of)]) == pytest.approx(
        [told.nats - untold.nats], abs=1e-4
    )


# ---- what can't be scored

NO_TEXT = [Candidate((ImageHole(),), (PEAR,), pixels_of)]
NO_PICTURE = [Candidate((MaskedText(("a", TextHole(3))),), (Text("abc"),), pixels_of)]


@pytest.mark.parametrize(
    ("config", "candidates", "message"),
    [
        (
            ClipRerankerConfig(),
            NO_TEXT,
            "reranker (cosine similarity of HashEmbedder), candidate 0: has no text to compare its",
        ),
        (
            ClipRerankerConfig(),
            NO_PICTURE,
            "reranker (cosine similarity of HashEmbedder), candidate 0: has no picture to compare its",
        ),
        (
            LikelihoodRerankerConfig(),
            NO_TEXT,
            "reranker (log p(text | picture), nats a token), candidate 0: has no text to score",
        ),
        (
            PMIRerankerConfig(),
            NO_TEXT,
            "reranker (log p(text | picture) - log p(text), nats), candidate 0: has no text to score",
        ),
        (
            PMIRerankerConfig(),
            NO_PICTURE,
            "reranker (log p(text | picture) - log p(text), nats), candidate 0: has no picture to score its",
        ),
        (
            PMIRerankerConfig(direction="image"),
            NO_PICTURE,
            "reranker (log p(picture | text) - log p(picture), nats), candidate 0: has no picture to score its",
        ),
        (
            LikelihoodRerankerConfig(with_retrieved=True),
            drawn("bad", PEAR, retrieved=((Text("i"), APPLE),) * 6),
            "reranker (log p(text | picture), nats a token), document 0: prompt and contents",
        ),
    ],
)
def test_what_can_not_be_scored_is_said(config, candidates, message):
    with pytest.raises(GenerationError) as caught:
        config.build(embedder=HashEmbedder(), likelihood=tiny_likelihood()).score(candidates)
    assert tells(caught.value, message)


# ---- the shipped model


THINGS = ("banana", "pizza", "robot", "skull", "turtle", "umbrella")


@pytest.fixture(scope="module")
def model():
    return cm3core.load("bundled:emoji64")


@pytest.fixture(scope="module")
def pairs(model):
    """Captions and pictures of six things in one style, and the pictures' pixels by their codes."""
    corpus = EmojiCorpus()
    entries = [corpus.index(f"noto/{thing}") for thing in THINGS]
    codes = model.encode([corpus.render(entry, model.image_size[0]).copy() for entry in entries])
    pixels = {
        one.codes.tobytes(): picture
        for one, picture in zip(codes, model.decode(codes), strict=True)
    }
    return (
        [f"{corpus.entries[entry].label}, noto style" for entry in entries],
        codes,
        lambda one: pixels[one.codes.tobytes()],
    )


def shipped(model, name: str) -> Reranker:
    """A reranker over the shipped model, as its recipe would name it."""
    parts = model.components
    return parts.registry.config_class("reranker", name)().build(
        embedder=parts.embedder, likelihood=parts.likelihood
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "likelihood"])
def test_the_shipped_model_finds_the_picture_of_a_caption(model, pairs, name):
    """By chance it would be one of six."""
    texts, codes, decode = pairs
    reranker = shipped(model, name)
    best = [
        int(
            np.argmax(
                reranker.score(
                    [
                        Candidate((Text(text), ImageHole()), (Text(text), one), decode)
                        for one in codes
                    ]
                )
            )
        )
        for text in texts
    ]
    assert sum(place == found for place, found in enumerate(best)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "pmi"])
def test_the_shipped_model_finds_the_caption_of_a_picture(model, pairs, name):
    """By chance it would be one of six."""
    texts, codes, decode = pairs
    reranker = shipped(model, name)
    best = [
        int(
            np.argmax(
                reranker.score(
                    [Candidate((TextHole(24), one), (Text(text), one), decode) for text in texts]
                )
            )
        )
        for one in codes
    ]
    assert sum(place == found for place, found in enumerate(best)) >= 5


def test_the_shipped_embedder_is_not_called_clip(model):
    assert shipped(model, "clip").measure == "cosine similarity of LightEncoder"
