"""The retriever `hybrid`: subjects by meaning and by words, then styles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cm3core.document import Image, Text, text_of
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3kits.retriever import HashEmbedder, ListSource, RetrieverContract
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.retrievers import BM25RetrieverConfig, HybridRetrieverConfig
from cm3plugins.retrievers.hybrid import HybridRetriever, Overlap, Styles, plain
from cm3plugins.retrievers.text_vectors import TextVectors, save_vectors
from messages import tells


class TestHybrid(RetrieverContract):
    config = HybridRetrieverConfig()


class TestHybridWithPictures(RetrieverContract):
    config = HybridRetrieverConfig(words_share=0.5, pictures=BM25RetrieverConfig())


def over(texts: list[str], **keys: object) -> HybridRetriever:
    memory = ListSource([(Text(text),) for text in texts])
    return HybridRetrieverConfig(**keys).build(memory, HashEmbedder())


def found(retriever: HybridRetriever, prompt: str, number: int = 1) -> list[str]:
    [results] = retriever.retrieve([(Text(prompt),)], number)
    return [text_of(retriever.memory.document(one.index)) for one in results]


CAPTIONS = [
    "bell, colour, noto",
    "bell, filled, lucide",
    "bell, outline, lucide",
    "bell, outline, tabler",
    "solar panel, outline, tabler",
    "panel, filled, solar",
    "panel, outline, lucide",
    "arrow up down, outline, lucide",
    "arrow down up, outline, lucide",
    "numeric 4, outline, lucide",
    "numeric 5, outline, lucide",
]


def test_the_same_text_scores_one():
    retriever = over(CAPTIONS)
    for caption in CAPTIONS:
        [[best]] = retriever.retrieve([(Text(caption),)], 1)
        assert retriever.memory.document(best.index) == (Text(caption),)
        assert best.score == pytest.approx(1, abs=0.01)


def test_the_style_that_is_asked_for_comes_first():
    retriever = over(CAPTIONS)
    assert found(retriever, "bell, filled") == ["bell, filled, lucide"]
    assert found(retriever, "bell, tabler") == ["bell, outline, tabler"]
    assert found(retriever, "filled bell") == ["bell, filled, lucide"]
    assert found(retriever, "bell, colour") == ["bell, colour, noto"]
    # the subject weighs more than the style
    assert found(retriever, "solar panel, filled") == ["solar panel, outline, tabler"]


def test_the_usual_style_comes_first_if_none_is_asked_for():
    assert found(over(CAPTIONS), "bell", 4) == [
        "bell, outline, lucide",
        "bell, outline, tabler",
        "bell, filled, lucide",
        "bell, colour, noto",
    ]


def test_an_article_names_nothing_unless_a_name_has_it():
    retriever = over([*CAPTIONS, "a b, outline, lucide", "b, outline, lucide"])
    for prompt in ("a bell, tabler", "The bell, tabler", "an arrow up down, outline"):
        [[best]] = retriever.retrieve([(Text(prompt),)], 1)
        bare = prompt.partition(" ")[2]
        assert [[best]] == retriever.retrieve([(Text(bare),)], 1), prompt
        assert best.score == pytest.approx(1, abs=0.06)
    assert found(retriever, "a b") == ["a b, outline, lucide"]
    assert found(retriever, "a") == found(retriever, "A"), "an article alone is all that there is"


def test_a_style_word_in_a_subject_is_first_read_as_the_subject():
    assert found(over(CAPTIONS), "solar panel") == ["solar panel, outline, tabler"]
    assert found(over([one for one in CAPTIONS if "solar panel" not in one]), "solar panel") == [
        "panel, filled, solar"
    ]


def test_words_tell_apart_what_differs_in_order_or_number():
    retriever = over(CAPTIONS)
    assert found(retriever, "arrow down up, outline") == ["arrow down up, outline, lucide"]
    assert found(retriever, "arrow up down, outline") == ["arrow up down, outline, lucide"]
    assert found(retriever, "numeric 5") == ["numeric 5, outline, lucide"]


def test_words_after_a_comma_that_no_style_has_are_searched_for():
    styles, text = Styles([["outline"], ["colour"]], np.asarray([0, 0, 1])), "apple, red, outline"
    assert styles.unknown(text) == ["red"]
    [reading] = styles.readings(text, {"red": None})
    assert (reading.subject, reading.style) == ("apple red", ("outline",))
    [reading] = styles.readings(text, {"red": "colour"})
    assert (reading.subject, reading.style) == ("apple", ("colour", "outline"))


def test_a_style_comes_last_unless_it_is_asked_for():
    texts = ["heart broken, colour, noto", "broken heart, outline, lucide", "castle, colour, noto"]
    memory = ListSource([(Text(text),) for text in texts])
    config = HybridRetrieverConfig(encoder=MiniLMConfig(), only_if_asked=["colour"])
    retriever = config.build(memory, None)
    assert found(retriever, "a heart that broke") == texts[1:2]
    assert found(retriever, "a castle") == texts[2:]
    # words of the same meaning ask for it; nothing comes before a document of exactly the subject
    for prompt in ("colour", "coloured", "colourful"):
        assert found(retriever, f"a heart that broke, {prompt}") == texts[:1]
    assert found(retriever, "heart broken") == texts[:1]


def test_overlap_by_hand():
    overlap = Overlap(["bell", "bell off", "door"])
    # idf of a word in two of three texts: log(1 + 1.5 / 2.5); in one: log(1 + 2.5 / 1.5)
    often, once = np.log(1 + 1.5 / 2.5), np.log(1 + 2.5 / 1.5)
    whole = often + 2 * once  # "bell", "off" and the pair
    expected = [often / np.sqrt(often * whole), 1, 0]
    np.testing.assert_allclose(overlap.of("bell off"), expected)
    np.testing.assert_allclose(overlap.of("unheard"), 0)


def test_what_has_no_letter_is_kept():
    assert [plain(text) for text in ("Bell-OFF", " ☃ ", "...")] == ["bell off", "☃", "..."]


def test_a_query_with_text_reads_no_picture():
    def never() -> np.ndarray:
        raise AssertionError("a picture was read")

    memory = ListSource([(Text(text), Image(text, never)) for text in CAPTIONS])
    retriever = HybridRetrieverConfig(pictures=BM25RetrieverConfig()).build(memory, HashEmbedder())
    [[best]] = retriever.retrieve([(Text("bell, filled"),)], 1)
    assert (best.index, retriever.retrieve_parts([(Text("bell"),)])) == (1, [[]])
    assert "pictures" not in vars(retriever)


def test_vectors_of_a_file_replace_the_embedder(tmp_path: Path):
    class Counting(HashEmbedder):
        def __init__(self) -> None:
            super().__init__(96)
            self.texts: list[str] = []

        def _embed_texts(self, texts):
            self.texts += texts
            return super()._embed_texts(texts)

    names = [f"thing {number}" for number in range(90)]
    path, embedder = tmp_path / "names.safetensors", Counting()
    assert save_vectors(names, embedder, path, 64) > 0.95
    first = path.read_bytes()
    save_vectors(names[::-1], embedder, path, 64)
    assert path.read_bytes() == first
    embedder.texts.clear()
    kept = TextVectors(embedder, path)
    vectors = kept.of_memory([*names[3:9], "another"])
    assert embedder.texts == ["another"]
    nearest = (kept.of_queries([*names[3:9], "another"]) @ vectors.T).argmax(1)
    assert nearest.tolist() == list(range(7))


def test_vectors_of_another_embedder_are_refused(tmp_path: Path):
    path = tmp_path / "names.safetensors"
    save_vectors(["bell", "door"], HashEmbedder(64), path, 64)
    with pytest.raises(DataError) as error:
        over(CAPTIONS, vectors=str(path))
    assert tells(error.value, "... has vectors by ... not by ... retriever.encoder")
    path.write_bytes(b"nothing")
    with pytest.raises(DataError) as error:
        over(CAPTIONS, vectors=str(path))
    assert tells(error.value, "... is not a file of text vectors")


def test_without_an_encoder_it_is_refused():
    with pytest.raises(RecipeError) as error:
        HybridRetrieverConfig().build(ListSource([(Text("bell"),)] * 2), None)
    assert tells(error.value, "retriever.encoder: is not set ... retriever.encoder=minilm")
    with pytest.raises(CheckpointError) as error:
        HybridRetrieverConfig(vectors="bundled:nope").check()
    assert tells(error.value, "retriever.vectors: is 'bundled:nope', which is not shipped")


def test_the_shipped_vectors_fit_the_shipped_encoder():
    retriever = HybridRetrieverConfig(encoder=MiniLMConfig(), vectors="bundled:icons").build(
        ListSource([(Text(text),) for text in [*CAPTIONS, "dog, filled", "folder lock, filled"]]),
        None,
    )
    assert found(retriever, "puppy") == ["dog, filled"]
    assert found(retriever, "a padlock on a folder") == ["folder lock, filled"]


@pytest.mark.parametrize("excluded", [(), ("1", "4"), tuple(map(str, range(10)))])
@pytest.mark.parametrize(
    "prompt", ["bell", "a bell, outline", "panel, solar", "bell, wobbly", "arrow, filled", "..."]
)
def test_what_is_answered_is_what_is_retrieved_and_compared(
    prompt: str, excluded: tuple[str, ...]
) -> None:
    """Though a text is read once for both."""
    retriever = over(CAPTIONS, same_above=0.9)
    query = (Text(prompt),)
    [(results, answer)] = retriever.answer([query], 3, [excluded])
    assert results == retriever.retrieve([query], 3, [excluded])[0]
    compared = retriever.compared(prompt)
    assert compared is not None
    assert answer == retriever.answered(compared, excluded)
