"""Searches by the parts of a picture: how it is cut, which parts are searched for, what is prepended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import PluginError, RecipeError
from cm3core.interfaces.retriever import Retrieved
from cm3kits.retriever import HashEmbedder, ListSource
from cm3plugins.retrievers import DenseRetrieverConfig
from cm3plugins.retrievers.same_part import SIDE, Part, cropped, explained, parts_of
from cm3run.prepending import prepended
from cm3run.training.neighbours import NeighbourSettings, NeighbourTable, Queries
from cm3run.training.sequences import RetrievedDocuments
from numbered_documents import Following, Numbers

RED, GREEN, BOTH = (255, 0, 0), (0, 255, 0), (255, 255, 0)


def scene(*blocks: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> PixelArray:
    """Blocks of colour on black."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for (x0, y0, x1, y1), colour in blocks:
        pixels[y0:y1, x0:x1] = colour
    return pixels


def shown(pixels: PixelArray) -> Image:
    return Image(str(hash(pixels.tobytes())), lambda: pixels)


class Colours(HashEmbedder):
    """A picture is the most red and the most green of it."""

    def __init__(self) -> None:
        super().__init__(2)

    def _embed_texts(self, texts: Sequence[str]) -> Any:
        return np.array([[len(text), 1] for text in texts], np.float32)

    def _embed_images(self, images: Sequence[PixelArray]) -> Any:
        return np.array([image.max((0, 1))[:2] for image in images], np.float32)


UPPER, LOWER = (8, 8, 56, 56), (72, 64, 120, 120)


def test_a_picture_is_cut_at_its_widest_gaps() -> None:
    """Two blocks, 16 columns and 8 rows apart: cut once, between columns 56 and 72."""
    tree = parts_of(scene((UPPER, RED), (LOWER, GREEN)), 4)
    assert tree is not None
    assert tree.box == (8, 8, 120, 120)
    assert [child.box for child in tree.children] == [UPPER, LOWER]
    assert [child.children for child in tree.children] == [(), ()]
    assert tree.children[0].region == (16, 16, 112, 112)  # 255 / 128 of pixels
    assert parts_of(scene(), 4) is None
    alone = parts_of(scene((UPPER, RED)), 4)
    assert alone is not None
    assert alone.nodes() == [alone]
    dot = parts_of(scene((UPPER, RED), ((72, 64, 80, 72), RED)), 4)
    assert dot is not None
    assert not dot.children, "a dot is no thing"


def test_a_part_is_searched_for_whole_and_on_its_background() -> None:
    """A bar of 60 x 20 pixels is what an embedder sees of it, which looks at the centred square."""
    bar = (8, 8, 68, 28)
    square = scene((bar, RED))
    square[10:12, 10:12] = GREEN  # at its end
    [picture] = cropped(square, Part(bar))
    assert isinstance(picture, Image)
    seen = picture.load()
    assert seen.shape == (68, 68, 3)
    assert np.array_equal(seen[24:44, 4:64], square[8:28, 8:68])
    around = seen.copy()
    around[24:44, 4:64] = 0
    assert not around.any()
    assert np.array_equal(np.unique(cropped(255 - square, Part(bar))[0].load()[:24]), [255])


def test_a_cut_must_explain_more_than_the_whole() -> None:
    one, other = Part((0, 0, 10, 20)), Part((20, 0, 40, 20))
    whole = Part((0, 0, 40, 20), (one, other))
    # weighted by area: (200 * 0.9 + 400 * 0.6) / 600 = 0.7
    assert explained(whole, [0.69, 0.9, 0.6], 4) == [0]
    assert explained(whole, [0.67, 0.9, 0.6], 4) == [1, 2]
    assert explained(whole, [0.67, 0.9, 0.6], 1) == [0], "more parts than are looked for"


@given(
    st.lists(st.tuples(*[st.integers(0, SIDE - 1)] * 4), min_size=1, max_size=6), st.integers(1, 9)
)
def test_parts_are_inside_their_whole_and_have_all_the_ink(
    boxes: list[tuple[int, ...]], most: int
) -> None:
    blocks = [((min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1), RED) for a, b, c, d in boxes]
    pixels = scene(*blocks)
    pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = (
        0,
        0,
        0,
        0,
    )  # the background is the border's colour
    tree = parts_of(pixels, most)
    left = pixels.copy()
    nodes = [] if tree is None else tree.nodes()
    for node in nodes:
        for child in node.children:
            assert node.box[0] <= child.box[0] < child.box[2] <= node.box[2]
            assert node.box[1] <= child.box[1] < child.box[3] <= node.box[3]
        if not node.children:
            x0, y0, x1, y1 = node.box
            left[y0:y1, x0:x1] = 0
    assert not left.any()
    assert sum(not node.children for node in nodes) <= 2 * most


MEMORY: list[Document] = [
    (Text("a bell"), shown(scene((UPPER, RED)))),
    (Text("a key, filled"), shown(scene((UPPER, GREEN)))),
]


def by_parts(**settings: Any) -> Any:
    memory = [
        (text, shown(scene(((0, 0, 48, 48), colour))))
        for (text, _), colour in zip(MEMORY, (RED, GREEN), strict=True)
    ]
    config = DenseRetrieverConfig(cache=False, compare="same", **{"parts": 4, **settings})
    return config.build(ListSource(memory), Colours())


def test_each_part_finds_its_document() -> None:
    """The whole is red and green, (1, 1) / sqrt(2): its best cosine is 0.71, that of two of its parts 1."""
    retriever = by_parts()
    query = (shown(scene((UPPER, BOTH), ((8, 72, 56, 120), RED), (LOWER, GREEN))),)
    [found] = retriever.retrieve_parts([query])
    assert [one.id for one in found][1:] == ["d0", "d1"]
    assert [one.region for one in found] == [
        (16, 16, 112, 112),
        (16, 143, 112, 239),
        (143, 128, 239, 239),
    ]
    [without] = retriever.retrieve_parts([query], [{"d1"}])
    assert "d1" not in [one.id for one in without]
    # one thing, a text, and a retriever that looks at no parts
    for asked in ((shown(scene((UPPER, RED))),), (Text("a bell"),), (Text("a bell"), *query)):
        assert retriever.retrieve_parts([asked]) == [[]]
    assert by_parts(parts=0).retrieve_parts([query]) == [[]]
    assert retriever.retrieve([query], 2)[0][0].region is None


def test_texts_are_searched_without_reading_a_picture() -> None:
    def never() -> Any:
        raise AssertionError("a picture was read")

    memory = [(Text(text), Image(text, never)) for text in ("a bell", "a key, filled")]
    config = DenseRetrieverConfig(cache=False, compare="same", parts=4)
    retriever = config.build(ListSource(memory), Colours())
    query = (Text("a bell"),)
    assert len(retriever.retrieve([query], 2)[0]) == 2
    assert retriever.retrieve_parts([query]) == [[]]


def test_a_document_without_text_says_nothing_about_a_part() -> None:
    memory = [
        (shown(scene(((0, 0, 48, 48), RED))),),
        (Text("a key"), shown(scene(((0, 0, 48, 48), GREEN)))),
    ]
    config = DenseRetrieverConfig(cache=False, compare="same", parts=4)
    retriever = config.build(ListSource(memory), Colours())
    query = (shown(scene((UPPER, BOTH), ((8, 72, 56, 120), RED), (LOWER, GREEN))),)
    [found] = retriever.retrieve_parts([query])
    assert found
    assert {one.id for one in found} == {"d1"}


def test_a_part_is_prepended_as_its_text_at_its_box() -> None:
    assert prepended(MEMORY[1], (1, 2, 30, 40)) == (
        Text("at (1, 2) -> (30, 40), upper left: a key, filled"),
    )
    assert prepended(MEMORY[1], None) is MEMORY[1]


def test_parts_are_compared_with_pictures_only() -> None:
    message = (
        "retriever.parts: is 4, but parts of a picture can only be compared with pictures\n"
        "  next: add retriever.compare=same and retriever.query=text, or use 0"
    )
    given: list[dict[str, Any]] = [{"compare": "both"}, {"compare": "same", "query": "both"}]
    for settings in given:
        with pytest.raises(RecipeError) as caught:
            DenseRetrieverConfig(parts=4, **settings).check()
        assert str(caught.value) == message


class InParts(Following):
    """Odd numbers show two things: the next number, and the one after."""

    lose_region = False

    @property
    def max_parts(self) -> int:
        return 2

    def _retrieve_parts(self, queries: Sequence[Document], exclude: Any) -> list[list[Retrieved]]:
        found = []
        for query in queries:
            assert isinstance(query[0], Text)
            number = int(query[0].text.split()[1])
            found.append(
                [
                    Retrieved(
                        (number + step) % 5,
                        "",
                        1.0,
                        region=None if self.lose_region else (step, 0, 9, 9),
                    )
                    for step in (1, 2)
                ]
                if number % 2
                else []
            )
        return found


def test_training_prepends_all_parts_or_nothing(tmp_path: Path) -> None:
    source = Numbers(5)
    for _ in range(2):  # computed, and read again
        table = NeighbourTable(
            Queries(InParts(source), source, NeighbourSettings("f", num_ranks=3)),
            tmp_path,
            progress=False,
        )
        assert table.parts(3) == [(4, (1, 0, 9, 9)), (0, (2, 0, 9, 9))]
        assert table.parts(2) == []
        assert table.neighbours(2) == [3, 4, 0]
    documents = RetrievedDocuments(table, source, None, num_retrieved=1, random_num_retrieved=True)
    places = ["at (1, 0) -> (9, 9), upper left", "at (2, 0) -> (9, 9), upper left"]
    wanted = [(Text(f"{places[0]}: number 4"),), (Text(f"{places[1]}: number 0"),)]
    assert documents.best(3) == wanted
    drawn = [documents.draw(3, np.random.default_rng(seed)) for seed in range(300)]
    assert {len(one) for one in drawn} == {0, 2}
    # of two parts none, one or two are drawn, and one stands for both
    assert sum(not one for one in drawn) == pytest.approx(100, abs=35)  # four standard errors
    whole = replace(documents, random_num_retrieved=False)
    assert all(len(whole.draw(3, np.random.default_rng(seed))) == 2 for seed in range(20))
    for one in drawn:  # in the order of the parts, with other captions
        boxes = [text_of(document).partition(": ")[0] for document in one]
        assert boxes in ([], places)


def test_a_part_without_a_box_is_a_defect_of_the_retriever() -> None:
    retriever = InParts(Numbers(5))
    retriever.lose_region = True
    with pytest.raises(PluginError, match="a document found for a part has no region"):
        retriever.retrieve_parts([Numbers(5).document(1)])
