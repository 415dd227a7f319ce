"""The places of `patch_knn`: how they are read, faiss against distances by hand, and the file.

Legend: M places, K codes around one, V codes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Codes, Image, Text
from cm3core.errors import DataError
from cm3core.interfaces import ModelParts
from cm3kits.retriever import HashEmbedder, ListSource
from cm3kits.tiny import GreySquares
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.patch_knn import database as module
from cm3plugins.samplers.patch_knn.database import database_for, in_memory, places_of
from cm3run.bank import MemoryBank, Tools, build_bank

GRID = (3, 4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


def random_codes(number, num_codes=16, grid=GRID):
    size = grid[0] * grid[1]
    return [
        Codes(np.random.default_rng(seed).integers(0, num_codes, size, np.int32), grid)
        for seed in range(number)
    ]


def by_hand(pictures, grid=GRID):
    """(codes around, code) -> how often, by loops."""
    found = {}
    for picture in pictures:
        code = picture.codes.reshape(grid).tolist()
        for row in range(1, grid[0]):
            for column in range(1, grid[1] - 1):
                above = code[row - 1][column - 1 : column + 2]
                place = (*above, code[row][column - 1], code[row][column])
                found[place] = found.get(place, 0) + 1
    return found


def test_places_are_counted_as_by_hand(monkeypatch):
    """Whatever is merged when; pictures as codes and as pixels."""
    pictures = random_codes(40, num_codes=2)
    expected = by_hand(pictures)
    tokenizer = GreySquares(GRID, 2)
    pixels = [tokenizer.decode(one.codes[None])[0] for one in pictures]
    coded = ListSource([(Text("a"), one) for one in pictures])
    drawn = ListSource([(Image(f"p{i}", one.copy),) for i, one in enumerate(pixels)])
    for merged in (1, 7, 1 << 20):
        monkeypatch.setattr("cm3plugins.samplers.patch_knn.database._MERGED", merged)
        for memory in (coded, drawn):
            places, counts = places_of(memory, tokenizer, 10**6)
            assert dict(zip(map(tuple, places.tolist()), counts.tolist(), strict=True)) == expected
            assert places.tolist() == sorted(places.tolist())


def test_of_a_larger_memory_every_nth_document_is_read():
    pictures = random_codes(40)
    memory = ListSource([(one,) for one in pictures])
    places, counts = places_of(memory, GreySquares(GRID, 16), 41)
    assert counts.sum() == 40
    chosen = by_hand(pictures[::4])
    assert dict(zip(map(tuple, places.tolist()), counts.tolist(), strict=True)) == chosen


def test_a_picture_that_cannot_be_read_is_left_out():
    def broken():
        raise DataError("picture", "is broken", "repair it")

    [picture] = random_codes(1)
    memory = ListSource([(Image("broken", broken),), (picture,)])
    assert len(places_of(memory, GreySquares(GRID, 16), 100)[0]) == len(by_hand([picture]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(0, 2**31),
)
def test_the_nearest_are_those_of_distances_by_hand(num_codes, dimension, number, wanted, seed):
    rng = np.random.default_rng(seed)
    codebook = rng.normal(size=(num_codes, dimension)).astype(np.float32)
    places = np.unique(rng.integers(0, num_codes, (number, 5), np.int32), axis=0)
    counts = rng.integers(1, 9, len(places))
    database = in_memory(places, counts, codebook)
    around = rng.integers(0, num_codes, (4, 4))
    vectors = codebook.astype(np.float64)[places[:, :4]].reshape(len(places), -1)
    weights = counts / counts.sum()
    mean = 2 * (weights @ (vectors - weights @ vectors) ** 2).sum()
    mean = mean if mean > 1e-9 else 1.0  # all alike: the rest is rounding
    distance, code, count = database.search(around, wanted)
    for row, one in enumerate(around):
        query = codebook.astype(np.float64)[one].ravel()
        expected = ((vectors - query) ** 2).sum(1) / mean
        assert distance[row] == pytest.approx(np.sort(expected)[:wanted], rel=1e-3, abs=1e-4)
        for near, own, times in zip(distance[row], code[row], count[row], strict=True):
            same = (places[:, 4] == own) & (counts == times)
            assert np.isclose(expected[same], near, rtol=1e-3, atol=1e-4).any()
        alone = database.search(one[None], wanted)
        assert [part[0].tolist() for part in alone] == [
            part[row].tolist() for part in (distance, code, count)
        ]


def test_many_places_are_searched_by_lists(monkeypatch):
    """All lists looked at: the same as whole; a few: most of the nearest."""
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(300, 3)).astype(np.float32)
    places = np.unique(rng.integers(0, 300, (3_000, 5), np.int32), axis=0)
    counts = np.ones(len(places), np.int64)
    around = rng.integers(0, 300, (50, 4))
    whole = in_memory(places, counts, codebook).search(around, 10)
    monkeypatch.setattr(module, "EXACT", 1_000)
    database = in_memory(places, counts, codebook)
    assert database.native.nlist == 4 * 54
    few = database.search(around, 10)
    assert np.mean(few[0] == whole[0]) > 0.8
    database.native.nprobe = database.native.nlist
    for found, expected in zip(database.search(around, 10), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- the file


def built_bank(folder, pictures, num_codes=16):
    """A bank whose image tokenizer has code vectors."""
    tokenizer = GreySquares(GRID, num_codes)
    tools = Tools(HashEmbedder(8), tokenizer, "hash", {"dimension": 8}, "greys", {})
    documents = [
        (Image(f"p{i}", tokenizer.decode(one.codes[None])[0].copy),)
        for i, one in enumerate(pictures)
    ]
    build_bank(ListSource(documents), folder, tools, progress=False)
    return MemoryBank.open(folder)


def parts_of(memory, num_codes=16) -> ModelParts:
    return ModelParts(
        GreySquares(GRID, num_codes), CM3LeonVocabulary(20, num_codes), lambda: memory
    )


def test_a_bank_keeps_its_places_next_to_it(tmp_path, monkeypatch):
    pictures = random_codes(9)
    built_bank(tmp_path / "bank", pictures)
    first = database_for(parts_of(None), str(tmp_path / "bank"), 1_000)
    assert len(first) == len(by_hand(pictures))
    monkeypatch.setattr(module, "places_of", None)  # nothing is read again
    again = database_for(parts_of(None), str(tmp_path / "bank"), 1_000)
    around = np.random.default_rng(1).integers(0, 16, (9, 4))
    for one, other in zip(first.search(around, 5), again.search(around, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert first.mean_distance == again.mean_distance
    assert not list((tmp_path / "cache").glob("*"))


def test_the_model_s_memory_is_kept_in_the_cache(tmp_path, monkeypatch):
    memory = ListSource([(one,) for one in random_codes(9)])
    first = database_for(parts_of(memory), None, 1_000)
    assert list((tmp_path / "cache/patch_knn").glob("*/vectors.index"))
    monkeypatch.setattr(module, "places_of", None)
    assert len(database_for(parts_of(memory), None, 1_000)) == len(first)


@pytest.mark.parametrize("kept", [0, 1, 0.9])
def test_a_cut_file_is_built_again(tmp_path, kept):
    bank = built_bank(tmp_path / "bank", random_codes(9))
    first = len(database_for(parts_of(bank), None, 1_000))
    [file] = (tmp_path / "bank/patch_knn").glob("*/vectors.index")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) - 1])
    assert len(database_for(parts_of(bank), None, 1_000)) == first


def test_a_bank_that_has_changed_is_read_again(tmp_path, capsys):
    built_bank(tmp_path / "bank", random_codes(9))
    database_for(parts_of(None), str(tmp_path / "bank"), 1_000)
    built_bank(tmp_path / "grown", random_codes(20))
    (tmp_path / "bank/patch_knn").rename(tmp_path / "grown/patch_knn")
    found = database_for(parts_of(None), str(tmp_path / "grown"), 1_000)
    assert len(found) == len(by_hand(random_codes(20)))
    assert len(list((tmp_path / "grown/patch_knn").glob("*"))) == 1
    assert ": the bank has changed" in capsys.readouterr().err


def test_where_nothing_can_be_written_the_cache_is_used(tmp_path, monkeypatch):
    bank = built_bank(tmp_path / "bank", random_codes(9))

    def refuse(path, folder=False):
        from cm3core.errors import FileError

        if str(path).startswith(str(tmp_path / "bank")):
            raise FileError(str(path), "can't be written", "")

    monkeypatch.setattr(module, "check_writable", refuse)
    database_for(parts_of(bank), None, 1_000)
    assert not (tmp_path / "bank/patch_knn").exists()
    assert list((tmp_path / "cache/patch_knn").glob("*/vectors.index"))


def test_a_bank_of_another_tokenizer_is_refused(tmp_path):
    built_bank(tmp_path / "bank", random_codes(4))
    with pytest.raises(DataError, match="was built with another image tokenizer") as caught:
        database_for(parts_of(None, num_codes=9), str(tmp_path / "bank"), 1_000)
    assert "use the image tokenizer that it was built with" in str(caught.value)


def test_equal_codes_everywhere_have_a_scale():
    """No variance: distances are those of the vectors."""
    memory = ListSource([(Codes(np.full(12, 3, np.int32), GRID),)])
    database = database_for(parts_of(memory), None, 100)
    assert database.mean_distance == 1.0
    distance, code, count = database.search(np.full((1, 4), 3), 5)
    assert (distance.tolist(), code.tolist(), count.tolist()) == ([[0.0]], [[3]], [[4]])
    assert torch.isfinite(torch.from_numpy(distance)).all()
