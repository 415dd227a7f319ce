"""A document in a shard: by hand, back again, and everything that may be wrong with one."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Codes, Document, Image, Text, starts_turn
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from cm3run.token_shards import StoredDocument, entries_of, stored_document
from cm3run.token_shards.record import RecordFacts, write_tar, written
from messages import tells

GRID = (1, 2)


def no_pixels() -> np.ndarray:
    raise AssertionError("never loaded")


PICTURE = Image("k", no_pixels, response=True)
CODES = {"k": np.array([7, 300], np.int32)}


def stored(
    *versions: Document, alternatives: list[tuple[str, ...]] | None = None, codebook_size: int = 512
) -> StoredDocument:
    text, file = written(
        RecordFacts(
            "a/b",
            keys=frozenset({"image:k"}),
            provenance=Provenance("MIT", "here", "Rex"),
            group="a",
        ),
        versions,
        CODES,
        ByteTokenizer(),
        codebook_size=codebook_size,
        alternatives=alternatives,
    )
    return stored_document(text, file or b"", GRID, "shard, document 0")


def test_by_hand() -> None:
    text, file = written(
        RecordFacts("a/b", keys=frozenset({"image:k"}), provenance=Provenance("MIT"), group=""),
        [(Text("hi", ((0, 2),)), PICTURE)],
        CODES,
        ByteTokenizer(),
        codebook_size=512,
    )
    assert json.loads(text) == {
        "id": "a/b",
        "segments": [
            {"texts": ["hi"], "ids": [[104, 105]], "responses": [[[0, 2]]]},
            {"picture": 0, "response": True},
        ],
        "keys": ["image:k"],
        "licence": "MIT",
        "source": "",
        "attribution": "",
        "group": "",
    }
    assert file is not None
    # as any reader of WebDataset decodes it
    array = np.load(io.BytesIO(file))
    assert array.dtype == np.uint16
    assert array.tolist() == [[7, 300]]


def test_back_again() -> None:
    found = stored((Text("hi", ((0, 2),)), PICTURE))
    text, picture = found.document()
    assert (text, picture) == (Text("hi"), Codes(CODES["k"], GRID))
    assert isinstance(text, Text)
    assert isinstance(picture, Codes)
    assert text.responses == ((0, 2),)
    assert text.ids == (104, 105)
    assert picture.response
    assert picture.codes.dtype == np.int32
    assert (found.id, found.group, found.provenance) == (
        "a/b",
        "a",
        Provenance("MIT", "here", "Rex"),
    )
    assert found.content_keys == {"image:k"}


def test_turns_of_a_conversation_stay() -> None:
    asked = (Text("hi", starts_turn=True), Text("you"), replace(PICTURE, starts_turn=True))
    for document in (
        stored(asked).document(),
        stored(asked, alternatives=[("hi",), ("you",)]).document(),
    ):
        assert [starts_turn(segment) for segment in document] == [True, False, True]


def test_large_codebooks_have_four_bytes_a_code() -> None:
    assert stored((PICTURE,), codebook_size=1 << 17).document() == (Codes(CODES["k"], GRID),)


@given(
    st.lists(st.lists(st.text(min_size=1), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_alternatives_are_drawn_as_a_data_set_of_files_draws_them(
    texts: list[list[str]], seed: int
) -> None:
    texts = [[text.encode(errors="ignore").decode() or "x" for text in one] for one in texts]
    found = stored(tuple(Text(one[0]) for one in texts), alternatives=[tuple(one) for one in texts])
    rng, own = np.random.default_rng(seed), np.random.default_rng(seed)
    expected = [one[int(own.integers(len(one)))] for one in texts]
    drawn = found.document(rng)
    assert [one.text for one in drawn if isinstance(one, Text)] == expected
    assert [list(one.ids or ()) for one in drawn if isinstance(one, Text)] == [
        list(text.encode()) for text in expected
    ]
    # later draws of the caller are those of the original, too
    assert rng.integers(1 << 40) == own.integers(1 << 40)


def test_texts_that_belong_together_are_drawn_together() -> None:
    found = stored((Text("who?"), Text("Rex")), (Text("what?"), Text("a dog")))
    drawn = {found.document(np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {(Text("who?"), Text("Rex")), (Text("what?"), Text("a dog"))}


@pytest.mark.parametrize(
    ("text", "codes", "cause"),
    [
        (
            b"{",
            b"",
            "(is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (b"[]", b"", "(is [], must be a mapping)"),
        (
            b'{"id":"a","segments":[],"licence":"MIT"}',
            b"no array",
            "ValueError: not an array in numpy's format 1.0",
        ),
    ],
)
def test_wrong_bytes(text: bytes, codes: bytes, cause: str) -> None:
    with pytest.raises(DataError) as caught:
        stored_document(text, codes, GRID, "here")
    assert tells(caught.value, f"here: is not a ... {cause}")


def test_wrong_codes() -> None:
    for array, cause in (
        (np.zeros((1, 3), np.uint16), "codes [1, 3]"),
        (np.zeros((1, 2), np.float32), "codes of dtype float32"),
        (np.zeros((1, 2), object), "codes of dtype object"),
    ):
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=(1, 0))
        with pytest.raises(DataError, match=f"ValueError: {cause}".replace("[", r"\[")):
            stored_document(b'{"id":"a","segments":[],"licence":"MIT"}', file.getvalue(), GRID, "")


def test_wrong_segments() -> None:
    for segments in ('[{"picture":3}]', '[{"texts":[]}]', "[7]", '[{"texts":["a"],"ids":[]}]'):
        text = f'{{"id":"a","segments":{segments},"licence":"MIT"}}'.encode()
        with pytest.raises(DataError, match="is not a document of token shards"):
            stored_document(text, b"", GRID, "here").document()


# ---- the tar


def tar_of(path: Path) -> bytes:
    assert write_tar(path, [("1", b"one", None), ("2", b"two", b"x" * 600)]) == 2
    return path.read_bytes()


def test_where_documents_are(tmp_path: Path) -> None:
    content = tar_of(tmp_path / "a.tar")
    assert content == tar_of(tmp_path / "b.tar")
    found = entries_of(content, "a.tar")
    parts = [
        (content[one.text_start :][: one.text_size], content[one.codes_start :][: one.codes_size])
        for one in found
    ]
    assert parts == [(b"one", b""), (b"two", b"x" * 600)]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [one.name for one in tar] == ["1.json", "2.json", "2.npy"]


def test_tars_that_are_not_whole(tmp_path: Path) -> None:
    content = tar_of(tmp_path / "a.tar")
    cases = {
        content[:1500]: "lacks the end marker of a tar",
        content[:2800]: "ends within its member 2.npy",
        b"x" * 1024: "has no tar header at byte 0",
        content.replace(b"2.npy", b"3.npy"): "contains 3.npy, which is not part of a document",
    }
    for damaged, cause in cases.items():
        with pytest.raises(DataError) as caught:
            entries_of(damaged, "a.tar")
        assert (caught.value.place, caught.value.cause) == ("a.tar", cause)


def test_all_that_is_known_of_a_document_comes_back() -> None:
    known = Provenance("CC-BY-4.0", "npm x 1", "Ann", "x", "bell", "https://example.org/x")
    text, file = written(
        RecordFacts("x/bell", keys=frozenset(), provenance=known, group=""),
        [(PICTURE,)],
        CODES,
        ByteTokenizer(),
        codebook_size=512,
    )
    assert stored_document(text, file or b"", GRID, "").provenance == known


def test_documents_of_earlier_versions_state_less() -> None:
    text = json.dumps({"id": "a", "segments": [], "licence": "MIT", "source": "here"}).encode()
    assert stored_document(text, b"", GRID, "").provenance == Provenance("MIT", "here")
